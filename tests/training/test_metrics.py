import csv
import json

import pytest

from lossmix_det.training.metrics import MetricsFile


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def test_rows_are_on_the_disk_as_soon_as_they_are_added(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.add({"step": 1, "loss": 0.1})
    metrics.add({"step": 2, "loss": 0.3})
    assert [row["loss"] for row in rows_of(tmp_path / "metrics.csv")] == ["0.1", "0.3"]


def test_a_new_name_becomes_a_column_and_old_rows_stay(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.csv")
    metrics.add({"step": 1, "loss": 0.1})
    metrics.add({"step": 2, "loss": 0.3, "target/loss": 7.0})
    first, second = rows_of(tmp_path / "metrics.csv")
    assert first["target/loss"] == ""
    assert second["target/loss"] == "7.0"


def test_steps_that_will_run_again_are_dropped_and_a_line_cut_short_is_too(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.4\n3,0.3\n4,")
    metrics = MetricsFile(path, resume_at=2)
    metrics.add({"step": 3, "loss": 0.25})
    assert path.read_text() == "step,loss\n1,0.5\n2,0.4\n3,0.25\n"
    metrics.write_json()
    assert json.loads((tmp_path / "metrics.json").read_text())[-1] == {"step": 3, "loss": 0.25}


def test_numbers_survive_the_file_exactly(tmp_path):
    value = 0.1 + 0.2
    MetricsFile(tmp_path / "m.csv").add({"step": 1, "loss": value})
    assert MetricsFile(tmp_path / "m.csv", resume_at=1).rows == [{"step": 1, "loss": value}]


def test_columns_of_all_rows_survive_resumption(tmp_path):
    """The first row may be of a skipped step, which has no losses."""
    path = tmp_path / "m.csv"
    metrics = MetricsFile(path)
    metrics.add({"step": 1, "loss": float("nan")})
    metrics.add({"step": 2, "loss": 1.0, "source/roi_box": 2.0})
    again = MetricsFile(path, resume_at=2)
    again.add({"step": 3, "loss": 1.0, "source/roi_box": 3.0})
    assert [row["source/roi_box"] for row in rows_of(path)] == ["", "2.0", "3.0"]
    again.write_json()
    assert json.loads(path.with_suffix(".json").read_text())[0] == {"step": 1, "loss": None}


@pytest.mark.parametrize("content", [b"step,loss\n1,0.5\n2,\xff\xfe\n", "step,loss\n1,1\n".encode("utf-16")])
def test_a_file_that_is_not_utf_8_is_kept_aside_with_a_word(tmp_path, caplog, content):
    path = tmp_path / "metrics.csv"
    path.write_bytes(content)
    metrics = MetricsFile(path, resume_at=2)
    metrics.add({"step": 3, "loss": 0.25})
    assert rows_of(path) == [{"step": "3", "loss": "0.25"}]
    assert path.with_name("metrics.csv.unreadable").read_bytes() == content
    assert "metrics.csv cannot be read" in caplog.text
    assert "it is kept as metrics.csv.unreadable" in caplog.text


@pytest.mark.parametrize("line", ["2,0.4,7,8", "inf,0.4", "nan,1", ",1", "x,1"])
def test_lines_that_are_no_rows_of_numbers_are_passed_over(tmp_path, line):
    path = tmp_path / "metrics.csv"
    path.write_text(f"step,loss\n1,0.5\n{line}\n")
    assert MetricsFile(path, resume_at=2).rows == [{"step": 1, "loss": 0.5}]


def test_names_of_any_script_are_columns(tmp_path):
    path = tmp_path / "metrics.csv"
    metrics = MetricsFile(path)
    for step in (1, 2):
        metrics.add({"step": step, "pseudo/precision/交通灯": 0.5})
    assert path.read_text(encoding="utf-8").splitlines()[0] == "step,pseudo/precision/交通灯"
    assert len(MetricsFile(path, resume_at=2).rows) == 2

"""The page of a run: whole in one file, true to what the run wrote, and never broken by what people name."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pytest
from runs import trainer

from lossmix_det.commands.report import main
from lossmix_det.config import load_config
from lossmix_det.data.catalog import load
from lossmix_det.report.charts import diagnosis_charts, run_charts
from lossmix_det.report.page import confusion_table, scores_table, write_page
from lossmix_det.report.plots import line_chart, thinned
from lossmix_det.report.run_folder import RunFolder
from lossmix_det.training.snapshots import Snapshots

VOID = {"meta", "img", "link", "br", "hr", "input", "path", "rect", "use", "circle", "line"}


class Page(HTMLParser):
    """What is on a page; fails where elements are not nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.ids, self.links, self.images, self.text, self.heads = [], [], [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values["href"]] if tag == "a" else []
        self.images += [values] if tag == "img" else []
        self.heads += [tag] if re.fullmatch(r"h[1-6]", tag) else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run that burned in for two steps and adapted for four, with a page."""
    folder = tmp_path_factory.mktemp("report") / "run"
    words = ["data.target=[shapes_clipart_train]", "ema.decay=0.5", "adaptation.burn_in_steps=2", "train.steps=6"]
    words += ["train.eval_every=2", "pseudo_labels.score=0.0", "pseudo_labels.max_per_image=3", "train.report=true"]
    it = trainer(folder, *words)
    it.written, write = [], it.page.write
    it.page.write = lambda detections: (it.written.append(it.state.step), write(detections))
    assert it.train()
    return it


@pytest.mark.slow
def test_the_page_is_written_at_every_evaluation_and_once_at_the_end(adapted):
    assert adapted.written == [2, 4, 6]


@pytest.mark.slow
def test_a_mixed_batch_of_each_phase_is_on_the_page_with_the_weights_that_were_taught(adapted):
    kept = json.loads((adapted.folder / "mixed_batch.json").read_text())
    assert {phase: of["step"] for phase, of in kept.items()} == {"Burn-in": 2, "Adaptation": 6}
    page = Page((adapted.folder / "report.html").read_text())
    for phase, of in kept.items():
        assert 0 < len(of["pictures"]) <= 6
        assert f"{phase}, step {of['step']}" in page.text
        for picture in of["pictures"]:
            assert picture["caption"].startswith("mixed, weights ")
            assert picture["source"] in [image["src"] for image in page.images]
    weights = [
        [float(word) for word in picture["caption"].removeprefix("mixed, weights ").split(", ")]
        for picture in kept["Adaptation"]["pictures"]
    ]
    assert all(sum(of) == pytest.approx(1, abs=0.011) for of in weights)  # lam and 1 - lam
    assert max(map(len, weights)) == 2


@pytest.mark.slow
def test_tensorboard_has_the_curves_and_the_pictures_of_every_evaluation(adapted):
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(adapted.folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    board.Reload()
    tags = board.Tags()
    for name in ("loss", "lr", "pseudo/per_image", "speed/images_per_s", "speed/data_wait_share"):
        assert name in tags["scalars"]
    assert "teacher/shapes_clipart_test/AP50" in tags["scalars"]
    steps = {tag: [one.step for one in board.Images(tag)] for tag in tags["images"]}
    for number in range(1, 5):
        assert steps[f"pseudo-labels/{number}"] == [4, 6]
        assert steps[f"detections/shapes_clipart_test/{number}"] == [2, 4, 6]
    assert steps["mixed batch/1"] == [2, 4, 6]
    for tag in tags["images"]:
        for one in board.Images(tag):
            Image.open(io.BytesIO(one.encoded_image_string)).verify()


@pytest.mark.slow
def test_a_page_that_fails_never_ends_a_run(tmp_path, monkeypatch, caplog):
    from lossmix_det.report import page

    def fail(*words, **more):
        raise RuntimeError("no space left")

    monkeypatch.setattr(page, "write_page", fail)
    monkeypatch.setattr(Snapshots, "take", fail)
    assert trainer(tmp_path, "train.steps=1", "train.report=true").train()
    assert "the page of the run lacks something (RuntimeError: no space left)" in caplog.text


@pytest.mark.slow
def test_a_run_leaves_a_page_that_needs_nothing_else(adapted):
    text = (adapted.folder / "report.html").read_text()
    page = Page(text)
    assert len(text) < 8_000_000
    assert not re.search(r"""(src|href)\s*=\s*["'](?!data:image/jpeg;base64,|#)""", text)
    assert "<script" not in text
    assert "@import" not in text
    assert {link.removeprefix("#") for link in page.links} <= set(page.ids)
    assert page.heads[0] == "h1"
    assert page.heads.count("h1") == 1


@pytest.mark.slow
def test_its_scores_are_those_of_the_run(adapted):
    page = Page((adapted.folder / "report.html").read_text())
    for model in ("burn-in", "student", "teacher"):
        assert model in page.text
    scores = adapted.results["teacher"]["shapes_clipart_test"]
    assert f"{scores['AP50']:.1f}" in page.text
    assert "ended after 6 steps" in page.text
    for title in ("Mistakes on shapes_clipart_test", "Pictures of shapes_clipart_test", "Pseudo-labels over time"):
        assert title in page.text


@pytest.mark.slow
def test_every_picture_can_be_read_and_is_described(adapted):
    import base64
    import io

    from PIL import Image

    page = Page((adapted.folder / "report.html").read_text())
    assert len(page.images) >= 6 + 4  # of the test set, and of the target
    for picture in page.images:
        Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).verify()
        assert picture["alt"]


@pytest.mark.slow
def test_pseudo_labels_are_followed_on_the_same_images_at_every_evaluation_of_adaptation(adapted):
    taken = json.loads((adapted.folder / "pseudo_labels.json").read_text())
    assert [one["step"] for one in taken] == [4, 6]  # at step 2 there is no teacher yet
    (paths,) = {tuple(image["path"] for image in one["images"]) for one in taken}
    target = adapted.streams.target_sets[0]
    assert [str(target.records[int(index)].path) for index in (0, 4, 7, 11)] == list(paths)
    state, record = adapted.state, target.records[0]
    of_first = taken[-1]["images"][0]
    assert 0 < len(of_first["boxes"]) <= 3
    assert np.array(of_first["boxes"]).max() <= max(record.size)
    assert of_first["scores"] == sorted(of_first["scores"], reverse=True)
    Snapshots(adapted.folder, [target], adapted.config.data).take(state, "cpu")  # again: nothing is written twice
    assert json.loads((adapted.folder / "pseudo_labels.json").read_text()) == taken


@pytest.mark.slow
def test_following_changes_nothing_that_is_learned(adapted, tmp_path):
    words = ["data.target=[shapes_clipart_train]", "ema.decay=0.5", "adaptation.burn_in_steps=2", "train.steps=6"]
    words += ["train.eval_every=2", "pseudo_labels.score=0.0", "pseudo_labels.max_per_image=3"]
    it = trainer(tmp_path, *words)
    assert it.train()
    assert not (tmp_path / "report.html").exists()
    for name, value in it.state.detector.state_dict().items():
        assert value.equal(adapted.state.detector.state_dict()[name]), name


@pytest.mark.slow
def test_a_run_that_was_killed_has_a_page_of_what_it_wrote(adapted, tmp_path, caplog):
    for name in ("run.json", "config.yaml", "metrics.csv", "scores.csv"):
        (tmp_path / name).write_bytes((adapted.folder / name).read_bytes())
    rows = (tmp_path / "metrics.csv").read_text().splitlines()
    (tmp_path / "metrics.csv").write_text("\n".join([*rows[:4], rows[4][:9]]))  # a line that was cut
    (tmp_path / "speed.csv").write_bytes(b"\xff\x00damaged")
    assert main([str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    assert "step 6 of 6" in page.text
    assert "still training, or ended before its last step" in page.text
    assert "AP50 over training" in page.text


@pytest.mark.slow
def test_several_runs_stand_side_by_side(adapted, tmp_path):
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        for name in ("run.json", "metrics.csv", "scores.csv", "results.json"):
            (folder / name).write_bytes((adapted.folder / name).read_bytes())
    output = tmp_path / "both.html"
    assert main([*map(str, folders), "--output", str(output)]) == 0
    page = Page(output.read_text())
    assert "a, teacher" in page.text
    table = scores_table({folder.name: RunFolder(folder) for folder in folders})
    assert [names[:2] for names, _ in table.rows] == [
        [run, model] for run in ("a", "b") for model in ("burn-in", "student", "teacher")
    ]


def scored(folder, name, **scores):
    """A run that reports a teacher."""
    (folder / name).mkdir()
    of = {test_set: {"AP": value / 2, "AP50": value} for test_set, value in scores.items()}
    (folder / name / "results.json").write_text(json.dumps({"student": of, "teacher": of}))
    (folder / name / "run.json").write_text("{}")
    return str(folder / name)


def test_the_scores_of_a_source_only_run_and_of_an_oracle_stand_below(tmp_path):
    run, other = scored(tmp_path, "mine", photos=50.0), scored(tmp_path, "other", photos=45.0)
    bounds = [scored(tmp_path, "lower", photos=31.5, more=1.0), scored(tmp_path, "upper", photos=72.5)]
    words = ["--source-only", bounds[0], "--oracle", bounds[1]]
    assert main([run, *words]) == 0
    text = Page((tmp_path / "mine" / "report.html").read_text()).text
    assert re.sub(r"\s+", " ", text).count("source-only, lower photos 15.8 31.5") == 1
    references = {role: RunFolder(tmp_path / name) for role, name in (("source-only", "lower"), ("oracle", "upper"))}
    table = scores_table({"": RunFolder(tmp_path / "mine")}, references)
    assert [names for names, _ in table.rows] == [
        *(["student", "photos"], ["teacher", "photos"]),
        *(["source-only, lower", "photos"], ["oracle, upper", "photos"]),  # on what the run was tested on
    ]
    assert [cells[1].text for _, cells in table.rows] == ["50.0", "50.0", "31.5", "72.5"]
    assert main([run, other, *words, "--output", str(tmp_path / "both.html")]) == 0
    text = re.sub(r"\s+", " ", Page((tmp_path / "both.html").read_text()).text)
    assert "oracle, upper teacher photos 36.2 72.5" in text


def test_a_reference_that_was_tested_on_other_images_is_refused(tmp_path, capsys):
    run, other = scored(tmp_path, "mine", photos=50.0), scored(tmp_path, "other", drawings=45.0)
    assert main([run, "--oracle", other]) == 2
    assert f"--oracle {other} has no score on photos; give a run with the same data.test" in capsys.readouterr().err
    assert main([run, "--source-only", str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    (tmp_path / "run.json").write_text("{}")
    assert main([str(tmp_path), "--output", "x.html"]) == 2
    assert main([str(tmp_path), str(tmp_path)]) == 2
    assert "folders of different names" in capsys.readouterr().err


NASTY = "<script>alert(1)</script> $x_2$ [/] {{ 7 * 7 }} 猫"


def test_names_are_text_on_the_page(tmp_path):
    folder = tmp_path / "[b] & <i>"
    folder.mkdir()
    scores = {"AP": 1.0, "AP50": 2.0, "classes": {NASTY: {"AP50": 50.0}}}
    (folder / "results.json").write_text(json.dumps({"student": {NASTY: scores}}))
    (folder / "metrics.csv").write_text(f'step,loss,"pseudo/per_image/{NASTY}"\n1,2.0,3.0\n2,2.0,3.0\n')
    text = write_page(folder).read_text()
    assert "<script" not in text
    assert text.count("7 * 7") >= 2
    page = Page(text)
    assert NASTY in page.text
    assert "[b] & <i>" in page.text


def test_a_page_of_nothing_is_a_page(tmp_path):
    assert "step 0 of 0" in Page(write_page(tmp_path).read_text()).text


def test_long_lines_are_thinned_by_means_of_neighbours():
    x, y = thinned(range(1, 901), [1.0, 2.0, 6.0] * 300)
    assert len(x) == 300
    assert x[:2].tolist() == [2.0, 5.0]
    assert set(y.tolist()) == {3.0}
    x, y = thinned([1, 2, 3], [1.0, float("nan"), 3.0])
    assert (x.tolist(), y.tolist()) == ([1.0, 3.0], [1.0, 3.0])


def test_a_chart_takes_the_colour_of_the_page_and_says_what_it_shows():
    chart = line_chart("AP50", {"student": ([1, 2], [10.0, 20.0])}, "step", "percent", {"burn-in ends": 1.0})
    assert "currentColor" in chart.svg
    assert "#010203" not in chart.svg
    assert chart.text == "AP50. student: 10 at 1, 20 at 2."
    assert line_chart("AP50", {"student": ([], [])}, "step", "percent") is None


def test_losses_are_added_up_by_kind(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,source/a,source/b,mixed/a\n1,3.0,1.0,2.0,\n2,4.0,1.5,2.5,0.5\n")
    (chart,) = [chart for chart in run_charts(RunFolder(tmp_path)) if chart.title == "Losses"]
    assert "weighted sum: 3 at 1, 4 at 2" in chart.text
    assert "source: 3 at 1, 4 at 2" in chart.text
    assert "mixed: 0.5 at 2, 0.5 at 2" in chart.text


def test_of_many_classes_the_most_confused_are_shown():
    confusion = np.zeros((31, 31), dtype=np.int64)
    np.fill_diagonal(confusion, 9)
    confusion[5:25, 30] = np.arange(1, 21)
    table = confusion_table(confusion, [f"c{index}" for index in range(30)])
    assert [names for names, _ in table.rows] == [*([f"c{index}"] for index in range(5, 25)), ["no object"]]
    first = table.rows[0][1]
    assert [cell.text for cell in first if cell.text] == ["9", "1"]
    assert first[-1].share == pytest.approx(0.1)


def test_a_diagnosis_without_detections_draws_nothing():
    from lossmix_det.evaluation.diagnosis import diagnose

    config = load_config(None, ["shapes.train_images=2", "shapes.test_images=2", "shapes.size=64"])
    assert diagnosis_charts(diagnose(load("shapes_photo_test", config), [])) == []


@pytest.mark.slow
def test_pictures_of_data_that_has_changed_are_left_out(adapted, tmp_path, capsys):
    """Detections are kept by the place of an image in its set, and would be drawn on others."""
    shutil.copytree(adapted.folder, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    about = json.loads(path.read_text())
    name = adapted.config.data.test[-1]
    about["datasets"][name]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(about))
    assert main([str(tmp_path / "run")]) == 0
    assert f"data set {name} has changed since the run: the page leaves out its pictures" in capsys.readouterr().err
    pages = [(folder / "report.html").stat().st_size for folder in (adapted.folder, tmp_path / "run")]
    assert pages[1] < 0.8 * pages[0]


FOREIGN = {
    "detections_shapes_clipart_test.json": (
        "[{}]",
        '[{"image_id": [1], "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]',
    ),
    "results.json": ('{"student": {"a": null}}', '{"student": [1]}', "[]"),
    "run.json": ('{"datasets": [1]}', '{"datasets": {"shapes_clipart_test": 1}, "resumed": 3}'),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in FOREIGN.items() for text in texts])
def test_json_of_another_kind_counts_as_empty(adapted, tmp_path, name, text):
    shutil.copytree(adapted.folder, tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    assert main([str(tmp_path / "run")]) == 0
    Page((tmp_path / "run" / "report.html").read_text())


@pytest.mark.slow
def test_detections_of_images_that_are_not_in_the_set_are_left_out(adapted, tmp_path):
    shutil.copytree(adapted.folder, tmp_path / "run")
    path = tmp_path / "run" / "detections_shapes_clipart_test.json"
    strange = {"image_id": 999_999, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 1.0}
    path.write_text(json.dumps([*json.loads(path.read_text()), strange]))
    assert main([str(tmp_path / "run")]) == 0
    pages = [RunFolder(folder) for folder in (adapted.folder, tmp_path / "run")]
    assert len(pages[1].detections("shapes_clipart_test")) == len(pages[0].detections("shapes_clipart_test")) + 1

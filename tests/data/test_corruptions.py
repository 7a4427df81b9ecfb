"""Whatever is wrong in a data set is named, and nothing ends the reading."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from checked import WRITE, check, corrupt, survey

from lossmix_det.report.dataset_numbers import report_of


@pytest.mark.parametrize("part", range(5))
def test_100_random_corruptions_give_no_traceback_and_no_missed_file(sound, tmp_path, part):
    """500 in all, each of one to three files of a small data set."""
    for seed in range(part, 500, 5):
        rng = random.Random(seed)
        kind = rng.choice(list(WRITE))
        root = tmp_path / f"{seed}"
        shutil.copytree(sound / kind, root)
        wanted = corrupt(root, kind, rng)
        surveys, comparison = survey(root)
        said = "\n".join(line for each in surveys for line in each.faults)
        for name in wanted:  # VOC and YOLO go by names without suffix
            named = name in said or (kind != "coco" and f"/{Path(name).stem}." in said)
            assert named, f"seed {seed}: {kind} {name}\n{said}"
        json.dumps(report_of(surveys, comparison))
        shutil.rmtree(root)


def test_a_sound_data_set_has_no_fault(sound):
    for kind in WRITE:
        surveys, comparison = survey(sound / kind)
        assert [line for each in surveys for line in each.faults] == []
        assert comparison.faults() == []
        assert [len(each.records) for each in surveys] == [3, 2]


@pytest.mark.parametrize("seed", range(20))
def test_any_bytes_in_any_file_end_in_a_page(sound, tmp_path, seed):
    """Noise anywhere may leave a file as good as it was; but it never ends the reading."""
    rng = random.Random(seed)
    root = tmp_path / "data"
    shutil.copytree(sound / rng.choice(list(WRITE)), root)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(3)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content)
    status = check(root, "--output", tmp_path / "out")
    assert status in (0, 1, 2)
    assert (tmp_path / "out" / "check.html").is_file() == (status != 2)

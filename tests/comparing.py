"""What tests of comparisons share: options, and folders of runs that look finished."""

import json
from argparse import Namespace
from pathlib import Path

from benchmarks import runs, suites
from benchmarks.runs import Run, Suite

LAST = "shapes_clipart_test"  # of the test sets
DETECTION = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}


def results(folder: Path, name: str, seed: int, photo: float, clipart: float) -> None:
    """A finished run with these AP50."""
    path = folder / "shapes" / f"{name}_seed{seed}"
    path.mkdir(parents=True)
    scores = {
        "shapes_photo_test": {"AP50": photo, "AP": photo / 2},
        "shapes_clipart_test": {"AP50": clipart, "AP": 1.0},
    }
    for metrics in scores.values():
        metrics["classes"] = {"star": {"AP50": metrics["AP50"] + 1}, "cross": {"AP50": None}}
    other = {name: {"AP50": 0.0, "AP": 0.0} for name in scores}
    (path / "results.json").write_text(json.dumps({"student": other, "teacher": scores}))
    run = {
        "config": {"train": {"steps": 5, "precision": "32"}, "data": {"batch_size": 4}},
        "versions": dict.fromkeys(("torch", "torchvision", "albumentations"), "1.0"),
        "python": "3.11",
        "device": "cpu",
        "git_revision": "abc",
    }
    (path / "run.json").write_text(json.dumps(run))


def options(tmp_path: Path, *words: str) -> Namespace:
    """Of a comparison whose runs are kept in a folder."""
    return suites.build_parser().parse_args(["--suite", "mixing", "--runs", str(tmp_path), *words])


def planned(suite: Suite, chosen: Namespace) -> list[Run]:
    """The runs that options ask for."""
    return runs.planned(suite, chosen.runs, chosen.methods, chosen.seeds)


def adapted(folder: Path, method: str, seed: int) -> None:
    """What a finished run of adaptation leaves behind for the curves."""
    path = folder / "shapes" / f"{method}_seed{seed}"
    (path / "scores.csv").write_text(f"step,student/{LAST}/AP50,teacher/{LAST}/AP50\n5,10.0,\n10,20.0,30.0\n")
    rows = "".join(f"{step},0.5,0.25\n" for step in range(1, 21))
    (path / "metrics.csv").write_text("step,pseudo/precision,pseudo/recall\n" + rows)
    (path / f"detections_{LAST}.json").write_text(json.dumps([DETECTION | {"score": score} for score in (0.9, 0.05)]))

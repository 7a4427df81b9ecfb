"""Images that turn out to be damaged when they are first decoded."""

from pathlib import Path

import pytest
from runs import last_checkpoint, trainer

from lossmix_det.data.records import Unreadable


@pytest.mark.parametrize(
    "path", [Path("/data/one.png"), Path("a: image cannot (be) told/b (1).png"), Path("tab\tand: colon.jpg")]
)
@pytest.mark.parametrize("reason", ["image file is truncated (3 bytes not processed)", "", "no: image"])
def test_an_unreadable_image_comes_back_from_its_text(path, reason):
    problem = Unreadable(path, reason)
    assert str(problem) == f"{path}: image cannot be read ({reason})"
    assert Unreadable.from_text(str(problem)) == problem


def test_a_resumed_run_still_knows_what_could_not_be_read(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "two.png"
    path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[]", "data.drop_empty=false"]
    words += ["data.on_error=skip", "data.batch_size=2"]
    first = trainer(tmp_path / "run", *words, "train.steps=1")
    first.train()
    (problem,) = first.state.unreadable
    assert problem.path == path
    assert last_checkpoint(tmp_path / "run")["unreadable"] == [str(problem)]
    again = trainer(tmp_path / "run", *words, "train.steps=2", resume=True)
    assert again.state.unreadable == {problem}

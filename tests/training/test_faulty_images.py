"""Runs on images that cannot be read, or that have no labels."""

import json

import pytest
from conftest import voc_object, voc_xml, write_image
from runs import last_checkpoint, run, trainer

from lossmix_det.errors import UserError
from lossmix_det.files import read_checkpoint
from lossmix_det.report.run_folder import RunFolder, unreadable_of

pytestmark = pytest.mark.slow


def test_a_folder_without_truths_is_detected_on_but_not_scored(tmp_path, voc_folder):
    pictures = [f"datasets.bare.root={voc_folder / 'JPEGImages'}", "datasets.bare.format=folder"]
    it = trainer(tmp_path / "run", "train.steps=1", *pictures, "data.test=[bare]", "model.score_threshold=0.0")
    it.train()
    found = json.loads((tmp_path / "run" / "detections_bare.json").read_text())
    assert {row["file_name"] for row in found} == {"one.png", "two.png"}
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == {"student": {}}


def test_skipping_lists_what_was_skipped(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "two.png"
    path.write_bytes(path.read_bytes()[:500])
    overrides = [
        f"datasets.mine.root={voc_folder}",
        "data.train=[mine]",
        "data.test=[mine]",
        "data.drop_empty=false",
        "data.on_error=skip",
        "train.steps=2",
    ]
    trainer(tmp_path / "run", *overrides).train()
    text = (tmp_path / "run" / "data_problems.txt").read_text()
    assert text.startswith("skipped (1)")
    assert "two.png: image cannot be read" in text
    with pytest.raises(UserError, match=r"two.png: image cannot be read .*data.on_error=skip"):
        trainer(tmp_path / "other", *overrides, "data.on_error=raise").train()


def test_the_command_prints_one_sentence_for_an_unreadable_image(tmp_path, voc_folder):
    path = voc_folder / "JPEGImages" / "one.png"
    path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[mine]", "data.workers=1"]
    done = run(tmp_path, *words, "train.steps=2")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: ")
    assert "one.png: image cannot be read" in done.stderr


def truncated_jpeg(root) -> None:
    """Readable as far as its header goes."""
    path = write_image(root / "JPEGImages" / "three.jpg", 60, 40, seed=3)
    path.write_bytes(path.read_bytes()[:-900])
    (root / "Annotations" / "three.xml").write_text(voc_xml(voc_object("cat", 5, 5, 30, 30)))


def test_a_damaged_test_image_is_left_out_of_the_scores_or_stops_after_saving(tmp_path, voc_folder):
    truncated_jpeg(voc_folder)
    words = [f"datasets.mine.root={voc_folder}", "data.test=[mine]", "data.classes=[cat,dog]", "train.steps=2"]
    words += [f"datasets.sound.root={voc_folder}", "datasets.sound.split=train", "data.train=[sound]"]
    words += ["model.score_threshold=0.0"]
    trainer(tmp_path / "skip", *words, "data.on_error=skip").train()
    found = json.loads((tmp_path / "skip" / "detections_mine.json").read_text())
    assert {row["file_name"] for row in found} == {"one.png", "two.png"}
    assert "three.jpg: image cannot be read" in (tmp_path / "skip" / "data_problems.txt").read_text()
    assert unreadable_of(RunFolder(tmp_path / "skip"), "mine") == ["three.jpg"]
    (image_set,) = trainer(tmp_path / "again", *words, "data.on_error=skip").streams.test_sets
    assert len(image_set) == 3
    assert [record.path.name for record in image_set.without(["three.jpg"]).records] == ["one.png", "two.png"]
    with pytest.raises(UserError, match="three.jpg: image cannot be read"):
        trainer(tmp_path / "raise", *words).train()
    assert last_checkpoint(tmp_path / "raise")["step"] == 2


def test_training_images_of_which_none_can_be_read_end_the_run(tmp_path, voc_folder):
    for name in ("one", "two"):
        path = voc_folder / "JPEGImages" / f"{name}.png"
        path.write_bytes(path.read_bytes()[:500])
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[mine]", "data.drop_empty=false"]
    words.append("data.on_error=skip")
    with pytest.raises(UserError, match="no training image can be read"):
        trainer(tmp_path / "run", *words, "train.steps=5").train()


def test_a_folder_without_labels_cannot_be_trained_on(tmp_path, voc_folder):
    words = [f"datasets.bare.root={voc_folder / 'JPEGImages'}", "datasets.bare.format=folder", "data.train=[bare]"]
    with pytest.raises(UserError, match="data set 'bare' has no labels to train on"):
        trainer(tmp_path / "run", *words, "data.classes=[cat]")


def test_what_was_learned_before_a_damaged_image_is_saved(tmp_path, voc_folder):
    """Its header is sound, so that only loading it tells, perhaps hours after the start."""
    words = [f"datasets.mine.root={voc_folder}", "data.train=[mine]", "data.test=[]", "data.drop_empty=false"]
    words += ["data.batch_size=1", "train.steps=8", "train.save_every=100", "train.eval_every=0"]
    saved = {}
    for name in ("one", "two"):  # of which one is the first to be loaded
        path = voc_folder / "JPEGImages" / f"{name}.png"
        sound = path.read_bytes()
        path.write_bytes(sound[:500])
        it = trainer(tmp_path / name, *words)
        with pytest.raises(UserError, match=rf"{name}.png: image cannot be read"):
            it.train()
        path.write_bytes(sound)
        files = (tmp_path / name / "checkpoints").glob("step_*.pt")
        saved[it.state.step] = [read_checkpoint(path)["step"] for path in files]
    assert saved == {0: [], 1: [1]}  # nothing was learned, and nothing stands in the way of another start


def test_it_is_said_if_one_of_several_targets_has_no_labels(tmp_path, voc_folder, caplog):
    words = [f"datasets.bare={{root: {voc_folder / 'JPEGImages'}, format: folder}}", "ema.decay=0.9", "data.test=[]"]
    for target, said in (("shapes_clipart_train,bare", True), ("bare", False), ("shapes_clipart_train", False)):
        caplog.clear()
        trainer(tmp_path / target, *words, f"data.target=[{target}]")
        assert ("pseudo-labels are not measured, because bare has no labels" in caplog.text) is said

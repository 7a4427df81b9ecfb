from dataclasses import replace

import numpy as np
import pytest
from conftest import write_image
from PIL import Image
from runs import TINY, trainer

from lossmix_det.commands import visualize_mixing as pictures
from lossmix_det.config import load_config
from lossmix_det.data import loaders
from lossmix_det.data.catalog import load
from lossmix_det.evaluation import drawing
from lossmix_det.report import mixed, sheets
from lossmix_det.training.phases import SourceOnly


def draw(path, *words: str) -> int:
    overrides = [word for word in TINY if not word.startswith("data.batch_size")]
    return pictures.main(["--output", str(path), *words, *overrides])


def sheet_of(monkeypatch) -> dict:
    """The rows of a sheet, as they are drawn."""
    drawn = {}
    draw_sheet = sheets.draw_sheet
    monkeypatch.setattr(sheets, "draw_sheet", lambda rows, classes: drawn.update(rows) or draw_sheet(rows, classes))
    return drawn


def test_every_rule_is_drawn_with_its_truths_and_weights(tmp_path, monkeypatch):
    """The titles and the boxes are those of the lesson; the file is a picture with something on it."""
    drawn = sheet_of(monkeypatch)
    path = tmp_path / "mixing.png"
    assert draw(path, "--images", "3", "--rules", "lossmix", "union") == 0
    (lossmix, boxes), (union, joined) = ((rows[0].title, len(rows[0].marks)) for rows in drawn.values())
    first, second = (float(part) for part in lossmix.removeprefix("weights ").split(", "))
    assert abs(first + second - 1) < 0.011
    assert union == "weights 1.00"
    assert boxes == joined > 1
    assert np.asarray(Image.open(path)).std() > 20


ADAPT = ["data.target=[shapes_clipart_train]", "data.views=[strong]", "ema.decay=0.9", "adaptation.burn_in_steps=1"]


def test_burn_in_and_adaptation_are_drawn_with_a_teachers_pseudo_labels(tmp_path, monkeypatch):
    trainer(tmp_path / "run", "train.steps=1").train()
    drawn = sheet_of(monkeypatch)
    words = ["--images", "2", "--teacher", str(tmp_path / "run" / "export" / "student.pth"), *ADAPT]
    words += ["pseudo_labels.score=0.1", "mixing.probability=1.0", "mixing.pairs.source_source=0"]
    assert draw(tmp_path / "phases.png", *words) == 0
    burn_in, adaptation = drawn["burn-in"], drawn["adaptation"]
    assert [one.title for one in burn_in] == ["mixed, weights 1.00"] * 2  # only the sources' truths are known
    assert len(adaptation) == 4
    both = [len({mark.colour for mark in one.marks}) for one in adaptation if one.title.count(",") == 2]
    assert both
    assert 2 in both  # an annotated and a pseudo-labelled truth in one image
    assert np.asarray(Image.open(tmp_path / "phases.png")).std() > 20
    assert draw(tmp_path / "phases.png", *words, "mixing.burn_in_probability=0.0", "train.accumulate=4") == 0
    assert not any(one.title.startswith("mixed") for one in drawn["burn-in"])  # as in training


@pytest.fixture
def shown(monkeypatch):
    """The pictures of a sheet of sources, as they are drawn."""
    kept = []
    draw_mixed = mixed.draw_mixed
    monkeypatch.setattr(mixed, "draw_mixed", lambda found, classes: kept.extend(found) or draw_mixed(found, classes))
    return kept


def test_sources_saliency_masks_and_result_are_those_of_a_training_step(tmp_path, shown):
    words = ["--sources", "--images", "3", "mixing.mixer=sage", "mixing.probability=0.0", "train.seed=3"]
    assert draw(tmp_path / "x.png", *words) == 0
    assert len(shown) == 3
    seen = [source for picture in shown for source in picture.sources]
    assert {source.number for source in seen} == {0, 1}  # all are mixed
    assert all(source.saliency.shape == source.pixels.shape[:2] for source in seen)
    assert all(picture.masks.shape == picture.pixels.shape for picture in shown)
    config = load_config(None, [*TINY, "data.batch_size=3", "train.seed=3", "mixing.mixer=sage"])
    batch = pictures._source_batch(config, [load("shapes_photo_train", config)])
    phase = SourceOnly(replace(config.mixing, probability=1.0))
    expected = phase.compose(batch, np.random.default_rng(3)).images
    for index, picture in enumerate(shown):
        height, width = expected.sizes[index]
        np.testing.assert_array_equal(picture.pixels, expected.pixels[index, :, :height, :width].permute(1, 2, 0))
    assert np.asarray(Image.open(tmp_path / "x.png").convert("L")).std() > 20


@pytest.mark.slow
def test_with_a_teacher_sources_are_those_of_adaptation(tmp_path, shown):
    trainer(tmp_path / "run", "train.steps=1").train()
    words = ["--sources", "--images", "2", "--teacher", str(tmp_path / "run" / "export" / "student.pth"), *ADAPT]
    assert draw(tmp_path / "x.png", *words, "pseudo_labels.score=0.05", "mixing.pairs.source_source=0") == 0
    assert len(shown) == 4  # of both domains
    assert [source.saliency for picture in shown for source in picture.sources] == [None] * 8
    across = shown[0].sources[1].truth, shown[2].sources[0].truth
    assert all(truth.scores is not None for truth in across)  # pseudo-labels


def test_without_a_teacher_sources_are_those_of_burn_in(tmp_path, shown):
    """A source image keeps nine tenths under a target image, whose truth is unknown; its own boxes weigh 1."""
    words = ["--sources", "--images", "3", *ADAPT, "mixing.pairs.source_source=0", "mixing.burn_in_probability=0.3"]
    assert draw(tmp_path / "x.png", *words) == 0
    assert len(shown) == 3  # of the source alone
    for picture in shown:
        own, partner = picture.sources
        assert 0.9 <= float(own.title.removeprefix("share ")) <= 1
        assert not len(partner.truth)
        assert {mark.colour for mark in picture.labels} == {own.colour}
        assert {mark.value for mark in picture.labels} == {1.0}
    assert draw(tmp_path / "x.png", *words, "mixing.burn_in_probability=0.0") == 0
    assert all(len(source.truth) for picture in shown[3:] for source in picture.sources)  # no target is mixed in


def test_saliency_by_gradient_is_that_of_the_given_student(tmp_path, shown, capsys):
    words = ["--sources", "--images", "2", "mixing.mixer=saliencymix", "mixing.saliency=gradient"]
    assert draw(tmp_path / "x.png", *words) == 2
    assert "give its weights by --student FILE" in capsys.readouterr().err
    for seed in ("1", "2"):  # two students, of random weights
        trainer(tmp_path / seed, "train.steps=1", f"train.seed={seed}").train()
        weights = str(tmp_path / seed / "export" / "student.pth")
        assert draw(tmp_path / "x.png", *words, "--student", weights) == 0
    first, second = (shown[start : start + 2] for start in (0, 2))
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.sources[0].pixels, other.sources[0].pixels)
        assert one.sources[0].saliency.any()
        assert not np.array_equal(one.sources[0].saliency, other.sources[0].saliency)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sources", "--rules", "own"], "--rules has no effect with --teacher or --sources; set mixing.rule"),
        (["--images", "0"], "--images 0: give at least 1"),
        (["--images", "1"], "--images 1 leaves an image nobody to be mixed with; give at least 2"),
        (["--student", "x.pth"], "--student has no effect with mixing.saliency=spectral; set gradient"),
    ],
)
def test_options_without_effect_are_refused(tmp_path, capsys, words, said):
    assert draw(tmp_path / "x.png", *words) == 2
    assert said in capsys.readouterr().err


def test_every_rule_is_drawn_whatever_the_run_sets_for_its_own(tmp_path):
    words = ["--images", "2", "mixing.rule=lossmix_instance", "mixing.background_weight=0.5"]
    assert draw(tmp_path / "x.png", *words) == 0


@pytest.mark.parametrize("words", [[], ["--sources"]])
def test_images_are_of_all_training_sets(tmp_path, monkeypatch, words):
    drawn, load_batches = [], loaders.training_loader

    def remembering(sets, *rest, **where):
        drawn.extend(each.name for each in sets)
        return load_batches(sets, *rest, **where)

    monkeypatch.setattr(loaders, "training_loader", remembering)
    several = "data.train=[shapes_photo_train,shapes_clipart_train]"
    overrides = [word for word in TINY if not word.startswith(("data.batch_size", "data.train"))]
    assert pictures.main(["--output", str(tmp_path / "x.png"), "--images", "2", *words, *overrides, several]) == 0
    assert drawn == ["shapes_photo_train", "shapes_clipart_train"]


def test_where_no_view_is_mixed_it_is_one_sentence(tmp_path, capsys):
    words = ["--sources", *ADAPT, "data.views=[weak]", "mixing.views=[strong]"]  # in adaptation the target would be
    assert draw(tmp_path / "x.png", *words) == 2
    assert "no view of data.views=['weak'] is mixed" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--sources"]])
def test_a_teacher_needs_a_target(tmp_path, capsys, words):
    assert draw(tmp_path / "x.png", "--teacher", "x.pth", *words) == 2
    assert "--teacher needs data.target" in capsys.readouterr().err


def test_without_a_data_set_it_is_one_sentence(tmp_path, capsys):
    assert draw(tmp_path / "x.png", "data.train=[]") == 2
    assert "error: data.train is empty; name at least one data set" in capsys.readouterr().err


def test_a_mistake_is_one_sentence(tmp_path, capsys):
    assert draw(tmp_path / "x.png", "data.train=[nowhere]") == 2
    assert "unknown data set 'nowhere'" in capsys.readouterr().err


def test_before_and_after_have_a_row_of_truths_only_where_there_are_some(tmp_path, monkeypatch):
    config = load_config(None, [*TINY, f"datasets.bare.root={tmp_path}", "datasets.bare.format=folder"])
    write_image(tmp_path / "a.png")
    shown = []
    draw_grid = drawing.draw_grid
    monkeypatch.setattr(
        drawing, "draw_grid", lambda rows, **words: shown.append([name for name, _ in rows]) or draw_grid(rows, **words)
    )
    for name in ("bare", "shapes_clipart_test"):
        drawing.draw_before_after(load(name, config, ["star"] if name == "bare" else None), [], [], tmp_path / "x.png")
    assert shown == [["before", "after"], ["truth", "before", "after"]]


def test_a_stage_that_the_backbone_lacks_is_refused_although_pixels_are_drawn(tmp_path, capsys):
    assert draw(tmp_path / "mixed.png", "--sources", "mixing.mixer=manifold", "mixing.stages=[0,9]") == 2
    assert "mixing.stages='9' is not one of 0, 1, 2, 3, fpn" in capsys.readouterr().err
    assert not (tmp_path / "mixed.png").exists()

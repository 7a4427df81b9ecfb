"""Several mixers by weight, features at several stages, and settings that cannot be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lossmix_det.config import MixingConfig, load_config
from lossmix_det.errors import UserError
from lossmix_det.mixing import Among, Recipe
from lossmix_det.mixing.mixers.sage import Sage
from lossmix_det.structures import ImageBatch


def images(count: int = 4) -> ImageBatch:
    return ImageBatch(torch.rand(count, 3, 64, 64), ((64, 64),) * count)


def drawn(config: MixingConfig, count: int = 3000) -> Counter:
    recipe, rng = Recipe(config), np.random.default_rng(0)
    mixers = [recipe.drawn(rng).mixer for _ in range(count)]
    return Counter((type(mixer).__name__, getattr(mixer, "stage", "")) for mixer in mixers)


def test_mixers_are_drawn_as_often_as_their_weights_say():
    counts = drawn(MixingConfig(mixer={"mixup": 2, "sage": 1, "cutmix": 0}))
    assert counts.keys() == {("Mixup", ""), ("Sage", "")}
    assert counts["Mixup", ""] / 3000 == pytest.approx(2 / 3, abs=0.03)


def test_the_stages_of_manifold_share_its_weight():
    counts = drawn(MixingConfig(mixer={"manifold": 3, "cutmix": 1}, stages=["0", "2", "fpn"]))
    assert counts.keys() == {("CutMix", ""), ("StageMixup", ""), ("StageMixup", "2"), ("StageMixup", "fpn")}
    for count in counts.values():
        assert count / 3000 == pytest.approx(0.25, abs=0.03)


def test_one_mixer_draws_nothing():
    rng = np.random.default_rng(0)
    recipe = Recipe(MixingConfig())
    assert recipe.drawn(rng) is recipe
    assert rng.random() == np.random.default_rng(0).random()


def test_a_stage_is_that_of_every_image_of_a_step():
    recipe = Recipe(MixingConfig(mixer="manifold", stages=["2"], probability=1.0)).drawn(np.random.default_rng(0))
    mix = recipe.draw(images(), Among(4), np.random.default_rng(1))
    assert mix.stage == "2"
    assert mix.where(torch.tensor([True, False, True, False])).stage == "2"


def test_saliency_is_computed_only_for_the_mixer_that_was_drawn(monkeypatch):
    recipe = Recipe(MixingConfig(mixer={"mixup": 1, "sage": 1}, probability=1.0))
    monkeypatch.setattr(recipe, "saliency", lambda *_: pytest.fail("nobody looks at saliency"))
    one = next(r for seed in range(20) if not isinstance((r := recipe.drawn(np.random.default_rng(seed))).mixer, Sage))
    one.draw(images(), Among(4), np.random.default_rng(0))


def test_nothing_is_computed_where_nothing_is_mixed(monkeypatch):
    recipe = Recipe(MixingConfig(mixer="sage", probability=0.0))
    monkeypatch.setattr(recipe, "saliency", lambda *_: pytest.fail("nothing is mixed"))
    assert not recipe.draw(images(), Among(4), np.random.default_rng(0)).mixed.any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["mixing.mixer={mixup: 1, sagee: 1}"], r"mixing.mixer='sagee' is not one of .* \(did you mean 'sage'\?\)"),
        (["mixing.mixer={mixup: -1}"], r"mixing.mixer.mixup=-1.0 must be a number of at least 0"),
        (["mixing.mixer={mixup: .nan}"], r"mixing.mixer.mixup=nan must be a number of at least 0"),
        (["mixing.mixer={}"], r"gives no mixer a weight above 0"),
        (["mixing.mixer={mixup: 0}"], r"gives no mixer a weight above 0"),
        (["mixing.mixer={mixup: many}"], r"mixing.mixer.mixup=many must be a number, as in \{mixup: 2, sage: 1\}"),
        (["mixing.mixer={mixup: [1]}"], r"mixing.mixer.mixup: takes one number, found a list"),
        (
            ["mixing.mixer=[mixup, sage]"],
            r"takes a name, or weights by name such as \{mixup: 2, sage: 1\}; found a list",
        ),
        (["mixing.mixer=3"], r"mixing.mixer='3' is not one of mixup, cutmix"),
        (["mixing.stages=[]"], r"stages=\[\] leaves manifold nothing to mix"),
        (["mixing.probability=1.5"], r"mixing.probability=1.5 lies outside of 0 … 1"),
        (
            ["mixing.clean_share=0.3"],
            r"clean_share=0.3 has no effect with mixing.saliency=spectral; set gradient",
        ),
        (
            ["mixing.clean_share=0.3", "mixing.saliency=gradient", "mixing.mixer={mixup: 1, cutmix: 1}"],
            r"mixing.clean_share=0.3 has no effect with mixing.mixer=\{.*\}, which needs no saliency; set .*=0",
        ),
        (["mixing.views=[]"], r"mixing.views=\[\] leaves no view to mix; name weak or strong, or set mixing.prob.*=0"),
        (
            [f"mixing.pairs.{pair}=0" for pair in ("source_source", "source_target", "target_target")],
            r"mixing.pairs.source_source, source_target and target_target are all 0; instead set mixing.probability=0",
        ),
        (["mixing.saliency=edges"], r"mixing.saliency='edges' is not one of spectral, boxes, gradient"),
    ],
)
def test_a_bad_setting_is_told_what_there_is(words, message):
    with pytest.raises(UserError, match=message):
        Recipe(load_config(None, words).mixing)


def test_weights_are_read_from_the_command_line_and_written_back():
    config = load_config(None, ["mixing.mixer={mixup: 2, sage: 1.5}"])
    assert config.mixing.mixer == {"mixup": 2, "sage": 1.5}


def test_saliency_by_gradient_needs_a_student():
    recipe = Recipe(MixingConfig(mixer="sage", saliency="gradient", probability=1.0))
    assert recipe.needs_gradient
    with pytest.raises(UserError, match=r"mixing.saliency=gradient needs a student in training; use spectral or boxes"):
        recipe.draw(images(), Among(4), np.random.default_rng(0))


def test_a_mixer_without_saliency_needs_no_gradient():
    assert not Recipe(MixingConfig(mixer="cutmix", saliency="gradient")).needs_gradient
    assert Recipe(MixingConfig(mixer={"cutmix": 1, "sage": 1}, saliency="gradient")).needs_gradient

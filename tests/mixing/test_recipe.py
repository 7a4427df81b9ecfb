"""Several mixers by weight, features at several stages, and settings that cannot be."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from lossmix_det.config import CoMixupConfig, MixingConfig, PuzzleConfig, load_config
from lossmix_det.config.mixing import READS
from lossmix_det.errors import UserError
from lossmix_det.mixing import MIXERS, Among, Mix, Recipe
from lossmix_det.mixing.mixers.sage import Sage
from lossmix_det.structures import ImageBatch, Instances


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
            r"mixing.saliency=gradient has no effect with mixing.mixer=\{.*\}; set mixing.saliency=spectral",
        ),
        (
            ["mixing.mixer=mosaic", "mixing.lam_range=[0.5,1]"],
            r"lam_range=.* no effect .*=mosaic; set .*lam_range=null",
        ),
        (["mixing.mixer={mosaic: 1, mixup: 0}", "mixing.alpha=2"], r"alpha=2.0 has no effect .*; set mixing.alpha=1.0"),
        (["mixing.puzzle.beta=2"], r"mixing.puzzle.beta=2.0 has no effect with mixing.mixer=mixup; set .*beta=1.2"),
        (["mixing.least_visible=0.3"], r"least_visible=0.3 has no effect with mixing.mixer=mixup"),
        (["mixing.background_weight=2"], r"background_weight=2.0 has no effect with mixing.rule=lossmix; set .*=1.0"),
        (
            ["mixing.burn_in_rule=max", "mixing.noise_share=0.3"],
            r"noise_share=0.3 has no effect with .*burn_in_rule=max",
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


@pytest.mark.parametrize(
    "settings",
    [{"probability": 7.0}, {"alpha": 0.0}, {"lam_range": [0.9, 1.5]}, {"mixer": {"mixup": -1, "sage": 2}}],
)
def test_settings_given_in_python_are_held_against_their_limits_too(settings):
    with pytest.raises(UserError, match=r"^mixing\."):
        Recipe(MixingConfig(**settings))


OTHER = {
    "alpha": 3.0,
    "lam_range": [0.2, 0.3],
    "saliency": "boxes",
    "confmix_sure": 0.95,
    "fmix_decay": 1.0,
    "stages": ["1"],
    "puzzle": PuzzleConfig(eta=0.0, beta=0.0, t_eps=0.1),
    "comixup": CoMixupConfig(blocks=8),
}


def mix_of(config: MixingConfig) -> Mix:
    """What is drawn for images of noise with an object each, that a teacher is more or less sure of."""
    rng, generator = np.random.default_rng(3), torch.Generator().manual_seed(0)
    pool = ImageBatch(torch.rand(4, 3, 128, 128, generator=generator), ((128, 128),) * 4)
    boxes = [[5.0, 5, 40, 60], [60.0, 60, 120, 120], [10.0, 70, 60, 120], [70.0, 10, 120, 50]]
    truths = [Instances(torch.tensor([box]), torch.zeros(1).long(), torch.tensor([0.9])) for box in boxes]
    return Recipe(config).drawn(rng).draw(pool, Among(4), rng, truths)


def differs(a: Mix, b: Mix) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in ("shares", "masks", "blocks", "factors")]
    return a.stage != b.stage or any(one is not None and not torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("name", MIXERS)
def test_a_mixer_reads_what_it_is_said_to_read_and_nothing_else(name, monkeypatch):
    """It draws another mix from the same images where that is set otherwise; shares under which boxes go need masks."""
    said = READS[name]
    monkeypatch.setattr("lossmix_det.config.mixing.READS", {})  # so that nothing is refused
    usual = {"mixer": name, "probability": 1.0}
    before = mix_of(MixingConfig(**usual))
    read = {key for key, value in OTHER.items() if differs(before, mix_of(MixingConfig(**usual, **{key: value})))}
    read |= {"least_visible"} if before.masks is not None else set()
    read |= {"clean_share"} if "saliency" in read else set()
    assert read == said


def test_where_nothing_is_mixed_nothing_is_refused():
    Recipe(MixingConfig(probability=0.0, alpha=2.0, mixer="mosaic", background_weight=0.5))
    with pytest.raises(UserError, match="alpha=2.0 has no effect"):
        Recipe(MixingConfig(probability=0.0, burn_in_probability=0.3, alpha=2.0, mixer="mosaic"))


def test_what_another_mixer_of_the_table_reads_may_be_set():
    Recipe(MixingConfig(mixer={"mosaic": 1, "mixup": 1}, alpha=2.0))


def test_mixers_of_ones_own_may_read_any_setting(monkeypatch):
    monkeypatch.setitem(MIXERS, "mine", MIXERS["mixup"])
    Recipe(MixingConfig(mixer="mine", fmix_decay=2.0))


def test_weights_are_read_from_the_command_line_and_written_back():
    config = load_config(None, ["mixing.mixer={mixup: 2, sage: 1.5}"])
    assert config.mixing.mixer == {"mixup": 2, "sage": 1.5}


def test_saliency_by_gradient_needs_a_student():
    recipe = Recipe(MixingConfig(mixer="sage", saliency="gradient", probability=1.0))
    assert recipe.needs_gradient
    with pytest.raises(UserError, match=r"mixing.saliency=gradient needs a student in training; use spectral or boxes"):
        recipe.draw(images(), Among(4), np.random.default_rng(0))


def test_a_mixer_without_saliency_needs_no_gradient():
    recipe = Recipe(MixingConfig(mixer={"cutmix": 1, "sage": 1}, saliency="gradient"))
    assert recipe.needs_gradient
    drawn = [recipe.drawn(np.random.default_rng(seed)) for seed in range(20)]
    assert {(isinstance(one.mixer, Sage), one.needs_gradient) for one in drawn} == {(True, True), (False, False)}

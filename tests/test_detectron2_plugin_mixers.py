"""Mixers in the plug-in for Detectron2: features mixed by the model itself, and several mixers."""

from __future__ import annotations

import pickle

import cv2
import numpy as np
import pytest
import torch
from torch.testing import assert_close

pytest.importorskip("detectron2", reason="Detectron2 is not installed")

from d2_models import CLOSE, NAMES, configured, inputs, instances, losses, mixing  # noqa: E402
from detectron2.modeling import build_model  # noqa: E402
from detectron2.structures import BitMasks, PolygonMasks  # noqa: E402

from lossmix_det import detectron2_plugin as plugin  # noqa: E402
from lossmix_det.errors import UserError  # noqa: E402
from lossmix_det.mixing import MIXERS, Recipe  # noqa: E402


@pytest.fixture(scope="module", params=["StandardROIHeads", "Res5ROIHeads"])
def pair(request):
    """Detectron2's model, and ours of the same weights that mixes features behind the second stage."""
    torch.manual_seed(0)
    cfg = configured(request.param)
    stock = build_model(cfg).train()
    ours = build_model(mixing(cfg, MIXER="manifold", STAGES=["2"], PROBABILITY=1.0)).train()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


def twins() -> list[dict]:
    """The same image twice."""
    return [inputs()[0], inputs()[0]]


def test_an_image_mixed_with_itself_has_the_stock_losses(pair):
    """Its features are the same whatever λ is, and both truths are one: λ·L + (1 - λ)·L = L."""
    stock, ours = pair
    expected, found = losses(stock, twins()), losses(ours, twins())
    for name in NAMES:
        assert expected[name] > 0
        assert_close(found[name], expected[name], **CLOSE)


def test_a_share_of_one_leaves_the_stock_losses(pair):
    """Two images of unequal size, of which only the first is seen in each mix."""
    stock, ours = pair
    batch = [{**each, "image": each["image"].float()} for each in inputs()[:2]]
    recipe, ours.recipe = (
        ours.recipe,
        Recipe(
            plugin.mixing_of(
                mixing(configured(), MIXER="manifold", STAGES=["2"], PROBABILITY=1.0, LAM_RANGE=[1.0, 1.0])
            )
        ),
    )
    found, expected = losses(ours, batch), losses(stock, batch)
    ours.recipe = recipe
    for name in NAMES:
        assert_close(found[name], expected[name], **CLOSE)


def test_features_are_mixed_and_pixels_are_not(pair, monkeypatch):
    """What enters the backbone is the images; behind the second stage the sums by share."""
    _, ours = pair
    seen = {}
    stages = getattr(ours.backbone, "bottom_up", ours.backbone).stages
    for name, part in (("before", stages[0]), ("after", stages[2])):
        part.register_forward_pre_hook(lambda _, given, name=name: seen.update({name: given[0].detach()}))
    entered = []
    monkeypatch.setattr(Recipe, "drawn", lambda self, rng: self)
    ours.recipe.watch = lambda pool, mix, saliency: entered.append((pool, mix))
    losses(ours, inputs()[:2])
    ours.recipe.watch = lambda *_: None
    with torch.no_grad():
        whole = stages[1](stages[0](seen["before"]))
    mix = entered[0][1]
    for index in range(2):
        shares, sources = mix.shares[index], mix.sources[index]
        expected = sum(share * whole[source] for share, source in zip(shares, sources.tolist(), strict=True))
        assert_close(seen["after"][index], expected, rtol=1e-4, atol=1e-5)
    for part in (stages[0], stages[2]):
        part._forward_pre_hooks.clear()


@pytest.mark.parametrize("mixer", [name for name in MIXERS if name != "manifold"])
def test_every_mixer_of_pixels_mixes_batches_of_the_loader(mixer):
    cfg = mixing(configured(), MIXER=mixer, PROBABILITY=1.0)
    collate = pickle.loads(pickle.dumps(plugin.MixingCollate(cfg)))
    torch.manual_seed(1)
    batch = collate(inputs())
    assert all(isinstance(each["instances"], plugin.MixedInstances) for each in batch)
    assert all(torch.isfinite(each["image"]).all() for each in batch)


TRIANGLE = np.array([[10.0, 50], [50, 50], [30, 10]])


def polygons(triangle: np.ndarray) -> PolygonMasks:
    return PolygonMasks([[triangle.flatten()]])


def bitmaps(triangle: np.ndarray) -> BitMasks:
    return BitMasks.from_polygon_masks(polygons(triangle), 64, 64)


def outside(_: np.ndarray) -> BitMasks:
    """Nothing of the object is in the image."""
    return BitMasks(torch.zeros(1, 64, 64))


def pasted_white(masks) -> np.ndarray:
    """Which pixels of a black image without objects show those of a white one with one object."""
    batch = [
        {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "instances": instances(([], []), (64, 64))},
        {
            "image": torch.full((3, 64, 64), 255, dtype=torch.uint8),
            "instances": instances(([[10.0, 10, 50, 50]], [1]), (64, 64)),
        },
    ]
    if masks is not None:
        batch[0]["instances"].gt_masks = (
            type(masks(TRIANGLE))([]) if masks is polygons else BitMasks(np.zeros((0, 64, 64)))
        )
        batch[1]["instances"].gt_masks = masks(TRIANGLE)
    collate = plugin.MixingCollate(mixing(configured(), MIXER="classmix", PROBABILITY=1.0))
    torch.manual_seed(0)
    return collate(batch)[0]["image"][0].numpy() > 0


@pytest.mark.parametrize("masks", [polygons, bitmaps])
def test_classmix_pastes_the_masks_of_detectron2(masks):
    """Of a triangle in its box half of the pixels; which of them, OpenCV says."""
    expected = cv2.fillPoly(np.zeros((64, 64), np.uint8), [TRIANGLE.astype(np.int32)], 1) > 0
    found = pasted_white(masks)
    assert (found & expected).sum() / (found | expected).sum() > 0.9


@pytest.mark.parametrize("masks", [None, outside])
def test_classmix_pastes_the_box_where_no_mask_shows_the_object(masks):
    expected = np.zeros((64, 64), dtype=bool)
    expected[10:50, 10:50] = True
    np.testing.assert_array_equal(pasted_white(masks), expected)


def test_a_choice_of_mixers_is_text_in_detectron2s_configuration():
    cfg = mixing(configured(), MIXER="{mixup: 2, manifold: 1}", STAGES=["0", "fpn"])
    assert plugin.mixing_of(cfg).mixer == {"mixup": 2, "manifold": 1}
    assert build_model(cfg).recipe.stages == ["fpn"]


def test_a_choice_that_draws_features_in_some_steps_trains_in_all():
    model = build_model(mixing(configured(), MIXER="{cutmix: 1, manifold: 1}", STAGES=["1"], PROBABILITY=1.0)).train()
    for seed in range(4):
        torch.manual_seed(seed)
        assert all(torch.isfinite(value) for value in losses(model, inputs()).values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"MIXER": "manifold", "STAGES": ["7"]}, r"LOSSMIX.STAGES='7' is not one of 0, 1, 2, 3, 4, fpn"),
        ({"MIXER": "sage", "SALIENCY": "gradient"}, r"LOSSMIX.SALIENCY: gradient needs a student"),
        (
            {"MIXER": "mixup", "SALIENCY": "gradient"},
            r"LOSSMIX.SALIENCY=gradient has no effect with LOSSMIX.MIXER=mixup",
        ),
        ({"MIXER": "{mixup: x}"}, r"LOSSMIX.MIXER=.* must have numbers as weights"),
    ],
)
def test_what_cannot_be_is_refused_when_the_model_is_built(settings, message):
    with pytest.raises(UserError, match=message):
        build_model(mixing(configured(), **settings))


def test_the_loader_cannot_mix_features():
    with pytest.raises(UserError, match="manifold mixes within the network; use LossMixRCNN"):
        plugin.MixingCollate(mixing(configured(), MIXER="manifold"))


def test_mixed_sizes_are_those_of_both_images():
    """A wide and a tall image: the model sees both padded to the size of their mix."""
    model = build_model(mixing(configured(), MIXER="manifold", STAGES=["1"], PROBABILITY=1.0)).train()
    seen = []
    model.preprocess_image, stock = lambda batch: seen.extend(batch) or stock(batch), model.preprocess_image
    losses(model, inputs()[:2])
    assert [tuple(each["image"].shape[1:]) for each in seen] == [(80, 96), (80, 96)]
    assert [each["instances"].image_size for each in seen] == [(80, 96), (80, 96)]

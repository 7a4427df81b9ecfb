"""A mixer, a backbone and a detector from outside the package: one class or function, and one line of one table.

A data format is added in tests/data/formats/test_formats.py, a command in tests/commands/test_commands.py.
"""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from runs import trainer
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from lossmix_det.engines import Detector, Encoding
from lossmix_det.engines.backbones import BACKBONES, Backbone
from lossmix_det.engines.contract import Export
from lossmix_det.engines.torchvision import DETECTORS
from lossmix_det.errors import UserError
from lossmix_det.mixing import MIXERS, RULES, WEIGHTINGS, Mix
from lossmix_det.mixing.saliency import SALIENCIES
from lossmix_det.structures import Instances

pytestmark = pytest.mark.slow

ADAPTING = [
    *("data.target=[shapes_clipart_train]", "data.views=[weak,strong]", "ema.decay=0.9", "train.steps=4"),
    *("adaptation.burn_in_steps=2", "pseudo_labels.score=0.0", "mixing.probability=1.0"),
]


class Halves:
    """Three sources: the left half of the image, and the upper and lower quarter of two partners, one of them moved."""

    partners = 2
    needs_saliency = False

    def __init__(self, config):
        pass

    def draw(self, pool, partners, saliency, rng):
        sources = torch.cat([torch.arange(len(partners))[:, None], torch.from_numpy(partners)], dim=1)
        masks = torch.zeros(len(partners), 3, 2, 2)
        masks[:, 0, :, 0] = masks[:, 1, 0, 1] = masks[:, 2, 1, 1] = 1.0
        offsets = torch.zeros(len(partners), 3, 2, dtype=torch.int64)
        offsets[:, 2] = torch.tensor([8, -16])
        return Mix(sources, masks.mean((2, 3)), masks, offsets)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("rule", RULES)
def test_a_mixer_of_three_sources_with_masks_adapts_under_every_rule(tmp_path, monkeypatch, rule, weighting):
    monkeypatch.setitem(MIXERS, "halves", Halves)
    words = ["mixing.mixer=halves", f"mixing.rule={rule}", f"mixing.weighting={weighting}", "alignment.parts=[image]"]
    it = trainer(tmp_path, *ADAPTING, *words)
    assert it.train()
    assert it.state.skipped_steps == 0


def test_soft_labels_of_a_moved_source_are_learned_from(tmp_path, monkeypatch):
    monkeypatch.setitem(MIXERS, "halves", Halves)
    it = trainer(tmp_path, *ADAPTING, "mixing.mixer=halves", "pseudo_labels.kind=soft")
    assert it.train()
    assert it.state.skipped_steps == 0


def test_an_unknown_mixer_is_told_those_there_are(tmp_path):
    with pytest.raises(UserError, match=rf"'mixop' is not one of {', '.join(MIXERS)} \(did you mean 'mixup'\?\)"):
        trainer(tmp_path, "mixing.mixer=mixop")


@pytest.mark.parametrize("saliency", SALIENCIES)
def test_a_mixer_that_needs_saliency_is_given_that_of_every_image(tmp_path, monkeypatch, saliency):
    seen = []

    class Salient(Halves):
        needs_saliency = True

        def draw(self, pool, partners, saliency, rng):
            seen.append((pool, saliency))
            return super().draw(pool, partners, None, rng)

    monkeypatch.setitem(MIXERS, "salient", Salient)
    it = trainer(tmp_path, *ADAPTING, "mixing.mixer=salient", f"mixing.saliency={saliency}")
    assert it.train()
    for pool, maps in seen:
        assert len(maps) == len(pool)
        assert (maps >= 0).all()
        assert_close(maps.sum((1, 2)), torch.ones(len(pool)))


def test_an_unknown_saliency_is_told_those_there_are(tmp_path):
    with pytest.raises(UserError, match=r"mixing.saliency='box'.* is not one of spectral, boxes"):
        trainer(tmp_path, "mixing.mixer=sage", "mixing.saliency=box")


class TwoLevels(nn.Module):
    """Strides 4 and 8."""

    out_channels = 8

    def __init__(self, norm):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 4, 4), norm(8), nn.ReLU())
        self.down = nn.Conv2d(8, 8, 2, 2)

    def forward(self, images):
        fine = self.body(images)
        coarse = self.down(fine)
        return OrderedDict(
            [("0", fine), ("1", coarse), ("2", F.max_pool2d(coarse, 2)), ("pool", coarse[..., ::4, ::4])]
        )


def test_a_backbone_is_trained_with(tmp_path, monkeypatch):
    build = lambda norm, one_stage: Backbone(TwoLevels(norm), (14, 24, 40, 64), (4, 8, 16, 32), 16, small=True)  # noqa: E731
    monkeypatch.setitem(BACKBONES, "two_levels", build)
    it = trainer(tmp_path, *ADAPTING, "model.architecture=two_levels")
    before = it.state.detector.model.backbone.down.weight.clone()
    assert it.train()
    assert not torch.equal(before, it.state.detector.model.backbone.down.weight)


class Cells(Encoding):
    def __init__(self, logits, images):
        self.logits, self.images = logits, images


class CellDetector(Detector):
    """Says of every cell of 16 pixels whether a box has its centre there. It shares no code with other detectors."""

    loss_names = ("cell",)

    def __init__(self, config, num_classes, strict=False):
        super().__init__()
        self.num_classes, self.norm = num_classes, "none"
        self.model = nn.Conv2d(3, num_classes, 16, 16)

    def encode(self, images):
        return Cells(self.model(images.to_float().pixels), images)

    def losses(self, encoding, supervision, soft_teacher=None):
        wanted = torch.zeros_like(encoding.logits)
        for image, truth in enumerate(supervision.truths):
            centres = ((truth.boxes[:, :2] + truth.boxes[:, 2:]) / 32).long()
            wanted[image, truth.classes, centres[:, 1], centres[:, 0]] = 1
        of_image = F.binary_cross_entropy_with_logits(encoding.logits, wanted, reduction="none").mean((1, 2, 3))
        return {"cell": (of_image * supervision.class_weights).sum() / (supervision.mean_over or len(supervision))}

    def detections(self, encoding):
        found = []
        for scores in encoding.logits.sigmoid():
            labels, rows, columns = torch.where(scores > 0.3)
            corners = torch.stack([columns, rows], dim=1) * 16.0
            found.append(Instances(torch.cat([corners, corners + 16], 1), labels, scores[labels, rows, columns]))
        return found

    def taught_only_by(self, losses):
        return [self.model] if losses else []

    def export(self, state, config, sizes):
        return Export(state, {"detector": config.detector})


def test_a_detector_is_trained_and_adapted_under_every_rule(tmp_path, monkeypatch):
    monkeypatch.setitem(DETECTORS, "cells", CellDetector)
    for rule in RULES:
        it = trainer(tmp_path / rule, *ADAPTING, "model.detector=cells", f"mixing.rule={rule}")
        assert it.train()
    with pytest.raises(UserError, match=r"alignment.parts=\[image\] needs a detector whose feature levels can be read"):
        trainer(tmp_path / "a", *ADAPTING, "model.detector=cells", "alignment.parts=[image]")
    with pytest.raises(UserError, match="pseudo_labels.kind=soft needs a detector that scores proposals"):
        trainer(tmp_path / "b", *ADAPTING, "model.detector=cells", "pseudo_labels.kind=soft")


def test_an_unknown_detector_is_told_those_there_are(tmp_path):
    with pytest.raises(UserError, match="model.detector='faster-rcnn' is not one of faster_rcnn"):
        trainer(tmp_path, "model.detector=faster-rcnn")

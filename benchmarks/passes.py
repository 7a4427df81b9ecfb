"""The passes of plain Detectron2's step and of Adaptive Teacher's through the networks, as losses of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from lossmix_det.adaptation.alignment import ReverseGradient
from lossmix_det.config import Config
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, StepBatch
from lossmix_det.training.state import RunState
from lossmix_det.training.student import weight_of

CLASS_LOSSES = ("loss_rpn_cls", "loss_cls")
CHANNELS = {"RGB": [0, 1, 2], "BGR": [2, 1, 0]}  # where Detectron2's input formats take ours from


def detectron2_version(suite: str) -> str:
    """Of the one that is installed.

    Args:
        suite: that needs it.

    Raises:
        UserError: it is not installed.
    """
    try:
        import detectron2
    except ModuleNotFoundError:
        raise UserError(f"--suite {suite} needs Detectron2, which is not installed; see docs/detectron2.md") from None
    return detectron2.__version__


class Passes:
    """Passes of a student and a teacher of Detectron2.

    Args:
        state: of a run that adapts.
        config: of that run.
    """

    def __init__(self, state: RunState, config: Config) -> None:
        self.state, self.config = state, config

    @property
    def student(self) -> Any:
        """The detector that learns."""
        return self.state.detector

    @property
    def teacher(self) -> Any:
        """Its average."""
        return self.state.teacher.module

    def floor_loss(self, batch: StepBatch) -> torch.Tensor:
        """Stock losses of the same 3B images, on a canvas by domain; the teacher's detections are not used."""
        source, target = batch.source, batch.target
        with torch.no_grad():
            self.teacher.model.eval().inference(inputs_of(self.teacher, target.weak.to_float()))
        if {*source.weak.sizes} == {*target.weak.sizes}:
            images = ImageBatch.cat([view.to_float() for view in (source.strong, source.weak, target.strong)])
            return self._stock(images, [*source.truths, *source.truths, *target.truths])
        images = ImageBatch.cat([source.strong.to_float(), source.weak.to_float()])
        of_source = self._stock(images, [*source.truths, *source.truths])
        return (2 * of_source + self._stock(target.strong.to_float(), list(target.truths))) / 3

    def average(self) -> None:
        """The running average, over the whole state and before the step, as their code takes it."""
        decay, student = self.config.ema.decay, self.student.model.state_dict()
        average = self.teacher.model.state_dict()
        self.teacher.model.load_state_dict({k: v * decay + student[k] * (1 - decay) for k, v in average.items()})

    def adaptive_teacher_loss(self, batch: StepBatch) -> torch.Tensor:
        """The order and the number of passes of Li et al. (CVPR 2022), as their code runs them after burn-in.

        They follow the average. The teacher looks at weak target views with the proposals of training; then the student
        looks at source views, at strong target views with pseudo-labels, and at weak views of either domain for the
        discriminator.
        """
        source, target = batch.source, batch.target
        pseudo_labels = self._label(target.weak.to_float())
        both = ImageBatch.cat([source.strong.to_float(), source.weak.to_float()])
        total = self._stock(both, [*source.truths, *source.truths])
        total = total + self._stock(target.strong.to_float(), pseudo_labels, boxes=False)
        for view, domain in ((source.weak, 0.0), (target.weak, 1.0)):
            total = total + weight_of("alignment", {}) * self._domain_loss(view.to_float(), domain)
        return total

    def _domain_loss(self, images: ImageBatch, domain: float) -> torch.Tensor:
        model, alignment = self.student.model, self.state.alignment
        inputs = model.preprocess_image(inputs_of(self.student, images))
        features = ReverseGradient.apply(model.backbone(inputs.tensor)[alignment.level])
        logits = alignment.discriminators["image"](features)
        return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, domain))

    @torch.no_grad()
    def _label(self, images: ImageBatch) -> list[Instances]:
        """The teacher stays in training mode, so that its proposals are as many as in training."""
        from lossmix_det.engines.detectron2.stages import propose

        model = self.teacher.model.train()
        inputs = model.preprocess_image(inputs_of(self.teacher, images))
        features = model.backbone(inputs.tensor)
        proposals = propose(model.proposal_generator, features, inputs.image_sizes).proposals
        model.roi_heads.eval()
        detections, _ = model.roi_heads(inputs, features, proposals, None)
        model.eval()
        limits = self.config.pseudo_labels
        kept = [found[found.scores >= limits.score][: limits.max_per_image] for found in detections]
        return [Instances(found.pred_boxes.tensor, found.pred_classes) for found in kept]

    def _stock(self, images: ImageBatch, truths: list[Instances], boxes: bool = True) -> torch.Tensor:
        from detectron2.utils.events import EventStorage

        with EventStorage():
            losses = self.student.model(inputs_of(self.student, images, truths))
        return sum(value for name, value in losses.items() if boxes or name in CLASS_LOSSES)


def inputs_of(detector: Any, images: ImageBatch, truths: list[Instances] | None = None) -> list[dict[str, Any]]:
    """What Detectron2's dataset mapper would give."""
    from detectron2.structures import Boxes
    from detectron2.structures import Instances as D2Instances

    inputs = []
    for index, (height, width) in enumerate(images.sizes):
        pixels = images.pixels[index, :, :height, :width] * 255
        inputs.append({"image": pixels[CHANNELS[detector.model.input_format]]})
        if truths is not None:
            truth = Boxes(truths[index].boxes), truths[index].classes
            inputs[-1]["instances"] = D2Instances((height, width), gt_boxes=truth[0], gt_classes=truth[1])
    return inputs

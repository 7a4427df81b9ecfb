"""The steps that are compared: ours, plain Detectron2's, and one built like Adaptive Teacher's.

B images of the source and B of the target, in weak and strong views; 3B student images are those that our step learns
from.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from benchmarks.passes import Passes, inputs_of
from benchmarks.timing import gpu_peak, seconds_of
from lossmix_det.config import load_config
from lossmix_det.data.loaders import StreamSampler, to_batch
from lossmix_det.engines import to_device
from lossmix_det.errors import UserError
from lossmix_det.structures import ImageBatch, Instances, Size, StepBatch, Views
from lossmix_det.training.launch import launch
from lossmix_det.training.optimization import match_layout
from lossmix_det.training.trainer import Trainer

NETWORKS = {
    "R50-C4": ("configs/detectron2/r101_c4_2fc.yaml", ["MODEL.RESNETS.DEPTH", "50"]),
    "R50-FPN": ("configs/detectron2/r50_fpn.yaml", []),
}
SETTINGS = (
    *("shapes.train_images=12", "shapes.test_images=2", "shapes.size=96", "data.augment.min_sizes=[96]"),
    *("data.target=[shapes_clipart_train]", "data.test=[]", "data.views=[weak,strong]", "data.batch_size=2"),
    *("data.workers=0", "model.engine=detectron2", "ema.decay=0.9996", "adaptation.burn_in_steps=0"),
    *("mixing.rule=lossmix", "alignment.parts=[image]", "pseudo_labels.max_per_image=5", "pseudo_labels.score=0.1"),
    *("optimizer.name=sgd", "optimizer.lr=0.0", "train.steps=100000"),
)


@dataclass(frozen=True)
class Setup:
    """What the steps are compared on.

    Args:
        network: of `NETWORKS`.
        sizes: of `SIZES`.
        short_side: of the images, in pixels; papers train at 600.
        overrides: of the settings above.
    """

    network: str
    sizes: str
    short_side: int
    overrides: tuple[str, ...] = ()

    def settings(self, folder: str) -> list[str]:
        """Of a run that writes to a folder."""
        path, options = NETWORKS[self.network]
        words = ",".join(f"'{word}'" for word in options)
        model = [f"model.detectron2_config={path}", f"model.detectron2_options=[{words}]"]
        return [*SETTINGS, *model, f"output_dir={folder}", *self.overrides]


class Bench:
    """One student and teacher that all steps are taken with.

    Args:
        setup: the network and the images.
        folder: for what a run writes.
    """

    def __init__(self, setup: Setup, folder: str) -> None:
        config = load_config(None, setup.settings(folder))
        self.fabric = launch(config)
        self.trainer = Trainer(config, self.fabric)
        self.state = self.trainer.state
        self.state.begin_adaptation(self.fabric)
        self.student, self.teacher = self.state.detector, self.state.teacher.module
        self.passes = Passes(self.state, config)
        batches = self.trainer.streams.batches(0, lambda: False, set())
        drawn = SIZES[setup.sizes](config.data.batch_size, setup.short_side)
        self.batches = [self._prepared(batch, next(drawn)) for batch, _ in islice(batches, BATCHES)]
        for detector in (self.student, self.teacher):
            _spread_proposals(detector, self.batches[0].target.weak)
        self.done = 0

    def seconds(self, step: Step) -> float:
        """Take a step on the next batch, its weights and momenta in the layout that it finds in use."""
        self._prepare(step)
        return seconds_of(lambda: step.take(self, self._batch), self.fabric.device)

    def gpu_peak(self, step: Step) -> float:
        """GiB of GPU memory at the peak of a step."""
        self._prepare(step)
        return gpu_peak(lambda: step.take(self, self.batches[0]))

    @property
    def _batch(self) -> StepBatch:
        return self.batches[self.done % len(self.batches)]

    def _prepare(self, step: Step) -> None:
        layout = self.trainer.config.train.channels_last if step.our_layout else False
        for detector in (self.student, self.teacher):
            to_device(detector, self.fabric.device, layout)
        match_layout(self.state.optimizer)
        self.student.train()

    def ours(self, batch: StepBatch) -> None:
        """Our step, the running average included."""
        self.state.step = self.done  # every round draws another mix
        self.trainer.learn(batch)
        self.state.teacher.update_parameters(self.state.detector)

    def floor(self, batch: StepBatch) -> None:
        """Plain Detectron2 on as many images as ours."""
        self._descend(self.passes.floor_loss, batch)

    def adaptive_teacher(self, batch: StepBatch) -> None:
        """The passes of Adaptive Teacher, after the average."""
        self.passes.average()
        self._descend(self.passes.adaptive_teacher_loss, batch)

    def _descend(self, loss: Callable[[StepBatch], torch.Tensor], batch: StepBatch) -> None:
        with self.fabric.autocast():
            total = loss(batch)
        self.fabric.backward(total)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)

    def _prepared(self, batch: StepBatch, sizes: tuple[list[Size], list[Size]]) -> StepBatch:
        """The images enlarged to the sizes that the steps are compared on, those of the source and of the target."""
        pairs = zip((batch.source, batch.target), sizes, strict=True)
        return StepBatch(*(enlarged(views, to).to(self.fabric.device) for views, to in pairs))


def enlarged(views: Views, sizes: list[Size]) -> Views:
    """The same images and truths at other (height, width)."""
    weak, strong = (None if view is None else _interpolated(view, sizes) for view in (views.weak, views.strong))
    before, truths = (views.weak or views.strong).sizes, []
    for truth, (rows, columns), (height, width) in zip(views.truths, before, sizes, strict=True):
        scale = torch.tensor([width / columns, height / rows] * 2)
        truths.append(Instances(truth.boxes * scale, truth.classes))
    return Views(weak, strong, tuple(truths))


def _interpolated(view: ImageBatch, sizes: list[Size]) -> ImageBatch:
    pixels = []
    for index, ((rows, columns), size) in enumerate(zip(view.sizes, sizes, strict=True)):
        crop = view.to_float().pixels[index : index + 1, :, :rows, :columns]
        pixels.append(F.interpolate(crop, size, mode="bilinear")[0])
    return to_batch(pixels, view.keys)


def short_side_of(options: argparse.Namespace, default: int) -> int:
    """Of the images, in pixels, as the options say.

    Raises:
        UserError: images would be too small for a network.
    """
    short_side = default if options.short_side is None else options.short_side
    if short_side < 32:
        raise UserError(f"--short-side {short_side}: networks need images of at least 32 pixels")
    return short_side


def frame_of(short_side: int) -> Size:
    """(height, width) of a frame of Cityscapes."""
    return short_side, 2 * short_side


def longest_of(short_side: int) -> int:
    """The most pixels of the long side: 1333 for 600, as Detectron2 and the papers limit it."""
    return math.ceil(short_side * 1333 / 600)


def _equal_sizes(count: int, short_side: int) -> Iterator[tuple[list[Size], list[Size]]]:
    return repeat(([frame_of(short_side)] * count, [frame_of(short_side)] * count))


def _real_sizes(count: int, short_side: int) -> Iterator[tuple[list[Size], list[Size]]]:
    """Of VOC's photos and of paintings, drawn as training draws them."""
    content = json.loads(sizes_file().read_text())
    photos, paintings = ([resized(size, short_side) for size in content[key]] for key in ("voc", "paintings"))
    source, target = StreamSampler(photos, count, seed=0), StreamSampler(paintings, count, seed=0, stream=1)
    target.meets = source
    for batch, other in zip(source, target, strict=False):
        yield [photos[draw.index] for draw in batch], [paintings[draw.index] for draw in other]


def resized(size: Size, short_side: int) -> Size:
    """(height, width) of an image as it enters the network."""
    scale = min(short_side / min(size), longest_of(short_side) / max(size))
    return round(size[0] * scale), round(size[1] * scale)


def sizes_file() -> Path:
    """Where 500 (height, width) each of VOC's photos and of paintings are listed, as ``voc`` and ``paintings``.

    Raises:
        UserError: they are not there.
    """
    path = Path(os.environ.get("LOSSMIX_SHARED_DATA", "../shared/data")) / "sizes.json"
    if not path.is_file():
        raise UserError(f"{path}: no list of real sizes; set LOSSMIX_SHARED_DATA to the folder that holds sizes.json")
    return path


# By name: an endless supply of (height, width) of B source and B target images, given B and the short side.
SIZES: dict[str, Callable[[int, int], Iterator[tuple[list[Size], list[Size]]]]] = {
    "equal": _equal_sizes,
    "real": _real_sizes,
}
BATCHES = 8  # that the steps take turns on


def pixels_per_pixel(bench: Bench) -> float:
    """Pixels that pass through the student's backbone for each pixel that its images have, mixed ones included."""
    computed = present = 0
    for step, batch in enumerate(bench.batches):
        bench.state.step = step  # every step draws another mix
        student_batch = bench.trainer.compose(batch.to(bench.fabric.device))
        for canvas in bench.student.lay_out(student_batch.images):
            computed += len(canvas.indices) * canvas.images.pixels[0, 0].numel()
        present += sum(height * width for height, width in student_batch.images.sizes)
    return computed / present


@torch.no_grad()
def _spread_proposals(detector: Any, images: ImageBatch) -> None:
    """Scale the outputs of random weights, so that proposals are as many and as varied as a trained model's."""
    model = detector.model
    rpn = model.proposal_generator
    features = model.backbone(model.preprocess_image(inputs_of(detector, images)).tensor)
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    for layer, outputs in ((rpn.rpn_head.objectness_logits, logits), (rpn.rpn_head.anchor_deltas, deltas)):
        layer.weight.mul_(0.3 / torch.cat([level.flatten() for level in outputs]).std())


@dataclass(frozen=True)
class Step:
    """One of the compared steps.

    Args:
        text: what it is, for the page.
        take: it, on a bench and a batch, the optimizer's part included.
        our_layout: weights are in the memory layout of ``train.channels_last``; else in Detectron2's own.
    """

    text: str
    take: Callable[[Bench, StepBatch], None]
    our_layout: bool = False


STEPS = {
    "floor": Step(
        "plain Detectron2 step on 3B student images in batches by domain, and detection by a teacher on B, "
        "without alignment and average",
        Bench.floor,
    ),
    "ours": Step("our step: LossMix, alignment, average, 3B student images, B for the teacher", Bench.ours, True),
    "adaptive_teacher": Step(
        "Adaptive Teacher's structure: four student forwards, 5B images, B for the teacher", Bench.adaptive_teacher
    ),
}

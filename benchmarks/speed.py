"""A whole adaptation step beside plain Detectron2 and beside Adaptive Teacher's step structure, on the same images."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lossmix_det.config import load_config
from lossmix_det.engines import to_device
from lossmix_det.errors import UserError
from lossmix_det.files import write_atomically
from lossmix_det.structures import ImageBatch, Instances, StepBatch, Views
from lossmix_det.training.launch import launch
from lossmix_det.training.optimization import match_layout
from lossmix_det.training.student import weight_of
from lossmix_det.training.trainer import Trainer

log = logging.getLogger(__name__)

NETWORKS = {
    "R50-C4, 2 FC on res4": ("configs/detectron2/r101_c4_2fc.yaml", ["MODEL.RESNETS.DEPTH", "50"]),
    "R50-FPN": ("configs/detectron2/r50_fpn.yaml", []),
}
SETTINGS = (
    *("shapes.train_images=12", "shapes.test_images=2", "shapes.size=96", "data.augment.min_sizes=[96]"),
    *("data.target=[shapes_clipart_train]", "data.test=[]", "data.views=[weak,strong]", "data.batch_size=2"),
    *("data.workers=0", "model.engine=detectron2", "ema.decay=0.9996", "adaptation.burn_in_steps=0"),
    *("mixing.rule=lossmix", "alignment.parts=[image]", "pseudo_labels.max_per_image=5", "pseudo_labels.score=0.1"),
    *("optimizer.name=sgd", "optimizer.lr=0.0", "train.steps=100000"),
)
SIZE = (600, 1200)  # a frame of Cityscapes, as Adaptive Teacher resizes it
STEPS = {
    "floor": "plain Detectron2 step on 3B student images, and detection by a teacher on B",
    "ours": "our step: LossMix, alignment, average, 3B student images, B for the teacher",
    "adaptive_teacher": "Adaptive Teacher's structure: four student forwards, 5B images, B for the teacher",
}


@dataclass
class Measured:
    """Seconds of each step, and GiB at its peak."""

    seconds: dict[str, list[float]]
    memory: dict[str, float]


class Bench:
    """One student and teacher that all steps are taken with.

    Args:
        network: of `NETWORKS`.
        overrides: of the settings above.
        folder: for what a run writes.
    """

    def __init__(self, network: str, overrides: list[str], folder: str) -> None:
        path, options = NETWORKS[network]
        words = ",".join(f"'{word}'" for word in options)
        model = [f"model.detectron2_config={path}", f"model.detectron2_options=[{words}]"]
        config = load_config(None, [*SETTINGS, *model, f"output_dir={folder}", *overrides])
        self.fabric = launch(config)
        self.trainer = Trainer(config, self.fabric)
        self.state = self.trainer.state
        self.state.begin_adaptation(self.fabric)
        self.student, self.teacher = self.state.detector, self.state.teacher.module
        batches = self.trainer.streams.batches(0, lambda: False, set())
        self.batches = [self._prepared(batch) for batch, _ in islice(batches, 3)]
        for detector in (self.student, self.teacher):
            _spread_proposals(detector, self.batches[0].target.weak)
        self.done = 0

    def prepare(self, step: str) -> None:
        """Bring weights and momenta into the memory layout that a step finds them in: ours, or Detectron2's own."""
        layout = self.trainer.config.train.channels_last if step == "ours" else False
        for detector in (self.student, self.teacher):
            to_device(detector, self.fabric.device, layout)
        match_layout(self.state.optimizer)
        self.student.train()

    def take(self, step: str, batch: StepBatch) -> None:
        """One step of a kind, the optimizer's included."""
        if step == "ours":
            self.state.step = self.done  # every round draws another mix
            self.trainer.learn(batch)
            self.state.teacher.update_parameters(self.state.detector)
            return
        with self.fabric.autocast():
            losses = self._floor(batch) if step == "floor" else self._adaptive_teacher(batch)
        self.fabric.backward(losses)
        self.state.optimizer.step()
        self.state.optimizer.zero_grad(set_to_none=True)

    def seconds(self, step: str) -> float:
        batch = self.batches[self.done % len(self.batches)]
        self.prepare(step)
        self._wait()
        started = time.perf_counter()
        self.take(step, batch)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.fabric.device.type == "cuda":
            torch.cuda.synchronize()

    def _floor(self, batch: StepBatch) -> torch.Tensor:
        """Stock losses of the same 3B images; the teacher's detections are not used."""
        source, target = batch.source, batch.target
        images = ImageBatch.cat([view.to_float() for view in (source.strong, source.weak, target.strong)])
        with torch.no_grad():
            self.teacher.model.eval().inference(_inputs(self.teacher, target.weak.to_float()))
        return self._stock(images, [*source.truths, *source.truths, *target.truths])

    def _adaptive_teacher(self, batch: StepBatch) -> torch.Tensor:
        """The order and the number of passes of Li et al. (CVPR 2022), as their code runs them after burn-in.

        The average; the teacher on weak target views with the proposals of training; the student on source views, on
        strong target views with pseudo-labels, and on weak views of either domain for the discriminator.
        """
        source, target, decay = batch.source, batch.target, self.trainer.config.ema.decay
        own, average = self.student.model.state_dict(), self.teacher.model.state_dict()
        self.teacher.model.load_state_dict({k: v * decay + own[k] * (1 - decay) for k, v in average.items()})
        labels = self._label(target.weak.to_float())
        both = ImageBatch.cat([source.strong.to_float(), source.weak.to_float()])
        total = self._stock(both, [*source.truths, *source.truths])
        total = total + self._stock(target.strong.to_float(), labels, boxes=False)
        alignment = self.state.alignment
        for view, domain in ((source.weak, 0.0), (target.weak, 1.0)):
            model = self.student.model
            images = model.preprocess_image(_inputs(self.student, view.to_float()))
            logits = alignment.discriminators["image"](model.backbone(images.tensor)[alignment.level])
            total = total + weight_of("alignment", {}) * F.binary_cross_entropy_with_logits(
                logits, torch.full_like(logits, domain)
            )
        return total

    @torch.no_grad()
    def _label(self, images: ImageBatch) -> list[Instances]:
        """The teacher stays in training mode, so that its proposals are as many as in training."""
        from lossmix_det.engines.detectron2.stages import propose

        model = self.teacher.model.train()
        inputs = model.preprocess_image(_inputs(self.teacher, images))
        features = model.backbone(inputs.tensor)
        proposals = propose(model.proposal_generator, features, inputs.image_sizes).proposals
        model.roi_heads.eval()
        found, _ = model.roi_heads(inputs, features, proposals, None)
        model.eval()
        limits = self.trainer.config.pseudo_labels
        sure = [each[each.scores >= limits.score][: limits.max_per_image] for each in found]
        return [Instances(each.pred_boxes.tensor, each.pred_classes) for each in sure]

    def _stock(self, images: ImageBatch, truths: list[Instances], boxes: bool = True) -> torch.Tensor:
        from detectron2.utils.events import EventStorage

        with EventStorage():
            losses = self.student.model(_inputs(self.student, images, truths))
        return sum(value for name, value in losses.items() if boxes or name in ("loss_rpn_cls", "loss_cls"))

    def _prepared(self, batch: StepBatch) -> StepBatch:
        """All images alike in size, so that no step pads more than another."""
        views = (batch.source, batch.target)
        return StepBatch(*(_enlarged(view).to(self.fabric.device) for view in views if view))


def _enlarged(views: Views) -> Views:
    height, width = SIZE
    images, truths = [], []
    for view in (views.weak, views.strong):
        own = [
            view.to_float().pixels[index : index + 1, :, :rows, :columns]
            for index, (rows, columns) in enumerate(view.sizes)
        ]
        pixels = torch.cat([F.interpolate(each, SIZE, mode="bilinear") for each in own])
        images.append(ImageBatch(pixels, (SIZE,) * len(view), view.keys))
    for truth, (rows, columns) in zip(views.truths, views.weak.sizes, strict=True):
        scale = torch.tensor([width / columns, height / rows] * 2)
        truths.append(Instances(truth.boxes * scale, truth.classes))
    return Views(*images, tuple(truths))


@torch.no_grad()
def _spread_proposals(detector: Any, images: ImageBatch) -> None:
    """Scale the outputs of random weights, so that proposals are as many and as varied as a trained model's."""
    model = detector.model
    rpn = model.proposal_generator
    features = model.backbone(model.preprocess_image(_inputs(detector, images)).tensor)
    logits, deltas = rpn.rpn_head([features[name] for name in rpn.in_features])
    for layer, outputs in ((rpn.rpn_head.objectness_logits, logits), (rpn.rpn_head.anchor_deltas, deltas)):
        layer.weight.mul_(0.3 / torch.cat([each.flatten() for each in outputs]).std())


def _inputs(detector: Any, images: ImageBatch, truths: list[Instances] | None = None) -> list[dict[str, Any]]:
    """What Detectron2's dataset mapper would give."""
    from detectron2.structures import Boxes
    from detectron2.structures import Instances as D2Instances

    found = []
    for index, (height, width) in enumerate(images.sizes):
        pixels = images.pixels[index, :, :height, :width] * 255
        found.append({"image": pixels.flip(0) if detector.model.input_format == "BGR" else pixels})
        if truths is not None:
            truth = truths[index]
            found[-1]["instances"] = D2Instances((height, width), gt_boxes=Boxes(truth.boxes), gt_classes=truth.classes)
    return found


def measure(network: str, overrides: list[str], rounds: int) -> Measured:
    """Take the steps in turns, in another order every round."""
    names = list(STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(network, overrides, folder)
        for name in names:
            bench.seconds(name)
        for bench.done in range(rounds):
            first = bench.done % len(names)
            for name in (*names[first:], *names[:first]):
                seconds[name].append(bench.seconds(name))
            log.info("%s: round %d of %d", network, bench.done + 1, rounds)
        cuda = bench.fabric.device.type == "cuda"
        memory = {name: _cuda_peak(bench, name) for name in names} if cuda else {}
    return Measured(seconds, memory or {name: _peak_of_process(network, overrides, name) for name in names})


def _cuda_peak(bench: Bench, name: str) -> float:
    bench.prepare(name)
    torch.cuda.reset_peak_memory_stats()
    bench.take(name, bench.batches[0])
    return torch.cuda.max_memory_allocated() / 2**30


def _peak_of_process(network: str, overrides: list[str], name: str) -> float:
    """The most that a process of its own has held, which takes one such step."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_one_step, (network, overrides, name))


def _one_step(network: str, overrides: list[str], name: str) -> float:
    with tempfile.TemporaryDirectory() as folder:
        Bench(network, overrides, folder).seconds(name)
    return _peak()


def _peak() -> float:
    """GiB of this program alone; Linux carries ``ru_maxrss`` over from the process that started it."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure_speed(options: argparse.Namespace, default_output: Path) -> None:
    """Measure every network and write the page.

    Raises:
        UserError: Detectron2 is not installed.
    """
    try:
        import detectron2
    except ModuleNotFoundError:
        raise UserError("--suite speed measures beside Detectron2, which is not installed; see the README") from None
    threads = [f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']}"] if "OMP_NUM_THREADS" in os.environ else []
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU thread(s)"
    lines = [
        "# What a whole adaptation step costs",
        "",
        "```",
        " ".join([*threads, f"python tools/benchmark.py --suite speed --pairs {options.pairs}", *options.overrides]),
        "```",
        "",
        f"torch {torch.__version__}, Detectron2 {detectron2.__version__}, {device}; B = 2 source and 2 target images "
        f"of {SIZE[0]}×{SIZE[1]} pixels, weak and strong views, weights at random. The steps take turns on the same "
        "images and model; medians, and the 10th and 90th percentile of the ratio of each round. Ours keeps its "
        "convolutions channels last where `train.channels_last` does (left alone: on CPUs), the others in Detectron2's "
        "own layout. Memory is the peak of "
        f"{'the GPU' if torch.cuda.is_available() else 'a process of its own, libraries included'}.",
        "",
        *(f"* {text[0].upper()}{text[1:]}: *{name}*." for name, text in STEPS.items()),
        "",
        "| network | floor | ours | ours / floor | adaptive_teacher | adaptive_teacher / ours | memory of each |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for network in NETWORKS:
        lines.append(_row(network, measure(network, options.overrides, options.pairs)))
    output = options.output or default_output
    write_atomically(output, "\n".join(lines) + "\n")
    log.info("wrote %s", output)


def _row(network: str, measured: Measured) -> str:
    seconds, memory = measured.seconds, measured.memory
    median = {name: f"{statistics.median(values):.2f} s" for name, values in seconds.items()}
    cells = [network, median["floor"], median["ours"], _ratio(seconds["ours"], seconds["floor"])]
    cells += [median["adaptive_teacher"], _ratio(seconds["adaptive_teacher"], seconds["ours"])]
    return "| " + " | ".join([*cells, " / ".join(f"{memory[name]:.2f}" for name in STEPS) + " GiB"]) + " |"


def _ratio(above: list[float], below: list[float]) -> str:
    ratios = [one / other for one, other in zip(above, below, strict=True)]
    low, high = np.percentile(ratios, (10, 90))
    return f"{statistics.median(ratios):.2f} ({low:.2f}–{high:.2f})"

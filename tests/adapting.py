"""A run as burn-in ends, and small batches of two domains."""

from __future__ import annotations

from pathlib import Path

import torch
from runs import trainer

from lossmix_det.structures import ImageBatch, Instances, StepBatch, Views

ADAPT = [
    "data.target=[shapes_clipart_train]",
    "data.views=[weak,strong]",
    "ema.decay=0.9",
    "ema.warmup=false",
    "adaptation.burn_in_steps=0",
    "train.steps=4",
    "mixing.probability=0.0",
    "optimizer.clip_norm=0",
]
ALIGN = ["alignment.parts=[image,instance]"]
AS_PUBLISHED = [  # what Adaptive Teacher does where ours differs by default
    *("pseudo_labels.score=0.5", "pseudo_labels.empty=background", "alignment.parts=[image]"),
    *("pseudo_labels.max_per_image=100", "pseudo_labels.min_size=0"),
]
SURE = ["pseudo_labels.score=0.5"]
HEIGHT, WIDTH, COUNT = 64, 96, 2


def adapting(folder: Path, *overrides: str, sure: bool = True):
    """A run as burn-in ends; a ``sure`` teacher gives scores over the whole range from random weights."""
    it = trainer(folder, *ADAPT, *overrides)
    if sure:
        torch.manual_seed(1)
        predictor = it.state.detector.model.roi_heads.box_predictor.cls_score
        torch.nn.init.normal_(predictor.weight, std=0.3)
        torch.nn.init.normal_(it.state.detector.model.rpn.head.bbox_pred.weight, std=0.05)
    it.state.begin_adaptation(it.fabric)
    return it


def views(seed: int, truths: bool = True) -> Views:
    generator = torch.Generator().manual_seed(seed)
    weak, strong = (
        ImageBatch(
            torch.randint(0, 256, (COUNT, 3, HEIGHT, WIDTH), generator=generator, dtype=torch.uint8),
            ((HEIGHT, WIDTH),) * COUNT,
            tuple(range(seed, seed + COUNT)),
        )
        for _ in range(2)
    )
    boxes = [torch.tensor([[5.0, 6, 40, 50], [50, 10, 90, 60]]), torch.tensor([[20.0, 20, 60, 55]])]
    classes = [torch.tensor([1, 3]), torch.tensor([0])]
    return Views(weak, strong, tuple(map(Instances, boxes, classes)) if truths else None)


def batch() -> StepBatch:
    return StepBatch(views(10), views(30, truths=False))


def found(*rows: tuple[float, float, float, float, int, float]) -> Instances:
    """Detections of one image: box, class and score of each."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Instances(values[:, :4], values[:, 4].long(), values[:, 5])

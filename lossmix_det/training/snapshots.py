"""A few target images that the teacher's labels are followed on, evaluation by evaluation, for the page of the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from lossmix_det.config import DataConfig
from lossmix_det.data.loaders import evaluation_loader
from lossmix_det.data.records import ImageSet
from lossmix_det.data.workers import batches
from lossmix_det.files import write_atomically
from lossmix_det.report.gallery import SNAPSHOTS, followed, read_snapshots
from lossmix_det.training.state import RunState


class Snapshots:
    """Writes ``pseudo_labels.json`` in the folder of a run.

    The images are looked at as test images are, not in a weak view, so that they can be compared over time. Nothing
    random is drawn.

    Args:
        folder: of the run.
        target_sets: of which the first is followed.
        config: of the data.
    """

    def __init__(self, folder: Path, target_sets: Sequence[ImageSet], config: DataConfig) -> None:
        self.folder, self.config = folder, replace(config, workers=0)
        self.images = [_some(image_set) for image_set in target_sets[:1]]

    @torch.no_grad()
    def take(self, state: RunState, device: torch.device) -> None:
        """Add what the teacher labels now; what an earlier try wrote of this step or later ones is dropped."""
        kept = [one for one in read_snapshots(self.folder) if one["step"] < state.step]
        labelled = [labels for image_set in self.images for labels in self._label(image_set, state, device)]
        write_atomically(self.folder / SNAPSHOTS, json.dumps([*kept, {"step": state.step, "images": labelled}]))

    def _label(self, image_set: ImageSet, state: RunState, device: torch.device) -> list[dict[str, Any]]:
        labelled = []
        for images, indices, problems in batches(evaluation_loader(image_set, self.config)):
            seen = images.to(device).to_float()
            labels = state.labeller.select(state.teacher.module.detect(seen), seen)
            for index, size, instances in zip(indices, seen.sizes, labels, strict=True):
                record = image_set.records[index]
                scale = instances.boxes.new_tensor([record.size[1] / size[1], record.size[0] / size[0]] * 2)
                columns = {"boxes": instances.boxes * scale, "classes": instances.classes, "scores": instances.scores}
                if index not in problems:
                    labelled.append(
                        {"path": str(record.path), **{key: value.tolist() for key, value in columns.items()}}
                    )
        return labelled


def _some(image_set: ImageSet) -> ImageSet:
    return replace(image_set, records=image_set.records.take(followed(image_set)))

"""Detectors of torchvision as ONNX files, and back (extra ``onnx``).

A file takes one image of any size, ``image`` (3, H, W) float RGB in [0, 1], and resizes it bilinearly to the size that
training tests at. It gives ``boxes`` (N, 4) in pixels of that image, ``classes`` (N,) in 0…K-1 and ``scores`` (N,),
best first. What the classes are called, and how images are read, stands in the file's own metadata.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.onnx import operators
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet

from lossmix_det.engines.contract import Detector
from lossmix_det.engines.recorded import Reading
from lossmix_det.errors import UserError, first_line
from lossmix_det.files import write_atomically

log = logging.getLogger(__name__)

OPSET = 17
OUTPUTS = ("boxes", "classes", "scores")
PLACES = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in OUTPUTS}}  # sizes that are free
TRIED = ((96, 128), (150, 90), (211, 307))  # (height, width) of the images that a new file is tried on
TOLERANCE = {"boxes": 1e-2, "scores": 1e-4}  # pixels; of scores
KEYS = ("classes", "reading")  # of the metadata


class Whole(nn.Module):
    """A detector of torchvision with its resizing, from one image to arrays.

    The size is computed in whole pixels as for our own tests. torchvision's own rounds down in single precision once it
    is traced, and so may come out a pixel smaller than in Python.

    Args:
        model: of torchvision.
        reading: the sizes that it resizes to.
    """

    def __init__(self, model: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.model, self.reading = model, reading
        model.transform.min_size, model.transform.max_size = (reading.short_side,), reading.max_size  # finds it done

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, classes and scores of (3, H, W); label 0, the background, is left out."""
        sides = operators.shape_as_tensor(image)[1:].double()
        scale = torch.minimum(self.reading.short_side / sides.min(), self.reading.max_size / sides.max())
        resized = (sides * scale).round().clamp(min=1)
        size = [side.long() if torch.jit.is_tracing() else int(side) for side in resized.unbind()]
        found = self.model([F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]])[0]
        kept = found["labels"] > 0
        factors = (sides / resized).flip(0).repeat(2).to(image.dtype)
        return found["boxes"][kept] * factors, found["labels"][kept] - 1, found["scores"][kept]


def write_onnx(detector: Detector, classes: Sequence[str], reading: Reading, path: Path) -> None:
    """Write a detector as an ONNX file, once it gives the same detections as the detector itself.

    Args:
        detector: of torchvision, on the CPU.
        classes: names, in order.
        reading: how it wants images.
        path: of the file.

    Raises:
        UserError: the extra is not installed, the detector is not of torchvision, or the file finds something else.
    """
    onnx = library("onnx")
    if not isinstance(detector.model, (GeneralizedRCNN, RetinaNet, FCOS)):
        raise UserError("ONNX files can be written of torchvision's detectors only; this one is Detectron2's")
    whole = Whole(detector.model, reading).eval()
    content = _traced(whole)
    model = onnx.load_from_string(content)
    about = {"classes": json.dumps(list(classes)), "reading": json.dumps(asdict(reading))}
    onnx.helper.set_model_props(model, about)
    content = model.SerializeToString()
    _check(whole, content)
    write_atomically(path, content)


class OnnxSession:
    """A file that `write_onnx` wrote.

    Args:
        path: of the file.

    Raises:
        UserError: the extra is not installed, or the file is no such file.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.session = _session(path.read_bytes())
            about = self.session.get_modelmeta().custom_metadata_map
            self.classes: list[str] = json.loads(about["classes"])
            self.reading = Reading(**json.loads(about["reading"]))
        except UserError:
            raise
        except Exception as error:  # of a library in C++, which has kinds of its own
            raise UserError(
                f"{path}: is no ONNX file written by `lossmix export` ({type(error).__name__}: {first_line(error)})"
            ) from error

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Boxes, classes and scores of (H, W, 3) uint8 RGB."""
        pixels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255
        return _run(self.session, pixels)


def library(name: str) -> ModuleType:
    """A library of the extra.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"ONNX files need {error.name}, which is not installed: pip install 'lossmix-det[onnx]'"
        ) from error


def _traced(whole: Whole) -> bytes:
    content = io.BytesIO()
    example = torch.rand(3, *TRIED[0], generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # of tracing, whose result is held against the detector afterwards
        torch.onnx.export(
            whole,
            (example,),
            content,
            dynamo=False,  # torch.export cannot follow how many boxes survive suppression
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_axes=PLACES,
        )
    return content.getvalue()


@torch.no_grad()
def _check(whole: Whole, content: bytes) -> None:
    """Hold the file against the detector, on images of other sizes than it was traced with."""
    session, compared = _session(content), 0
    for seed, size in enumerate(TRIED):
        image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))
        wanted = dict(zip(OUTPUTS, (part.numpy() for part in whole(image)), strict=True))
        compared += len(wanted["scores"])
        if not same_detections(wanted, _tried(session, image.numpy())):
            raise UserError(
                f"the ONNX file finds something else than the detector on an image of {size[1]}×{size[0]} pixels, so "
                "it was not written; its network does something that depends on the image's size"
            )
    if not compared:
        log.warning(
            "the detector finds nothing on the images of noise that the ONNX file was tried on, so their detections "
            "could not be compared; hold both against a photo of yours"
        )


def _tried(session: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What the file finds; where it fails, detections that nothing equals."""
    try:
        return _run(session, pixels)
    except Exception:  # of a library in C++, which has kinds of its own
        return {"boxes": np.full((1, 4), np.nan), "classes": np.zeros(1), "scores": np.full(1, np.nan)}


def same_detections(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether each detection has one of the same class, place and score among the others, whatever their order."""
    if len(one["scores"]) != len(other["scores"]):
        return False
    alike = one["classes"][:, None] == other["classes"][None]
    alike &= np.abs(one["boxes"][:, None] - other["boxes"][None]).max(axis=2, initial=0) <= TOLERANCE["boxes"]
    alike &= np.abs(one["scores"][:, None] - other["scores"][None]) <= TOLERANCE["scores"]
    return bool(alike.any(axis=0).all() and alike.any(axis=1).all())


def _session(content: bytes) -> Any:
    runtime = library("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised, too
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _run(session: Any, pixels: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"image": pixels}), strict=True))

"""From a file of weights and an image to detections, as an evaluation of the run that wrote the file has them."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lossmix_det.config import ModelConfig
from lossmix_det.data.augment import resize
from lossmix_det.data.images import read, to_rgb
from lossmix_det.data.loaders import to_batch
from lossmix_det.engines import Detector, build_detector, to_device
from lossmix_det.engines.canvases import LAYOUTS
from lossmix_det.engines.onnx import OUTPUTS, OnnxSession
from lossmix_det.engines.recorded import Reading, Recorded, recorded_of
from lossmix_det.errors import UserError, nearest
from lossmix_det.files import numbered_checkpoints, read_checkpoint
from lossmix_det.structures import Instances, smallest_canvas

log = logging.getLogger(__name__)

AnyImage = str | Path | np.ndarray | Image.Image

ONNX = ".onnx"
EXPORTS = ("teacher.pth", "ema.pth", "student.pth")  # of a run, the one that it reports first
NO_BOXES = np.zeros((0, 4), dtype=np.float32)


class Predictor:
    """A detector that takes images of any size, and knows the names of its classes.

    For example ``Predictor.load("runs/my")("photo.jpg")``.

    Args:
        detector: on its device.
        classes: names of its K classes.
        reading: how it wants images.
    """

    def __init__(self, detector: Detector, classes: list[str], reading: Reading) -> None:
        self.detector, self.classes, self.reading = detector, classes, reading
        detector.layout = LAYOUTS["few"]  # as this class plans them
        self.device = next(detector.parameters()).device

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        classes: Sequence[str] | None = None,
        device: str = "auto",
        model: ModelConfig | None = None,
        reading: Reading | None = None,
    ) -> Predictor:
        """A detector from a file, with the classes, sizes and thresholds that its run recorded.

        Args:
            path: folder of a run, whose last checkpoint is taken; a checkpoint; an export; a state dict of one of
                torchvision's networks; or torchvision's name of weights.
            classes: names of its classes in order, where the file does not say them.
            device: ``cpu``, ``cuda``, or ``auto``: a GPU if there is one.
            model, reading: in place of what is recorded.

        Raises:
            UserError: there is no such file, it cannot be read, or is of no known network. Parts of a model that a
                module of yours adds are known once you have imported it.
        """
        file = find_weights(path)
        if file.lower().endswith(ONNX):
            if device not in ("auto", "cpu"):
                raise UserError(f"--device {device} cannot be used: ONNX files run on the CPU here; use cpu or auto")
            return OnnxPredictor(OnnxSession(Path(file)), classes, reading)
        recorded = recorded_of(file)
        names = _names(recorded, classes)
        model = recorded.model if model is None else replace(model, weights=recorded.model.weights)
        detector = _built(model, recorded)
        return cls(to_device(detector.eval(), _device(device), None), names, reading or recorded.reading)

    def __call__(self, image: AnyImage) -> Instances:
        """Detections on one image, best first, in pixels of the upright image.

        Args:
            image: path of a file, (H, W, 3) or (H, W) uint8 RGB, or a PIL image.

        Raises:
            OSError: the file cannot be read.
            ValueError: the array is of another kind.
        """
        return self.predict([image])[0]

    def predict(self, images: Sequence[AnyImage]) -> list[Instances]:
        """Detections on several images at a time; as `__call__`.

        Only images of a like size share a canvas, so that what is found on one does not depend on the others.
        """
        arrays = [self._pixels(image) for image in images]
        if not arrays:
            return []
        small = [resize(pixels, NO_BOXES, self.reading.short_side, self.reading.max_size)[0] for pixels in arrays]
        found = self._detect(small)
        return [_scaled(each, *shapes) for each, *shapes in zip(found, small, arrays, strict=True)]

    def _detect(self, small: list[np.ndarray]) -> list[Instances]:
        """Detections in pixels of the resized images."""
        batch = to_batch([torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))) for pixels in small])
        batch = replace(batch, canvases=tuple(smallest_canvas([size], self.detector.multiple) for size in batch.sizes))
        return [found.to("cpu") for found in self.detector.detect(batch.to(self.device).to_float())]

    def _pixels(self, image: AnyImage) -> np.ndarray:
        how = {"high_bit_depth": self.reading.high_bit_depth, "exif": self.reading.exif}
        if isinstance(image, str | os.PathLike):
            return read(Path(image), **how)
        return to_rgb(image, **how) if isinstance(image, Image.Image) else _checked(image)


class OnnxPredictor(Predictor):
    """A `Predictor` that runs an ONNX file, on the CPU.

    Args:
        session: of the file.
        classes: names of its classes; they must be those of the file.
        reading: in place of what the file says.

    Raises:
        UserError: the classes are others.
    """

    def __init__(self, session: OnnxSession, classes: Sequence[str] | None, reading: Reading | None) -> None:
        if classes is not None and list(classes) != session.classes:
            raise UserError(
                f"the ONNX file names its classes itself: {', '.join(session.classes)}; leave --classes out"
            )
        self.session, self.classes, self.reading = session, session.classes, reading or session.reading

    def _detect(self, small: list[np.ndarray]) -> list[Instances]:
        found = []
        for pixels in small:
            arrays = self.session(pixels)
            found.append(Instances(*(torch.from_numpy(arrays[name]) for name in OUTPUTS)))
        return found


def find_weights(path: str | Path) -> str:
    """The file that a path means: of the folder of a run its last checkpoint that can be read, else its export.

    Raises:
        UserError: there is no such file, or none in the folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        is_named = "_Weights." in str(path)
        if not is_named and not folder.is_file():
            raise UserError(f"{path}: no such file or folder; give a checkpoint, an export, or the folder of a run")
        return str(path) if is_named else str(folder)
    for checkpoint in reversed([*numbered_checkpoints(folder), *numbered_checkpoints(folder / "checkpoints")]):
        try:
            read_checkpoint(checkpoint)
        except UserError as error:
            log.warning("%s; falling back to the one before", error)
        else:
            return str(checkpoint)
    exports = [place / name for place in (folder / "export", folder) for name in EXPORTS]
    found = next((export for export in exports if export.is_file()), None)
    if found is None:
        raise UserError(f"{path}: holds no checkpoint (checkpoints/step_*.pt) and no export (export/*.pth)")
    return str(found)


def _built(model: ModelConfig, recorded: Recorded) -> Detector:
    """The detector; where it cannot be built, the modules that its run imported may be what it lacks."""
    try:
        return build_detector(model, recorded.num_classes, strict=True)
    except UserError as error:
        lacking = [module for module in recorded.imports if module not in sys.modules]
        if not lacking:
            raise
        modules = " ".join(lacking)
        hint = f"if that adds parts of the model, say --import {modules}, or import it first"
        raise UserError(f"{error}; its run imported {modules}: {hint}") from error


def _names(recorded: Recorded, given: Sequence[str] | None) -> list[str]:
    """The names of the classes, of which somebody must know."""
    source, count = recorded.model.weights, recorded.num_classes
    if given is None and recorded.classes is None:
        log.warning(
            "%s does not name its %d classes; they are called class 1, class 2, …: give --classes", source, count
        )
        return [f"class {number}" for number in range(1, count + 1)]
    if given is None or recorded.classes == list(given):
        return list(recorded.classes)
    if recorded.classes is not None:
        raise UserError(f"{source} names its classes itself: {', '.join(recorded.classes)}; leave --classes out")
    if len(given) != count or len(set(given)) != count:
        raise UserError(f"{source} has {count} classes; --classes names {len(set(given))}: {', '.join(given)}")
    return list(given)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # a torch without CUDA asserts
        raise UserError(f"--device {name} cannot be used ({str(error).splitlines()[0]}); use cpu or auto") from None
    return device


def _checked(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8."""
    is_grey = isinstance(image, np.ndarray) and image.ndim == 2
    pixels = np.repeat(image[:, :, None], 3, axis=2) if is_grey else image
    shape, kind = getattr(pixels, "shape", None), getattr(pixels, "dtype", type(pixels).__name__)
    if kind != np.uint8 or len(shape or ()) != 3 or shape[2] != 3 or not min(shape):
        raise ValueError(f"an image must be a path, a PIL image, or (H, W, 3) uint8 RGB, got {kind} of shape {shape}")
    return pixels


def _scaled(found: Instances, small: np.ndarray, image: np.ndarray) -> Instances:
    """Detections in pixels of the image itself."""
    factors = [image.shape[1] / small.shape[1], image.shape[0] / small.shape[0]] * 2
    return replace(found, boxes=found.boxes * found.boxes.new_tensor(factors))


def check_classes(wanted: Sequence[str], classes: list[str]) -> None:
    """Refuse names that are not among the classes.

    Raises:
        UserError: naming the first, and the classes.
    """
    unknown = next((name for name in wanted if name not in classes), None)
    if unknown is not None:
        raise UserError(f"no class {unknown!r}{nearest(unknown, classes)}; the classes are {', '.join(classes)}")


def kept(found: Instances, classes: list[str], score: float = 0.0, only: Sequence[str] | None = None) -> Instances:
    """The detections that score enough and are of a class that is wanted.

    Args:
        found: with scores.
        classes: names of the K classes.
        score: the least.
        only: names of the wanted classes; None: all.
    """
    wanted = torch.tensor([only is None or name in only for name in classes], dtype=torch.bool)
    return found[(found.scores >= score) & wanted[found.classes]]

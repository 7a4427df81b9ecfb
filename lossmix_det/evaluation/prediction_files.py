"""Detections as files: pictures, COCO JSON, YOLO text and CSV, written as they come so that memory stays constant."""

from __future__ import annotations

import csv
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from lossmix_det.data.inputs import LOST, Frame, Input, frames_in, frames_per_second
from lossmix_det.evaluation.pictures import draw_picture
from lossmix_det.evaluation.predictor import Predictor
from lossmix_det.files import draft_of, growing, write_atomically
from lossmix_det.structures import Instances

QUALITY = 92  # of JPEG
LARGEST = 65_500  # pixels that a side of a JPEG file may have
CODEC = "mp4v"


class Sink(Protocol):
    """Takes the detections of one image after the other; a context within which it may hold files open."""

    def __enter__(self) -> Sink: ...

    def __exit__(self, *error: Any) -> None: ...

    def write(self, frame: Frame, found: Instances) -> None:
        """Write the detections of one image or frame, in its pixels."""
        ...


class Drawn:
    """``drawn/<stem>.jpg`` for each image (smaller where JPEG cannot hold it), ``drawn/<stem>.mp4`` for each video."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder, self.classes = folder / "drawn", classes
        self.video: _Video | None = None

    def __enter__(self) -> Drawn:
        return self

    def __exit__(self, *error: Any) -> None:
        self._end_video(whole=error[0] is None)

    def write(self, frame: Frame, found: Instances) -> None:
        """As `Sink.write`."""
        picture = draw_picture(frame.pixels, found, self.classes)
        if frame.number:
            if self.video is None or self.video.source is not frame.source:
                self._end_video()
                self.video = _Video(frame.source, self.folder / f"{frame.source.stem}.mp4", picture)
            self.video.add(picture)
            return
        bgr = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        if max(bgr.shape) > LARGEST:
            height, width = (max(1, side * LARGEST // max(bgr.shape)) for side in bgr.shape[:2])
            bgr = cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA)
        _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
        write_atomically(self.folder / f"{frame.stem}.jpg", content.tobytes())

    def _end_video(self, *, whole: bool = True) -> None:
        if self.video is not None:
            self.video.end(whole=whole)
        self.video = None


class _Video:
    """A video that takes its name once it is whole."""

    def __init__(self, source: Input, path: Path, first: np.ndarray) -> None:
        self.source, self.path, self.frames = source, path, 0
        self.draft = Path(f"{draft_of(path)}.mp4")  # OpenCV goes by the suffix
        try:
            str(self.draft).encode()
        except UnicodeEncodeError:  # OpenCV would end the process
            raise OSError(f"{path} cannot be written: its folder's name is not UTF-8; give another --output") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        self.size = (first.shape[1], first.shape[0])
        rate = frames_per_second(source.path)
        self.writer = cv2.VideoWriter(str(self.draft), cv2.VideoWriter.fourcc(*CODEC), rate, self.size)
        if not self.writer.isOpened():
            raise OSError(f"{path} cannot be written: OpenCV has no encoder {CODEC}; leave drawn out of --write")

    def add(self, picture: np.ndarray) -> None:
        """Append a frame."""
        if (picture.shape[1], picture.shape[0]) != self.size:  # a stream may change its size
            picture = cv2.resize(picture, self.size, interpolation=cv2.INTER_AREA)
        self.writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
        self.frames += 1

    def end(self, *, whole: bool) -> None:
        """Close it under its name, or remove it.

        Raises:
            OSError: it has lost frames, of which OpenCV says nothing.
        """
        self.writer.release()
        try:
            if whole and not self._holds_all():
                raise OSError(f"{self.path} cannot be written whole; is the disk full?")
            if whole:
                os.replace(self.draft, self.path)
        finally:
            self.draft.unlink(missing_ok=True)

    def _holds_all(self) -> bool:
        try:
            return frames_in(os.fspath(self.draft)) >= (1 - LOST) * self.frames - 1
        except OSError:  # not even its index was written
            return False


class _GrowingText:
    """A text file that takes its name once it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.draft = path, growing(path)
        self.file = self.draft.__enter__()

    def write(self, text: str) -> None:
        """Append.

        Raises:
            OSError: it cannot be written, because the disk is full, for example.
        """
        try:
            self.file.write(text.encode("utf-8", "backslashreplace"))  # names of files may be of any bytes
        except OSError as error:
            raise OSError(f"{self.path} cannot be written ({error.strerror})") from error

    def end(self, *, whole: bool) -> None:
        """Close it under its name, or remove it."""
        error = None if whole else _Abandoned()
        self.draft.__exit__(error and _Abandoned, error, None)


class _Abandoned(Exception):
    """What was begun is not finished, for a reason that is said elsewhere."""


class CocoFile:
    """``predictions.json``: images, categories, and annotations with their scores; boxes are [x, y, width, height]."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.path, self.classes = folder / "predictions.json", classes
        self.count = self.boxes = 0

    def __enter__(self) -> CocoFile:
        self.images = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - closed on leaving
        self.file = _GrowingText(self.path)
        categories = [{"id": number, "name": name} for number, name in enumerate(self.classes, start=1)]
        self.file.write(f'{{"categories": {json.dumps(categories)},\n"annotations": [')
        return self

    def write(self, frame: Frame, found: Instances) -> None:
        """As `Sink.write`."""
        self.count += 1
        height, width = frame.pixels.shape[:2]
        image = {"id": self.count, "file_name": _text(frame.name), "width": width, "height": height}
        self.images.write(("," if self.count > 1 else "") + "\n" + json.dumps(image))
        for label, score, (x1, y1, x2, y2) in _rows(found):
            self.boxes += 1
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1), "score": score, "iscrowd": 0}
            row = {"id": self.boxes, "image_id": self.count, "category_id": label + 1, **box}
            self.file.write(("," if self.boxes > 1 else "") + "\n" + json.dumps(row))

    def __exit__(self, *error: Any) -> None:
        whole = False
        try:
            with self.images:
                if error[0] is None:
                    self._write_images()
            whole = error[0] is None
        finally:
            self.file.end(whole=whole)

    def _write_images(self) -> None:
        self.file.write('\n],\n"images": [')
        self.images.seek(0)
        for line in self.images:
            self.file.write(line)
        self.file.write("\n]}\n")


class YoloFiles:
    """``labels/<stem>.txt``, with a line ``class x y width height`` for each box in shares, and ``classes.txt``."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.folder, self.classes = folder / "labels", classes

    def __enter__(self) -> YoloFiles:
        write_atomically(self.folder / "classes.txt", "".join(f"{name}\n" for name in self.classes))
        return self

    def __exit__(self, *error: Any) -> None:
        """Every file is whole already."""

    def write(self, frame: Frame, found: Instances) -> None:
        """As `Sink.write`."""
        height, width = frame.pixels.shape[:2]
        lines = []
        for label, _, (x1, y1, x2, y2) in _rows(found):
            shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
            lines.append(" ".join([str(label), *(f"{share:.8g}" for share in shares)]) + "\n")
        write_atomically(self.folder / f"{frame.stem}.txt", "".join(lines))


class CsvFile:
    """``predictions.csv``: a line for each box, with its file, class, score and edges in pixels."""

    def __init__(self, folder: Path, classes: list[str]) -> None:
        self.path, self.classes = folder / "predictions.csv", classes

    def __enter__(self) -> CsvFile:
        self.file = _GrowingText(self.path)
        self._put([["file", "class", "score", "x1", "y1", "x2", "y2"]])
        return self

    def __exit__(self, *error: Any) -> None:
        self.file.end(whole=error[0] is None)

    def write(self, frame: Frame, found: Instances) -> None:
        """As `Sink.write`."""
        self._put([_text(frame.name), self.classes[label], f"{score:.6g}", *box] for label, score, box in _rows(found))

    def _put(self, rows: Iterable[list[Any]]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self.file.write(text.getvalue())


def _rows(found: Instances) -> list[tuple[int, float, list[float]]]:
    """(class, score, xyxy to 4 decimals) of each box."""
    boxes = [[round(value, 4) for value in box] for box in found.boxes.tolist()]
    return list(zip(found.classes.tolist(), found.scores.tolist(), boxes, strict=True))


def _text(name: str) -> str:
    """The name of a file, which may be of any bytes, as text that can be written."""
    return name.encode("utf-8", "backslashreplace").decode()


# What detections are written as, by the name of the option.
SINKS: dict[str, Callable[[Path, list[str]], Sink]] = {
    "drawn": Drawn,
    "coco": CocoFile,
    "yolo": YoloFiles,
    "csv": CsvFile,
}


def predict_all(
    predictor: Predictor, frames: Iterable[Frame], batch_size: int = 1
) -> Iterator[tuple[Frame, Instances]]:
    """Every frame with its detections; no more frames are held than one batch.

    Args:
        predictor: detects.
        frames: in order.
        batch_size: how many pass through the network together.
    """
    stream = iter(frames)
    while batch := list(islice(stream, batch_size)):
        yield from zip(batch, predictor.predict([frame.pixels for frame in batch]), strict=True)


def write_all(
    detections: Iterable[tuple[Frame, Instances]], sinks: Sequence[Sink], advance: Callable[[int], None]
) -> tuple[int, int]:
    """Give every detection to every sink.

    Args:
        detections: of frames in order.
        sinks: entered and left here.
        advance: told the number of frames done, for a progress bar.

    Returns:
        How many frames and boxes there were.
    """
    frames = boxes = 0
    with ExitStack() as stack:
        for sink in sinks:
            stack.enter_context(sink)
        for frame, found in detections:
            for sink in sinks:
                sink.write(frame, found)
            frames, boxes = frames + 1, boxes + len(found)
            advance(1)
    return frames, boxes

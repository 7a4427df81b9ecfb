"""The pictures to detect on: files, folders, patterns and videos, one after the other in constant memory."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from lossmix_det.data.images import read
from lossmix_det.data.paths import is_image, listed
from lossmix_det.errors import UserError, first_line

VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv"}
LOST = 0.02  # share of a video's frames that its header may count too many


@dataclass(frozen=True)
class Input:
    """One image or video.

    Args:
        path: of the file.
        name: relative and with slashes; no two inputs have the same.
        stem: the name without suffix where no other input has the same, else the name.
        frames: how many its header promises; 0: it is an image.
    """

    path: Path
    name: str
    stem: str
    frames: int = 0


@dataclass(frozen=True)
class Frame:
    """An image, or one frame of a video.

    Args:
        source: that it is of.
        pixels: (H, W, 3) uint8 RGB.
        number: in the video, from 1; 0: it is an image.
    """

    source: Input
    pixels: np.ndarray
    number: int = 0

    @property
    def name(self) -> str:
        """As of the input; a frame's is ``<video>/000001``, which no file has, because a video is no folder."""
        return self._numbered(self.source.name)

    @property
    def stem(self) -> str:
        """As of the input; a frame's is its name."""
        return self._numbered(self.source.stem)

    def _numbered(self, of_image: str) -> str:
        return f"{self.source.name}/{self.number:06d}" if self.number else of_image


@dataclass
class Inputs:
    """What there is to detect on.

    Args:
        found: images and videos, in the order given and sorted within folders.
        problems: what could not be read; reading adds to it.
        passed_over: how many files in folders are neither images nor videos.
    """

    found: list[Input]
    problems: list[str] = field(default_factory=list)
    passed_over: int = 0

    @property
    def frames(self) -> int:
        """How many images and frames there are, as far as headers tell."""
        return sum(each.frames or 1 for each in self.found)

    def read(self, high_bit_depth: str = "full", *, exif: bool = True) -> Iterator[Frame]:
        """Every image and frame that can be read, one by one; the others become a line of ``problems``.

        Args:
            high_bit_depth: how 16-bit images are read.
            exif: turn images by their EXIF orientation.
        """
        for each in self.found:
            try:
                if each.frames:
                    yield from _frames(each)
                else:
                    yield Frame(each, read(each.path, high_bit_depth, exif=exif))
            except OSError as error:
                self.problems.append(f"{each.path}: cannot be read ({error})")
            except Exception as error:  # of a decoder, which raise almost anything
                self.problems.append(f"{each.path}: cannot be read ({type(error).__name__}: {first_line(error)})")


def find_inputs(words: Iterable[str | Path]) -> Inputs:
    """Everything that files, folders and patterns name, each file once.

    Args:
        words: paths of images, of videos, and of folders, which are taken with their sub-folders; or patterns such as
            ``shots/*.jpg`` or ``shots/**/*.png``.

    Raises:
        UserError: there is nothing to detect on.
    """
    words = [os.fspath(word) for word in words]
    result = Inputs([])
    paths = list(dict.fromkeys(os.path.abspath(path) for word in words for path in _named(word, result)))
    names = _names(paths, words)
    for path, name, stem in zip(paths, names, _stems(names), strict=True):
        is_video = os.path.splitext(path)[1].lower() in VIDEOS
        try:
            result.found.append(Input(Path(path), name, stem, max(frames_in(path), 1) if is_video else 0))
        except OSError as error:
            result.problems.append(f"{path}: cannot be read ({error})")
    if not result.found:
        reason = f": {result.problems[0]}" if result.problems else ""
        raise UserError(f"{', '.join(words)}: no image and no video{reason}")
    return result


def _named(word: str, result: Inputs) -> Iterator[str]:
    """The files that one word names."""
    word = os.path.expanduser(word)
    if os.path.isdir(word):
        yield from _below(Path(word), result)
    elif os.path.lexists(word):
        yield word
    else:
        matches = sorted(glob.glob(word, recursive=True))
        if not matches:
            result.problems.append(f"{word}: no such file or folder, and no file of that pattern")
        for match in matches:
            yield from _below(Path(match), result) if os.path.isdir(match) else [match]


def _below(folder: Path, result: Inputs) -> Iterator[str]:
    for name in listed(folder).files:
        if is_image(name) or os.path.splitext(name)[1].lower() in VIDEOS:
            yield os.fspath(folder / name)
        else:
            result.passed_over += 1


def _names(paths: list[str], words: list[str]) -> list[str]:
    """The paths relative to the one folder that was given, else to the folder that holds them all."""
    if not paths:
        return []
    only = os.path.abspath(os.path.expanduser(words[0])) if len(words) == 1 else ""
    root = only if os.path.isdir(only) else os.path.commonpath([os.path.dirname(path) for path in paths])
    return [os.path.relpath(path, root).replace(os.sep, "/") for path in paths]


TAKEN = "classes"  # labels/classes.txt names the classes of YOLO's files


def _stems(names: list[str]) -> list[str]:
    """The names without suffix, but for those that would then be the same as another, or as a file of ours."""
    stems = [os.path.splitext(name)[0] for name in names]
    while True:
        times = Counter(stem.casefold() for stem in [*stems, TAKEN])  # some file systems take letter cases for one
        longer = [name if times[stem.casefold()] > 1 else stem for stem, name in zip(stems, names, strict=True)]
        if longer == stems:
            return stems
        stems = longer


# ------------------------------------------------------------------------------------------------------------- video


def _opened(path: str) -> cv2.VideoCapture:
    """A video; OpenCV itself says nothing of why one cannot be opened.

    Raises:
        OSError: it cannot.
    """
    try:
        path.encode()
    except UnicodeEncodeError:  # OpenCV would end the process
        raise OSError("OpenCV cannot open a video whose name is not UTF-8; rename it") from None
    with open(path, "rb"):  # whether it is there, and may be read
        capture = cv2.VideoCapture(path)
    if not capture.isOpened():
        raise OSError("it is no video that OpenCV can decode")
    return capture


def frames_in(path: str) -> int:
    """How many frames a video has by its header.

    Raises:
        OSError: it cannot be opened.
    """
    capture = _opened(path)
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    capture.release()
    return count


def frames_per_second(path: Path) -> float:
    """Of a video; 25 where it does not say."""
    capture = _opened(os.fspath(path))
    rate = capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return rate if 0 < rate < 1000 else 25.0


def _frames(video: Input) -> Iterator[Frame]:
    """The frames of a video.

    Raises:
        OSError: it ends before its header says, or cannot be opened.
    """
    capture, number = _opened(os.fspath(video.path)), 0
    try:
        while True:
            more, pixels = capture.read()
            if not more:
                break
            number += 1
            yield Frame(video, cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), number)
    finally:
        capture.release()
    if number < (1 - LOST) * video.frames - 1 or not number:
        raise OSError(f"it ends after {number} of {video.frames} frames")

"""`shapes`: a generated two-domain detection benchmark, so that a laptop and CI have a real adaptation task.

Both domains show the same six outlines. Photos are textured, shaded, noisy and cluttered, and every class tends to one
hue and one texture, as real things do; clip-art has flat, hatched or empty fills in any colour, drawn outlines and
plain paper. A detector that learns hue and texture on photos therefore scores well there and loses on clip-art, however
long it trains. The data sets are written as VOC folders and depend on nothing but their settings.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from lossmix_det.config import ShapesConfig, as_dict
from lossmix_det.data.progress import progress
from lossmix_det.errors import UserError

CLASSES = ("circle", "square", "triangle", "star", "cross", "crescent")
HABIT = 0.5  # share of photographed objects that have the hue and texture of their class


@dataclass(frozen=True)
class Drawn:
    """One object of a picture.

    Attributes:
        label: its class.
        box: inclusive pixels (xmin, ymin, xmax, ymax), from 0.
        outline: (n, 2) corners of a polygon, in pixels from the corner of the first.
    """

    label: str
    box: tuple[int, ...]
    outline: np.ndarray


@dataclass(frozen=True)
class Domain:
    """How the pictures of one domain come about; ``differs``: whether the gap makes them differ from photos."""

    differs: bool

    def is_drawn(self, rng: np.random.Generator, gap: float) -> bool:
        """Whether the next picture is drawn instead of photographed; draws a number only in a domain that differs."""
        return self.differs and rng.random() < gap

    def habit(self, gap: float) -> float:
        """The share of photographed objects that have the hue and texture of their class, in 0…1."""
        return HABIT * (1 - gap) if self.differs else HABIT


DOMAINS = {"photo": Domain(differs=False), "clipart": Domain(differs=True)}
SPLITS = ("train", "test")
NAMES = {f"shapes_{domain}_{split}": (domain, split) for domain in DOMAINS for split in SPLITS}

VERSION = 4  # part of the folder's name; raised whenever the files change
FINE = 2  # drawn this many times larger, then reduced, for smooth edges
ASPECTS = ((1.0, 1.0), (1.0, 4 / 3), (4 / 3, 1.0))  # height and width, in shorter sides


def generate(config: ShapesConfig, root: Path) -> Path:
    """Write the benchmark below ``root`` unless it is there, and return its folder (``photo`` and ``clipart`` in it).

    The same settings give the same files, byte for byte, with the same versions of NumPy and OpenCV.

    Raises:
        UserError: ``root`` cannot be written to.
    """
    text = repr(sorted(as_dict(config).items())) + str(VERSION)
    folder = root / f"shapes_{hashlib.sha256(text.encode()).hexdigest()[:10]}"
    if folder.is_dir():
        return folder
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed, so that an interrupted run or a second process never leaves half a data set.
        draft = Path(tempfile.mkdtemp(prefix=".shapes_", dir=root))
    except OSError as error:
        raise UserError(f"{root}: cannot be written to ({error}); set LOSSMIX_DATASETS to a folder that can") from None
    try:
        for domain in DOMAINS:
            for split in SPLITS:
                _write_split(draft / domain, domain, split, config)
        os.chmod(draft, 0o755)
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _write_split(root: Path, domain: str, split: str, config: ShapesConfig) -> None:
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / name).mkdir(parents=True, exist_ok=True)
    counts = {"train": config.train_images, "test": config.test_images}
    names = [f"{split}_{index:05d}" for index in range(counts[split])]
    stream = (list(DOMAINS).index(domain), SPLITS.index(split))
    for index, name in enumerate(progress(names, f"drawing shapes {domain} {split}")):
        rng = np.random.default_rng([config.seed, *stream, index])
        image, objects = draw_scene(rng, domain, config.size, config.gap)
        _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 92])
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(content.tobytes())  # a full disk is an OSError
        (root / "Annotations" / f"{name}.xml").write_text(_annotation(f"{name}.jpg", image.shape, objects))
    (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


def draw_scene(rng: np.random.Generator, domain: str, size: int, gap: float) -> tuple[np.ndarray, list[Drawn]]:
    """One picture and its objects.

    Args:
        rng: the only source of chance.
        domain: ``photo`` or ``clipart``.
        size: the shorter side in pixels.
        gap: probability in 0…1 with which each trait of a clip-art picture differs from a photo.

    Returns:
        (H, W, 3) uint8 BGR, and its objects.
    """
    height, width = (round(size * side) for side in ASPECTS[rng.integers(len(ASPECTS))])
    drawn = DOMAINS[domain].is_drawn(rng, gap)
    shape = (height * FINE, width * FINE)
    canvas = _paper(rng, shape) if drawn else _ground(rng, shape)
    if not drawn:
        _clutter(rng, canvas)
    objects = []
    taken = np.zeros(shape, dtype=bool)
    for _ in range(rng.integers(1, 6)):
        placed = _place(rng, shape, taken)
        if placed is None:
            continue
        label, mask = placed
        if drawn:
            _draw(rng, canvas, mask)
        else:
            usual = rng.random() < DOMAINS[domain].habit(gap)
            _paint(rng, canvas, mask, CLASSES.index(label) if usual else rng.integers(len(CLASSES)))
        objects.append(Drawn(label, _box(mask), _outline(mask)))
    image = cv2.resize(np.clip(canvas, 0, 255), (width, height), interpolation=cv2.INTER_AREA)
    if not drawn:
        image = _expose(rng, image)
    return np.clip(image, 0, 255).astype(np.uint8), objects


def _box(mask: np.ndarray) -> tuple[int, ...]:
    """The box around a mask, in pixels of the finished picture."""
    ys, xs = np.nonzero(mask)
    return tuple(int(value) // FINE for value in (xs.min(), ys.min(), xs.max(), ys.max()))


def _outline(mask: np.ndarray) -> np.ndarray:
    """(n, 2) corners of the polygon around a mask, in pixels of the finished picture."""
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    contour = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.7, True)  # to less than half a pixel
    return (contour[:, 0] + 0.5) / FINE


# ------------------------------------------------------------------------------------------------ outlines


def _place(rng: np.random.Generator, shape: tuple[int, int], taken: np.ndarray) -> tuple[str, np.ndarray] | None:
    """A class and the mask of its outline where nothing has been drawn; None if there was no room in eight tries."""
    label = CLASSES[rng.integers(len(CLASSES))]
    for _ in range(8):
        radius = rng.uniform(0.12, 0.28) * min(shape)
        margin = radius * 0.9
        centre = rng.uniform((margin, margin), (shape[1] - margin, shape[0] - margin))
        mask = np.zeros(shape, dtype=np.uint8)
        squeeze = rng.uniform(0.7, 1.0)
        angle = rng.uniform(-0.4, 0.4)
        for polygon, value in OUTLINES[label]():
            points = polygon * radius * (1.0, squeeze)
            turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            cv2.fillPoly(mask, [np.round(points @ turn.T + centre).astype(np.int32)], value)
        mask = mask.astype(bool)
        grown = cv2.dilate(mask.astype(np.uint8), np.ones((4 * FINE, 4 * FINE), np.uint8)).astype(bool)
        if mask.any() and not (grown & taken).any():
            taken |= mask
            return label, mask
    return None


def _ring(count: int, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    angles = np.arange(count) * 2 * np.pi / count
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


def _cross() -> list[tuple[np.ndarray, int]]:
    arm = np.array([[-1, -0.32], [1, -0.32], [1, 0.32], [-1, 0.32]])
    return [(arm, 1), (arm[:, ::-1], 1)]


def _crescent() -> list[tuple[np.ndarray, int]]:
    return [(_ring(48), 1), (_ring(48) * 0.85 + (0.5, 0.0), 0)]


EIGHTH_TURN = np.array([[1, -1], [1, 1]]) / np.sqrt(2)  # by 45 degrees, so that a square stands on a side

OUTLINES: dict[str, Callable[[], list[tuple[np.ndarray, int]]]] = {
    "circle": lambda: [(_ring(48), 1)],
    "square": lambda: [(_ring(4) @ EIGHTH_TURN, 1)],
    "triangle": lambda: [(_ring(3), 1)],
    "star": lambda: [(_ring(10, (1.0, 0.42)), 1)],
    "cross": _cross,
    "crescent": _crescent,
}


# ------------------------------------------------------------------------------------------------ photos


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise of about ``cells`` bumps a side, roughly in -1…1."""
    coarse = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def _colour(hue: float, saturation: float, value: float) -> np.ndarray:
    pixel = np.array([[[hue % 180, saturation, value]]], dtype=np.uint8)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def _ground(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    a, b = (_colour(rng.uniform(0, 180), rng.uniform(20, 130), rng.uniform(60, 200)) for _ in range(2))
    share = 1 / (1 + np.exp(-2 * _noise(rng, shape, rng.integers(2, 6))))[..., None]
    grain = _noise(rng, shape, 24) * rng.uniform(5, 18) + _noise(rng, shape, 60) * rng.uniform(4, 14)
    return (share * a + (1 - share) * b + grain[..., None]).astype(np.float32)


def _clutter(rng: np.random.Generator, canvas: np.ndarray) -> None:
    """Bars, arcs and blotches that are no class."""
    height, width = canvas.shape[:2]
    for _ in range(rng.integers(3, 9)):
        colour = _colour(rng.uniform(0, 180), rng.uniform(20, 200), rng.uniform(30, 230)).tolist()
        a, b = (tuple(int(value) for value in rng.uniform((0, 0), (width, height))) for _ in range(2))
        thickness = int(rng.integers(1, 4 * FINE))
        if rng.random() < 0.5:
            cv2.line(canvas, a, b, colour, thickness)
        else:
            axes = tuple(int(value) for value in rng.uniform(0.05, 0.5, 2) * min(height, width))
            start = rng.uniform(0, 360)
            cv2.ellipse(canvas, a, axes, rng.uniform(0, 360), start, start + rng.uniform(30, 150), colour, thickness)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray, habit: int) -> None:
    """Fill with the hue and texture of a class, shade from one side, and cast a shadow."""
    shape = mask.shape
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    colour = _colour(habit * 30 + rng.normal(0, 7), rng.uniform(110, 220), rng.uniform(110, 230))
    pattern = _texture(rng, habit, rows, columns)
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * columns + np.sin(angle) * rows
    inside = slope[mask]
    slope = (slope - inside.mean()) / (np.ptp(inside) + 1)
    light = 1 + 0.7 * slope + 0.22 * pattern + 0.08 * _noise(rng, shape, 20)
    shift = np.float32([[1, 0, 2 * FINE], [0, 1, 2 * FINE]])
    shadow = cv2.GaussianBlur(cv2.warpAffine(mask.astype(np.float32), shift, shape[::-1]), (0, 0), 1.5 * FINE)
    canvas *= 1 - 0.5 * shadow[..., None]
    canvas[mask] = (colour * light[..., None])[mask]


def _texture(rng: np.random.Generator, habit: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """One of six patterns in -1…1, with random direction and width."""
    period = rng.uniform(2.5, 4.5) * FINE
    angle = rng.uniform(0, np.pi)
    along = (np.cos(angle) * columns + np.sin(angle) * rows) * 2 * np.pi / period
    across = (np.cos(angle) * rows - np.sin(angle) * columns) * 2 * np.pi / period
    return TEXTURES[habit](rng, along, across)


# The texture of each class in turn: from two phases (H, W), along the pattern and across it, to values in -1…1.
TEXTURES: tuple[Callable[[np.random.Generator, np.ndarray, np.ndarray], np.ndarray], ...] = (
    lambda rng, along, across: np.sin(along),  # stripes
    lambda rng, along, across: np.sin(along) * np.sin(across),  # bumps
    lambda rng, along, across: _noise(rng, along.shape, 45),  # speckles
    lambda rng, along, across: np.sign(np.sin(along / 2)),  # bars
    lambda rng, along, across: np.sign(np.sin(along / 2) * np.sin(across / 2)),  # chequers
    lambda rng, along, across: np.zeros_like(along),  # plain
)


def _expose(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Exposure, a little blur, and sensor noise."""
    if rng.random() < 0.5:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 0.9))
    return image * rng.uniform(0.7, 1.2) + rng.normal(0, rng.uniform(2, 8), image.shape)


# ------------------------------------------------------------------------------------------------ clip-art


def _paper(rng: np.random.Generator, shape: tuple[int, int]) -> np.ndarray:
    colour = _colour(rng.uniform(0, 180), rng.uniform(0, 70), rng.uniform(205, 255))
    return np.full((*shape, 3), colour, dtype=np.float32)


def _draw(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray) -> None:
    """A flat, hatched or empty fill inside a drawn outline."""
    fill = rng.random()
    colour = _colour(rng.uniform(0, 180), rng.uniform(60, 255), rng.uniform(120, 255))
    ink = _colour(rng.uniform(0, 180), rng.uniform(0, 255), rng.uniform(0, 90))
    if fill < 0.55:
        canvas[mask] = colour
    elif fill < 0.8:
        rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]]
        angle, period = rng.uniform(0, np.pi), rng.uniform(3, 6) * FINE
        stripes = np.sin((np.cos(angle) * columns + np.sin(angle) * rows) * 2 * np.pi / period) > 0.4
        canvas[mask & stripes] = ink
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    thickness = int(rng.uniform(0.8, 2.2) * FINE)
    cv2.drawContours(canvas, contours, -1, ink.tolist(), thickness)


# ------------------------------------------------------------------------------------------------ VOC XML


def _annotation(name: str, shape: tuple[int, ...], objects: list[Drawn]) -> str:
    """VOC counts pixels from 1 and includes the last; the middle of the first pixel is (1, 1)."""
    lines = ["<annotation>", "  <folder>JPEGImages</folder>", f"  <filename>{escape(name)}</filename>"]
    height, width = shape[:2]
    lines.append(f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>")
    for drawn in objects:
        names = ("xmin", "ymin", "xmax", "ymax")
        edges = "".join(f"<{edge}>{value + 1}</{edge}>" for edge, value in zip(names, drawn.box, strict=True))
        points = enumerate((drawn.outline + 0.5).tolist(), start=1)
        corners = "".join(f"<x{number}>{x:g}</x{number}><y{number}>{y:g}</y{number}>" for number, (x, y) in points)
        lines += [f"  <object>\n    <name>{drawn.label}</name>", "    <difficult>0</difficult>"]
        lines += [f"    <bndbox>{edges}</bndbox>", f"    <polygon>{corners}</polygon>", "  </object>"]
    return "\n".join([*lines, "</annotation>"]) + "\n"

"""Objects with outlines, and the pixels that pycocotools finds inside of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from conftest import voc_xml
from PIL import Image
from pycocotools import mask as coco_masks

Polygon = list[tuple[float, float]]

# Corners in shares of a square: convex ones, then concave ones.
OUTLINES: dict[str, Polygon] = {
    "triangle": [(0.1, 0.0), (1.0, 0.45), (0.0, 1.0)],
    "disc": [(0.5 + np.cos(angle) / 2, 0.5 + np.sin(angle) / 2) for angle in np.linspace(0, 2 * np.pi, 24, False)],
    "chevron": [(0.0, 0.0), (0.5, 0.35), (1.0, 0.0), (1.0, 0.6), (0.5, 1.0), (0.0, 0.6)],
    "corner": [(0.0, 0.0), (0.4, 0.0), (0.4, 0.6), (1.0, 0.6), (1.0, 1.0), (0.0, 1.0)],
}


def placed(name: str, x: float, y: float, width: float, height: float) -> list[float]:
    """[x, y, x, y, …] of an outline that fills a box."""
    return [value for a, b in OUTLINES[name] for value in (x + a * width, y + b * height)]


def box_of(polygon: list[float]) -> tuple[float, float, float, float]:
    xs, ys = polygon[::2], polygon[1::2]
    return min(xs), min(ys), max(xs), max(ys)


def pixels_of(*polygons: list[float], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: inside of any of the polygons, in an image of (height, width)."""
    runs = coco_masks.frPyObjects(list(polygons), *size)
    return coco_masks.decode(coco_masks.merge(runs)).astype(bool)


def run_lengths(pixels: np.ndarray, *, compressed: bool) -> dict[str, object]:
    """COCO's table of a (H, W) mask."""
    if compressed:
        runs = coco_masks.encode(np.asfortranarray(pixels.astype(np.uint8)))
        return {"size": list(runs["size"]), "counts": runs["counts"].decode()}
    column = np.concatenate([[0], pixels.T.ravel().astype(int), [1 - int(pixels[-1, -1])]])
    changes = np.flatnonzero(np.diff(column))
    return {"size": list(pixels.shape), "counts": np.diff(np.concatenate([[0], changes])).tolist()}


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Intersection over union of two masks."""
    return (first & second).sum() / (first | second).sum()


def write_picture(path: Path, value: int, *painted: tuple[np.ndarray, int]) -> None:
    """A grey picture with a value in each of some (H, W) masks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(painted[0][0].shape, value, dtype=np.uint8)
    for inside, colour in painted:
        pixels[inside] = colour
    Image.fromarray(np.repeat(pixels[:, :, None], 3, axis=2)).save(path)


def write_coco(root: Path, objects: dict[str, list[tuple[str, object, list[float]]]], size: tuple[int, int]) -> None:
    """``a.json`` of (class, segmentation, polygon that the box is around) by image; pictures are not written."""
    names = sorted({label for of_image in objects.values() for label, _, _ in of_image})
    images, annotations = [], []
    for number, (file, of_image) in enumerate(objects.items(), start=1):
        images.append({"id": number, "file_name": file, "width": size[1], "height": size[0]})
        for label, segmentation, polygon in of_image:
            x1, y1, x2, y2 = box_of(polygon)
            entry = {"id": len(annotations), "image_id": number, "category_id": names.index(label), "iscrowd": 0}
            annotations.append({**entry, "bbox": [x1, y1, x2 - x1, y2 - y1], "segmentation": segmentation})
    categories = [{"id": number, "name": name} for number, name in enumerate(names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "a.json").write_text(json.dumps(content))


def write_yolo(root: Path, file: str, polygon: list[float], size: tuple[int, int]) -> None:
    """A polygon of class ``thing`` in shares of the image."""
    shares = [value / side for value, side in zip(polygon, (size[1], size[0]) * (len(polygon) // 2), strict=True)]
    (root / f"{Path(file).stem}.txt").write_text("0 " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    (root / "classes.txt").write_text("thing\n")


def write_voc(root: Path, file: str, polygon: list[float], size: tuple[int, int]) -> None:
    """A box with a polygon beside it, of a tool that counts from 0."""
    edges = "".join(
        f"<{edge}>{value}</{edge}>"
        for edge, value in zip(("xmin", "ymin", "xmax", "ymax"), box_of(polygon), strict=True)
    )
    pairs = enumerate(zip(polygon[::2], polygon[1::2], strict=True), start=1)
    corners = "".join(f"<x{number}>{x}</x{number}><y{number}>{y}</y{number}>" for number, (x, y) in pairs)
    item = f"<object><name>thing</name><bndbox>{edges}</bndbox><polygon>{corners}</polygon></object>\n"
    (root / f"{Path(file).stem}.xml").write_text(voc_xml(item, size[1], size[0]))

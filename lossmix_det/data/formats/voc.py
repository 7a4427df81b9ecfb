"""PASCAL VOC folders: JPEGImages, Annotations, ImageSets/Main (Everingham et al., IJCV 2010)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.records import Problems, RawImage, RawObject, contained
from lossmix_det.errors import UserError

EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(
    root: Path, split: str, problems: Problems, *, images: str = "", annotations: str = "", pixel_origin: int = 1
) -> list[RawImage]:
    """Read the images of a split and their annotations.

    VOC counts pixels from 1 and includes the last, so a box becomes (xmin - 1, ymin - 1, xmax, ymax). With
    ``pixel_origin`` 0 coordinates are taken as they are.

    Args:
        root: folder that holds the other three.
        split: name of a list in ImageSets/Main; empty takes every annotation.
        problems: raises or collects what is wrong with single images.
        images, annotations: folders other than JPEGImages and Annotations.
        pixel_origin: 1 or 0.

    Raises:
        UserError: a folder or the list is missing.
    """
    image_folder = contained(root, images or "JPEGImages", "images")
    annotation_folder = contained(root, annotations or "Annotations", "annotations")
    files = _image_files(image_folder)
    if not annotation_folder.is_dir():
        raise UserError(
            f"{annotation_folder}: no such folder; a VOC data set has JPEGImages and Annotations in its root"
        )
    result = []
    for where, name in _names(root, split, annotation_folder, problems):
        xml = annotation_folder / f"{name}.xml"
        image = files.get(name) or image_folder / f"{name}.jpg"
        if not xml.is_file():
            problems.fail(f"{where}: annotation {xml} is missing")
            continue
        raw = _read_annotation(xml, image, pixel_origin, problems)
        if raw is not None:
            result.append(raw)
    return result


def read_voc_images(root: Path, split: str, problems: Problems, *, images: str = "") -> list[RawImage]:
    """The images of a split, or all there are, without a look at any annotation."""
    folder = contained(root, images or "JPEGImages", "images")
    files = _image_files(folder)
    if not split:
        return [RawImage(str(path), path, []) for path in files.values()]
    names = _names(root, split, folder, problems)
    return [RawImage(where, files.get(name) or folder / f"{name}.jpg", []) for where, name in names]


def _image_files(folder: Path) -> dict[str, Path]:
    """Images by the name that lists call them."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; a VOC data set has JPEGImages and Annotations in its root")
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def _names(root: Path, split: str, annotations: Path, problems: Problems) -> Iterator[tuple[str, str]]:
    """(where it is listed, image name) for every image of the split."""
    if not split:
        for path in sorted(annotations.glob("*.xml")):
            yield str(path), path.stem
        return
    listing = contained(root / "ImageSets" / "Main", f"{split}.txt", "split")
    if not listing.is_file():
        found = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise UserError(f"{listing}: no such split (found: {found})")
    try:
        lines = listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{listing}: is not UTF-8 text; save it as UTF-8") from None
    for number, line in enumerate(lines, start=1):
        name, where = line.strip(), f"{listing}:{number}"
        if not name:
            continue
        try:
            if not contained(annotations, f"{name}.xml", where).is_file():
                # Lists per class carry a flag behind the name: 1, 0 or -1.
                name = re.sub(r"\s+(-1|0|1)$", "", name)
        except OSError as error:
            problems.fail(f"{where}: {name[:40]!r} … is no name of an image ({error.strerror})")
            continue
        except UserError as error:
            problems.fail(str(error))
            continue
        yield where, name


def _read_annotation(xml: Path, image: Path, pixel_origin: int, problems: Problems) -> RawImage | None:
    text = xml.read_bytes()
    try:
        tree = SafeTree.fromstring(text)
    except ParseError as error:
        problems.fail(f"{xml}:{error.position[0]}: malformed XML ({error})")
        return None
    except (DefusedXmlException, ValueError, LookupError) as error:
        problems.fail(f"{xml}: refused, because it declares entities or an unknown encoding ({type(error).__name__})")
        return None
    lines = [text.count(b"\n", 0, match.start()) + 1 for match in re.finditer(rb"<object[\s>]", text)]
    objects = []
    for index, element in enumerate(tree.iter("object")):
        line = lines[index] if index < len(lines) else 1
        try:
            objects.append(_read_object(element, f"{xml}:{line}", pixel_origin))
        except ValueError as error:
            problems.fail(f"{xml}:{line}: object {index + 1} {error}")
    return RawImage(str(xml), image, objects, _declared_size(tree))


def _read_object(element: Element, where: str, pixel_origin: int) -> RawObject:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("has no name")
    box = element.find("bndbox")
    if box is None:
        raise ValueError(f"({name}) has no bndbox")
    edges = {}
    for edge in EDGES:
        value = box.findtext(edge)
        try:
            edges[edge] = float(value or "")
        except ValueError:
            raise ValueError(f"({name}) has no number for {edge}, but {value!r}") from None
    # Checked in the file's own numbers: counting inclusively, xmin = xmax would otherwise pass as one pixel.
    if edges["xmax"] <= edges["xmin"] or edges["ymax"] <= edges["ymin"]:
        raise ValueError(f"({name}) has a box without area: " + ", ".join(f"{edge} {edges[edge]:g}" for edge in EDGES))
    difficult = (element.findtext("difficult") or "0").strip().lower() in ("1", "true")
    low = (edges["xmin"] - pixel_origin, edges["ymin"] - pixel_origin)
    return RawObject(where, name, (*low, edges["xmax"], edges["ymax"]), difficult)


def _declared_size(tree: Element) -> tuple[int, int] | None:
    """(width, height), or None where the file leaves them out or writes 0, as some tools do."""
    try:
        size = (int(float(tree.findtext("size/width") or 0)), int(float(tree.findtext("size/height") or 0)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None

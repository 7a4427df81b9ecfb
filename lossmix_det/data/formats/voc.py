"""PASCAL VOC folders: JPEGImages, Annotations, ImageSets/Main (Everingham et al., IJCV 2010)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.images import SUFFIXES
from lossmix_det.data.records import Problems, RawImage, RawObject, contained
from lossmix_det.errors import UserError

EDGES = ("xmin", "ymin", "xmax", "ymax")
TRUE = {"1", "true"}  # how files say that an object is difficult
FLAG = re.compile(r"\s+(-1|0|1)$")
NO_FOLDER = "{}: no such folder; a VOC data set has JPEGImages and Annotations in its root"


class Voc(Format):
    """Images in ``JPEGImages``, an XML file for each in ``Annotations``, lists of names in ``ImageSets/Main``.

    ``images`` and ``annotations`` name other folders. ``split`` is the name of a list; if empty, every annotated image
    is taken. VOC counts pixels from 1 and includes the last, so a box becomes (xmin - 1, ymin - 1, xmax, ymax). With
    ``pixel_origin`` 0 coordinates are taken as they are.
    """

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images of the split with their boxes; classes have no numbers.

        Raises:
            UserError: a folder or the list is missing.
        """
        folders = _Folders(entry)
        if not folders.annotations.is_dir():
            raise UserError(NO_FOLDER.format(folders.annotations))
        names = folders.listed(entry.split, problems) if entry.split else folders.annotated()
        images = []
        for where, name in names:
            xml = folders.annotation(name)
            if not xml.is_file():
                problems.fail(f"{where}: annotation {xml} is missing")
                continue
            image = _read_annotation(xml, folders.image(name), entry.pixel_origin, problems)
            if image is not None:
                images.append(image)
        return images, {}

    def sources(self, entry: DatasetConfig) -> Iterator[Path]:
        """The folders with their sub-folders, the list of the split, and every annotation."""
        folders = _Folders(entry)
        if entry.split:
            yield contained(folders.lists, f"{entry.split}.txt", "split")
        yield folders.annotations  # also where it is missing
        for root in (folders.images, folders.annotations):
            yield from sorted(Path(folder) for folder, _, _ in os.walk(root, followlinks=True))
        yield from sorted(folders.annotations.rglob("*.xml"))

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images of the split, or every image if there is none.

        Raises:
            UserError: the folder of images or the list is missing.
        """
        folders = _Folders(entry)
        if not entry.split:
            return [RawImage(str(path), path, []) for path in folders.files.values()]
        return [RawImage(where, folders.image(name), []) for where, name in folders.listed(entry.split, problems)]


class _Folders:
    """The folders of one data set, and its images by the names that lists call them."""

    def __init__(self, entry: DatasetConfig) -> None:
        root = Path(entry.root)
        self.lists = root / "ImageSets" / "Main"
        self.images = contained(root, entry.images or "JPEGImages", "images")
        self.annotations = contained(root, entry.annotations or "Annotations", "annotations")
        if not self.images.is_dir():
            raise UserError(NO_FOLDER.format(self.images))
        paths = (path for path in sorted(self.images.iterdir()) if path.suffix.lower() in SUFFIXES)
        self.files = {path.stem: path for path in paths}

    def image(self, name: str) -> Path:
        """The file of an image, which need not exist."""
        return self.files.get(name) or self.images / f"{name}.jpg"

    def annotation(self, name: str) -> Path:
        """The XML file of an image, which need not exist."""
        return self.annotations / f"{name}.xml"

    def annotated(self) -> Iterator[tuple[str, str]]:
        """(annotation file, image name) for every annotation."""
        for path in sorted(self.annotations.glob("*.xml")):
            yield str(path), path.stem

    def listed(self, split: str, problems: Problems) -> Iterator[tuple[str, str]]:
        """(file and line, image name) for every image of a split."""
        listing = contained(self.lists, f"{split}.txt", "split")
        for number, line in enumerate(_lines(listing), start=1):
            word, where = line.strip(), f"{listing}:{number}"
            if not word:
                continue
            try:
                name = self._name(word, where)
            except OSError as error:
                problems.fail(f"{where}: {word[:40]!r} … is no name of an image ({error.strerror})")
            except UserError as error:
                problems.fail(str(error))
            else:
                yield where, name

    def _name(self, word: str, where: str) -> str:
        """The image that a line of a list names.

        Lists per class have a flag behind the name: 1, 0 or -1. Names may end like that too, so the flag is cut off
        only if there is neither an image nor an annotation of the whole name.
        """
        contained(self.annotations, f"{word}.xml", where)
        named = self.annotation(word).is_file() or self.image(word).is_file()
        return word if named else FLAG.sub("", word)


def _lines(listing: Path) -> list[str]:
    if not listing.is_file():
        splits = ", ".join(sorted(path.stem for path in listing.parent.glob("*.txt"))) or "none"
        raise UserError(f"{listing}: no such split (found: {splits})")
    try:
        return listing.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{listing}: is not UTF-8 text; save it as UTF-8") from None


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
    difficult = (element.findtext("difficult") or "0").strip().lower() in TRUE
    low = (edges["xmin"] - pixel_origin, edges["ymin"] - pixel_origin)
    return RawObject(where, name, (*low, edges["xmax"], edges["ymax"]), difficult)


def _declared_size(tree: Element) -> tuple[int, int] | None:
    """(width, height), or None where the file leaves them out or writes 0, as some tools do."""
    try:
        size = (int(float(tree.findtext("size/width") or 0)), int(float(tree.findtext("size/height") or 0)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None

"""Reading one XML file of PASCAL VOC, as the many tools that write such files have it."""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml import ElementTree as SafeTree

from lossmix_det.data.boxes import Box, around, around_rotated
from lossmix_det.data.paths import read_file
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawObject

ROOT = "annotation"
EDGES = ("xmin", "ymin", "xmax", "ymax")
TRUE = {"1", "true", "1.0", "yes"}  # how files say that an object is difficult
OBJECT = re.compile(rb"<(?:[\w.-]+:)?object[\s>/]", re.IGNORECASE)
DECLARATION = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["'][^>]*\?>""")
POINT = re.compile(r"[xy]\d*$")  # x1, y1, x2, … as corners of a polygon


@dataclass(frozen=True)
class Annotation:
    """What one XML file says.

    Attributes:
        objects: with a box each.
        size: (width, height) in pixels; None where the file leaves it out or writes 0, as some tools do.
        file: the name of the image, without folder; None if it is not given.
    """

    objects: list[RawObject]
    size: tuple[int, int] | None
    file: str | None


@dataclass
class Reader:
    """Reads the XML files of a data set, and keeps account of what is odd about them.

    Args:
        pixel_origin: what the file calls the first pixel, 0 or 1.
        problems: raises or collects what is wrong.
    """

    pixel_origin: int
    problems: Problems
    surrounded: list[str] = field(default_factory=list)  # objects that are no upright box
    from_zero: list[str] = field(default_factory=list)  # boxes that begin where VOC has no pixel
    foreign: list[str] = field(default_factory=list)  # files with a namespace or another root

    def read(self, xml: Path, *, from_list: bool) -> Annotation | None:
        """The annotation; None if the file is left out.

        Args:
            xml: the file.
            from_list: a list names it; else a file of another kind is passed over.
        """
        try:
            text = read_file(xml)
            tree = _parse(text)
        except ParseError as error:
            self.problems.fail(f"{xml}:{error.position[0]}: malformed XML ({error}){_encoding_hint(text)}")
        except DefusedXmlException as error:
            self.problems.fail(f"{xml}: refused, because it declares entities ({type(error).__name__})")
        except (LookupError, ValueError) as error:
            self.problems.fail(f"{xml}: is not in an encoding that is known ({error}); save it as UTF-8")
        except OSError as error:
            self.problems.fail(f"{xml}: cannot be read ({error})")
        else:
            return self._annotation(xml, text, tree, from_list)
        return None

    def _annotation(self, xml: Path, text: bytes, tree: Element, from_list: bool) -> Annotation | None:
        if b"xmlns" in text and _strip_namespaces(tree):
            self.foreign.append(f"{xml}: has an XML namespace")
        if tree.tag.lower() != ROOT:
            if tree.find(".//object/bndbox") is None:
                tell = self.problems.fail if from_list else lambda line: self.problems.leave_out([line])
                tell(f"{xml}: is no VOC annotation, because its first element is <{tree.tag}> and not <{ROOT}>")
                return None
            self.foreign.append(f"{xml}: begins with <{tree.tag}>")
        if tree.find(".//object") is None and b"box" in text.lower() and not self._can_name_objects(xml, tree):
            return None
        size = _declared_size(tree)
        return Annotation(list(self._objects(xml, text, tree, size)), size, _file(tree))

    def _can_name_objects(self, xml: Path, tree: Element) -> bool:
        """Whether boxes without an <object> are in an <Object>; else they would be lost in silence."""
        for element in tree.iter():
            if isinstance(element.tag, str):
                element.tag = element.tag.lower()
        if tree.find(".//object") is not None:
            self.foreign.append(f"{xml}: has capital letters in the names of its elements")
            return True
        if any(tree.find(f".//{name}") is not None for name in ("bndbox", "robndbox", "xmin")):
            self.problems.fail(f"{xml}: has boxes, but no <object> that they belong to")
            return False
        return True

    def _objects(self, xml: Path, text: bytes, tree: Element, size: tuple[int, int] | None) -> Iterator[RawObject]:
        newlines = [match.start() for match in re.finditer(b"\n", text)]
        lines = [bisect_left(newlines, match.start()) + 1 for match in OBJECT.finditer(text)]
        for index, element in enumerate(tree.iter("object")):
            where = f"{xml}:{lines[index] if index < len(lines) else 1}"
            try:
                yield from self._boxes(element, where, size)
            except ValueError as error:
                self.problems.fail(f"{where}: object {index + 1} {error}")

    def _boxes(self, element: Element, where: str, size: tuple[int, int] | None) -> Iterator[RawObject]:
        """An object for each box of an element; some tools put all boxes of a class into one."""
        name = (element.findtext("name") or "").strip()
        if not name:
            raise ValueError("has no name")
        difficult = (element.findtext("difficult") or "0").strip().lower() in TRUE
        angle = _angle(element)
        boxes = element.findall("bndbox")
        for box in boxes or [None]:
            edges = _edges(box, name) if box is not None and box.find("xmin") is not None else None
            if edges is None or angle:
                low = (
                    self._surround(element, box, name, where)
                    if edges is None
                    else around_rotated(*_centre(edges), angle)
                )
                self.surrounded.append(where)
            else:
                low = edges
                if self.pixel_origin and min(edges[:2]) == 0 and _fits(edges, size):
                    self.from_zero.append(where)
            corners = (low[0] - self.pixel_origin, low[1] - self.pixel_origin, *low[2:])
            yield RawObject(where, name, corners, difficult, outline=_outline(element, box, self.pixel_origin))

    def _surround(self, element: Element, box: Element | None, name: str, where: str) -> Box:
        """The box around a rotated box or a polygon, in the file's own numbers."""
        rotated = element.find("robndbox")
        if rotated is not None:
            cx, cy, width, height, angle = (_number(rotated, key, name) for key in ("cx", "cy", "w", "h", "angle"))
            return around_rotated(cx, cy, width, height, math.degrees(angle))
        points = _points(element.find("polygon") if box is None else box)
        if len(points) < 2:
            raise ValueError(f"({name}) has no bndbox" if box is None else f"({name}) has no number for xmin, but None")
        return around(points)

    def report(self, root: str) -> None:
        """Note what was odd, one line for each kind."""
        note_all = self.problems.note_all
        note_all(self.foreign, f"{root}: {{count}} XML files are not quite VOC's, and were read all the same")
        note_all(self.surrounded, f"{root}: {{count}} rotated boxes or polygons became the upright box around them")
        note_all(
            self.from_zero,
            f"{root}: {{count}} boxes begin at coordinate 0, but VOC counts pixels from 1; if the files count from 0, "
            "as those of CVAT, Label Studio and Roboflow do, set pixel_origin: 0 for this data set",
        )


def declared_file(xml: Path | None) -> str | None:
    """The name of the image that an annotation gives; None if the file is missing, damaged or says nothing."""
    try:
        return None if xml is None else _file(_parse(read_file(xml)))
    except (OSError, ParseError, ValueError, LookupError):
        return None


def _parse(text: bytes) -> Element:
    """The root of a file in any encoding that Python knows."""
    try:
        return SafeTree.fromstring(text)
    except DefusedXmlException:
        raise
    except (ValueError, LookupError, ParseError):  # expat knows few encodings
        declared = DECLARATION.match(text)
        if declared is None or declared[1].lower().startswith((b"utf", b"us-ascii", b"iso-8859")):
            raise
    return SafeTree.fromstring(text[declared.end() :].decode(declared[1].decode("ascii")))


def _encoding_hint(text: bytes) -> str:
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        is_utf16 = text.startswith((b"\xff\xfe", b"\xfe\xff"))
        return "" if is_utf16 else "; it is not UTF-8: save it as UTF-8, or declare its encoding in the first line"
    return ""


def _strip_namespaces(tree: Element) -> bool:
    """Take namespaces off the names of all elements; whether there were any."""
    found = False
    for element in tree.iter():
        if isinstance(element.tag, str) and element.tag.startswith("{"):
            element.tag = element.tag.rpartition("}")[2]
            found = True
    return found


def _file(tree: Element) -> str | None:
    name = (tree.findtext("filename") or "").strip().replace("\\", "/")
    return PurePosixPath(name).name or None


def _number(element: Element, key: str, name: str) -> float:
    value = element.findtext(key)
    try:
        return float(value or "")
    except ValueError:
        raise ValueError(f"({name}) has no number for {key}, but {value!r}") from None


def _edges(box: Element, name: str) -> Box:
    """The edges in the file's own numbers: counting inclusively, xmin = xmax would otherwise pass as one pixel."""
    edges = tuple(_number(box, edge, name) for edge in EDGES)
    if edges[2] <= edges[0] or edges[3] <= edges[1]:
        pairs = zip(EDGES, edges, strict=True)
        raise ValueError(f"({name}) has a box without area: " + ", ".join(f"{edge} {value:g}" for edge, value in pairs))
    return edges


def _fits(edges: Box, size: tuple[int, int] | None) -> bool:
    """Whether a box does not reach out at the other side; else it was drawn carelessly, wherever its file begins."""
    return size is None or (edges[2] <= size[0] and edges[3] <= size[1])


def _points(element: Element | None) -> list[tuple[float, float]]:
    """The corners of a polygon: ``<pt><x/><y/></pt>`` or ``<x1/><y1/><x2/>…``."""
    values: dict[str, list[float]] = {"x": [], "y": []}
    for child in () if element is None else element.iter():
        if isinstance(child.tag, str) and POINT.match(child.tag):
            values[child.tag[0]].append(float(child.text or ""))
    return list(zip(values["x"], values["y"], strict=False))


def _outline(element: Element, box: Element | None, pixel_origin: int) -> list[list[float]] | None:
    """The polygon of an object, from the corner of the first pixel; a pixel that is a corner ends at its middle."""
    polygon = element.find("polygon")
    if polygon is None and box is not None and box.find("xmin") is None:
        polygon = box
    try:
        points = [] if polygon is None else _points(polygon)
    except ValueError:  # nobody may want it
        return None
    return [[value - pixel_origin / 2 for point in points for value in point]] if points else None


def _angle(element: Element) -> float:
    """The rotation of a box in degrees, which CVAT gives as an attribute beside the box before the rotation."""
    for attribute in element.iterfind("attributes/attribute"):
        if attribute.findtext("name") == "rotation":
            return _number(attribute, "value", "rotation")
    return 0.0


def _centre(edges: Box) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = edges
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def _declared_size(tree: Element) -> tuple[int, int] | None:
    """(width, height), or None where the file leaves them out or writes 0, as some tools do."""
    try:
        size = (int(float(tree.findtext("size/width") or 0)), int(float(tree.findtext("size/height") or 0)))
    except (ValueError, OverflowError):
        return None
    return size if min(size) > 0 else None

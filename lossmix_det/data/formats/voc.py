"""PASCAL VOC: an XML file for each image, and lists of names (Everingham et al., IJCV 2010)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats.contract import Format
from lossmix_det.data.formats.voc_folders import LISTS, NO_FOLDER, Folders
from lossmix_det.data.formats.voc_lists import Names
from lossmix_det.data.formats.voc_xml import Reader, declared_file
from lossmix_det.data.paths import look_alike, read_file
from lossmix_det.data.problems import Problems
from lossmix_det.data.records import RawImage
from lossmix_det.errors import UserError

# What tells an annotation among the bytes at its start, and how many files to try. CVAT's own export has <annotations>.
WORD, HEAD, LOOKED_AT = re.compile(rb"<(?:[\w.-]+:)?annotation[\s>/]", re.IGNORECASE), 1000, 20


class Voc(Format):
    """Images in ``JPEGImages``, an XML file for each in ``Annotations``, lists of names in ``ImageSets/Main``.

    Both folders may have sub-folders, and may be one. ``images`` and ``annotations`` name other folders. ``split`` is
    the name of a list, or of a sub-folder with images and XML files; if empty, every annotated image is taken. VOC
    counts pixels from 1 and includes the last, so a box becomes (xmin - 1, ymin - 1, xmax, ymax). With
    ``pixel_origin`` 0 coordinates are taken as they are.
    """

    looks_for = "XML files in Annotations or beside the images (voc)"

    def claims(self, entry: DatasetConfig) -> DatasetConfig | None:
        """The declaration, if there are lists, or the folder of annotations holds an XML annotation."""
        files = list(Folders(entry).xml_of.values())[:LOOKED_AT]
        has_lists = (Path(entry.root) / LISTS[1]).is_dir()
        return entry if has_lists or any(WORD.search(_head(path)) for path in files) else None

    def image_folder(self, entry: DatasetConfig) -> Path:
        """``JPEGImages``, or the folder that takes its place."""
        return Folders(entry).images

    def read(self, entry: DatasetConfig, problems: Problems) -> tuple[list[RawImage], dict[str, int]]:
        """The images of the split with their boxes; classes have no numbers.

        Raises:
            UserError: a folder or the list is missing.
        """
        folders = Folders(entry).checked()
        if not folders.annotations.is_dir():
            raise UserError(NO_FOLDER.format(folders.annotations))
        reader = Reader(entry.pixel_origin, problems)
        images, renamed, others = [], [], []
        for where, name in Names(folders).read(problems):
            xml = folders.annotation(name)
            if xml is None:
                missing = folders.annotations / f"{name}.xml"
                problems.fail(f"{where}: annotation {missing} is missing{look_alike(name, folders.xml_of)}")
                continue
            found = reader.read(xml, from_list=where != str(xml))
            path = None if found is None else folders.image(name, found.file, f"{xml}", problems)
            if path is not None:
                images.append(RawImage(str(xml), path, found.objects, found.size))
                if not folders.images_of_name(name):
                    renamed.append(f"{xml}: {path.name}")
                elif folders.is_other_image(found.file, path):
                    others.append(f"{xml}: {found.file}")
        if folders.list is None:
            problems.leave_out(folders.without_annotation({image.path for image in images}))
        self._report(entry.root, problems, renamed, others)
        reader.report(entry.root)
        return images, {}

    def _report(self, root: str, problems: Problems, renamed: list[str], others: list[str]) -> None:
        problems.note_all(renamed, f"{root}: {{count}} images are called as <filename> says, and not as their XML")
        problems.note_all(
            others, f"{root}: {{count}} XML files give the <filename> of another image; that of their own name is taken"
        )

    def sources(self, entry: DatasetConfig) -> Iterator[Path]:
        """The folders with their sub-folders, the list of the split, and every annotation."""
        folders = Folders(entry)
        if folders.list is not None:
            yield folders.list
        yield folders.annotations  # also where it is missing
        for listing in (folders.image_files, folders.annotation_files):
            yield from listing.folders
        yield from folders.xml_of.values()

    def read_images(self, entry: DatasetConfig, problems: Problems) -> list[RawImage]:
        """The images of the split, or every image if there is none.

        Raises:
            UserError: the folder of images or the list is missing.
        """
        folders = Folders(entry).checked()
        if folders.list is None:
            return [
                RawImage(str(path), path, []) for path in map(folders.images.__truediv__, folders.image_files.images())
            ]
        images = []
        for where, name in Names(folders).read(problems):
            xml = folders.annotation(name)
            path = folders.image(name, declared_file(xml), where, problems)
            if path is not None:
                images.append(RawImage(where, path, []))
        return images


def _head(path: Path) -> bytes:
    """The first bytes of a file; without zeros, which UTF-16 has between the letters."""
    return read_file(path)[:HEAD].replace(b"\0", b"")

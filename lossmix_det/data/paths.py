"""The files of a data set: which there are, which one a name means, and reading them safely.

Symbolic links are followed wherever they lead, because whoever made the folder made them. Names that annotation files
give may not leave the folder.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from lossmix_det.data.images import NOT_READ, SUFFIXES
from lossmix_det.errors import UserError

LABEL_FILES = (".xml", ".json", ".jsonl", ".csv", ".txt")
# Folders that systems put beside what people put there: of archives from a Mac, Synology's thumbnails, Windows' bin.
SYSTEM = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}


def contained(root: Path, relative: str, where: str) -> Path:
    """Join a path that a file names to its root.

    Args:
        root: of the data set, or the folder of its images.
        relative: with slashes or backslashes; an absolute path may only lie below the root.
        where: file and line or index, for messages.

    Raises:
        UserError: the path climbs out of the root, or is absolute and lies elsewhere.
    """
    if relative.startswith("/"):
        relative = _below(root, relative)
    elif "\\" in relative:
        relative = relative.replace("\\", "/")
    normal = os.path.normpath(relative)
    if normal[0] == "/" or normal.split(os.sep, 1)[0] == os.pardir or is_absolute(relative):
        raise UserError(f"{where}: path {relative!r} leads out of {root}; use a path inside that folder")
    return root / normal


def is_absolute(path: str) -> bool:
    """Whether a path is absolute on this machine or on Windows, as ``C:\\data\\a.jpg`` is."""
    return path.startswith(("/", "\\")) or (path[1:2] == ":" and PureWindowsPath(path).is_absolute())


def _below(root: Path, path: str) -> str:
    """A path relative to the root if it lies below it, as written or with links followed; else the path itself."""
    path = os.path.normpath(path)
    for base in (os.path.normpath(root), os.path.abspath(root), os.path.realpath(root)):
        if path.startswith(base.rstrip("/") + "/"):
            return path[len(base.rstrip("/")) + 1 :]
    return path


def read_file(path: Path) -> bytes:
    """The content of a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or is no regular file, such as a pipe, which would wait for its writer.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise OSError("it is no regular file")
    return path.read_bytes()


def read_text(path: Path) -> str:
    """The text of a regular file in UTF-8, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


@dataclass
class Listing:
    """What is below a folder.

    Attributes:
        root: the folder.
        files: paths of the visible regular files relative to it, with slashes, sorted.
        folders: it and its visible sub-folders, with linked ones, each once.
        left_out: a line for each entry that is in none of the two, with the reason.
    """

    root: Path
    files: list[str] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def images(self) -> list[str]:
        """Those of the files that have the suffix of an image."""
        return [name for name in self.files if os.path.splitext(name)[1].lower() in SUFFIXES]

    def others(self) -> list[str]:
        """A line for each of the files that has another suffix."""
        images = set(self.images())
        return [
            f"{self.root / name}: not read, because its suffix is not one of an image"
            for name in self.files
            if name not in images
        ]


def listed(root: Path) -> Listing:
    """List a folder with its sub-folders; a linked folder that was listed before is not entered again.

    Raises:
        OSError: a folder cannot be read.
    """
    listing, entered, links = Listing(root), set(), []
    ahead = [("", str(root))]
    while ahead or links:
        prefix, folder = ahead.pop() if ahead else links.pop()  # links last, so that the folder itself comes first
        real = os.path.realpath(folder)
        if real in entered:
            listing.left_out.append(f"{folder}: not entered, because this link leads to a folder that is read anyway")
            continue
        entered.add(real)
        listing.folders.append(Path(folder))
        for entry in os.scandir(folder):
            if is_hidden(entry.name):
                listing.left_out.append(f"{entry.path}: hidden")
            elif _leads_nowhere(entry):
                listing.left_out.append(f"{entry.path}: no regular file, or a link that leads nowhere")
            elif entry.is_dir():
                (links if entry.is_symlink() else ahead).append((f"{prefix}{entry.name}/", entry.path))
            else:
                listing.files.append(prefix + entry.name)
    listing.files.sort()
    listing.folders.sort()
    listing.left_out.sort()
    return listing


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    """Whether there is neither a file nor a folder; a link may lead to itself."""
    try:
        return not entry.is_dir() and not entry.is_file()
    except OSError:
        return True


def visible(root: Path, pattern: str) -> list[Path]:
    """The regular files below a root that fit a pattern such as ``*/*.json``, sorted; hidden files and folders not."""
    paths = (path for path in sorted(root.glob(pattern)) if path.is_file())
    return [path for path in paths if not any(map(is_hidden, path.relative_to(root).parts))]


def unread_labels(root: Path) -> str:
    """A file of a folder that may hold labels of a kind that is not read, for a message; empty if there is none."""
    other = next((path.name for kind in LABEL_FILES for path in visible(root, f"*{kind}")), None)
    return f"; labels in {other} are not read, docs/data.md says what to export" if other else ""


def is_hidden(name: str) -> bool:
    """Whether a file or folder is not one of those that people put there."""
    return name.startswith(".") or name in SYSTEM


def has_image(folder: Path) -> bool:
    """Whether an image lies in a folder itself."""
    return any(is_image(entry.name) for entry in os.scandir(folder))


def is_image(name: str) -> bool:
    """Whether a name is one of a visible file with the suffix of an image."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def composed(name: str) -> str:
    """A name with its accents composed (Unicode NFC); archives packed on a Mac have them apart (NFD)."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def differs_by(first: str, second: str) -> str | None:
    """How two unequal names differ, if only in what hardly shows: accents, letter case or blanks."""
    ways = (
        ("only in how accents are stored (Unicode NFC or NFD)", composed),
        ("only by letter case", lambda name: composed(name).casefold()),
        ("only by blanks", lambda name: "".join(composed(name).split())),
        ("only by letter case and blanks", lambda name: "".join(composed(name).casefold().split())),
    )
    return next((how for how, fold in ways if fold(first) == fold(second)), None) if first != second else None


def look_alike(name: str, known: Iterable[str]) -> str:
    """``"; 'x' is there, which differs only by letter case"`` for the known name that hardly differs, or nothing."""
    for other in known:
        how = differs_by(name, other)
        if how:
            return f"; {other!r} is there, which differs {how}"
    return ""


class ImageFolder:
    """The images below a folder by their names, for those that are not where an annotation says.

    The folder is listed when it is first asked. Without a folder there are no images.
    """

    def __init__(self, root: Path | None) -> None:
        self.root = root

    @cached_property
    def listing(self) -> Listing:
        """Everything below the folder."""
        return listed(self.root) if self.root and self.root.is_dir() else Listing(Path())

    @cached_property
    def by_name(self) -> dict[str, list[str]]:
        """Relative paths of the images, by their name without folder."""
        table: dict[str, list[str]] = {}
        for path in self.listing.images():
            table.setdefault(composed(path.rpartition("/")[2]), []).append(path)
        return table

    def find(self, path: Path) -> Path | None:
        """The one image that a path surely means: one of the two is the end of the other.

        ``b/1.jpg`` is found as ``a/b/1.jpg`` or as ``1.jpg``, never as ``c/1.jpg``.
        """
        found = self._candidates(path)
        return self.root / found[0] if len(found) == 1 else None

    def hint(self, path: Path) -> str:
        """What is there instead, for a message; begins with a semicolon, or is empty."""
        found = self._candidates(path)
        if len(found) > 1:
            two = f"{found[0]} and {found[1]}"
            return f"; there are {len(found)} images of that name, {two} for two; set images to one's folder"
        elsewhere = self.by_name.get(composed(path.name), [])
        if elsewhere:
            return f"; an image of that name is {elsewhere[0]}"
        names = [other.rpartition("/")[2] for group in self.by_name.values() for other in group]
        stem = composed(path.stem).casefold()
        unread = [name for name in self.listing.files if os.path.splitext(name)[1].lower() in NOT_READ]
        other = next((name for name in (*names, *unread) if composed(Path(name).stem).casefold() == stem), None)
        how = "there, whose format is not read; save it as JPEG or PNG" if other in unread else "there"
        return look_alike(path.name, names) or (f"; {other!r} is {how}" if other else "")

    def _candidates(self, path: Path) -> list[str]:
        wanted = _parts(_below(self.root, str(path))) if self.root else ()
        same = self.by_name.get(wanted[-1], []) if wanted else []
        return [other for other in same if _is_end(wanted, _parts(other))]


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(composed(path.replace("\\", "/"))).parts


def _is_end(first: tuple[str, ...], second: tuple[str, ...]) -> bool:
    """Whether one path is the end of the other."""
    length = min(len(first), len(second))
    return first[len(first) - length :] == second[len(second) - length :]

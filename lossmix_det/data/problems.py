"""What is wrong with data, what was left out of it, and what else is worth knowing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from lossmix_det.errors import UserError


@dataclass
class Problems:
    """Faults found in the data. The first one is raised.

    Attributes:
        skipped: faulty images and boxes that were left out.
        notes: what was used although it is odd.
        left_out: files and boxes that are not meant to be read, such as hidden files.
    """

    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def fail(self, message: str) -> None:
        """Report that an image or a box cannot be used.

        Raises:
            UserError: always; `SkippedProblems` lists the fault instead.
        """
        raise UserError(f"{message}; correct it, or set data.on_error=skip to leave it out")

    def note(self, message: str) -> None:
        """List something worth knowing that leaves nothing out."""
        self.notes.append(message)

    def note_all(self, places: list[str], message: str) -> None:
        """Note what was found at many places as one line.

        Args:
            places: nothing is noted if there are none.
            message: what was found; ``{count}`` becomes the number of places.
        """
        if places:
            self.note(f"{message.format(count=len(places))}; the first: {places[0]}")

    def leave_out(self, lines: Iterable[str]) -> None:
        """List files or boxes that are not read, each with the reason."""
        self.left_out.extend(lines)

    def first(self) -> str:
        """How many faults were skipped, and the first of them; empty without any."""
        count = len(self.skipped)
        return (
            f"; {count} {'fault was' if count == 1 else 'faults were'} skipped, the first: {self.skipped[0]}"
            if count
            else ""
        )


class SkippedProblems(Problems):
    """Faults found in the data. Images and boxes that cannot be used are left out and listed."""

    def fail(self, message: str) -> None:
        """List an image or a box as left out."""
        self.skipped.append(message)


ON_ERROR: dict[str, type[Problems]] = {"raise": Problems, "skip": SkippedProblems}

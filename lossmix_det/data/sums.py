"""Checksums of downloaded archives, as their publishers list them."""

from __future__ import annotations

import argparse
import hashlib
import logging
from pathlib import Path

from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256"}


def add_checksums(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--checksums",
        type=Path,
        default=None,
        help="list of md5sum, sha1sum or sha256sum beside the downloaded archives",
    )


def check_sums(listing: Path | None) -> None:
    """Compare every file of a list that lies beside it; files that are not there are named.

    Args:
        listing: lines of ``<hex digits>  <file>``; absent: nothing is checked.

    Raises:
        UserError: a file differs, a line is malformed, or none of the files is there.
    """
    if listing is None:
        return
    try:
        lines = listing.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{listing}: cannot be read ({error})") from None
    checked = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        digits, _, name = line.strip().partition(" ")
        path = listing.parent / name.strip().lstrip("*")
        if len(digits) not in BY_LENGTH or not name:
            raise UserError(f"{listing}:{number}: expected a checksum and a file name, got {line[:60]!r}")
        if not path.is_file():
            log.warning("%s: not there, so not checked", path)
            continue
        found = _digest(path, BY_LENGTH[len(digits)])
        if found != digits.lower():
            raise UserError(f"{path}: its checksum is {found}, {listing} says {digits}; download it again")
        checked += 1
    if not checked:
        raise UserError(f"{listing}: none of its files lies beside it; give the list in the folder of the archives")
    log.info("%s: %d files are as listed", listing, checked)


def _digest(path: Path, method: str) -> str:
    digest = hashlib.new(method)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

"""Finding the format of a data set from its folder alone."""

from __future__ import annotations

import logging
from dataclasses import replace

from lossmix_det.config import DatasetConfig
from lossmix_det.data.formats import FORMATS
from lossmix_det.errors import UserError

log = logging.getLogger(__name__)

AUTO = "auto"


def recognise(name: str, entry: DatasetConfig) -> DatasetConfig:
    """The declaration with its format, and with what that format has found in the folder.

    Every format with labels is asked. Only if none of them claims the folder, those without are.

    Args:
        name: of the data set, for messages.
        entry: its ``format`` is ``auto``, its ``root`` an existing folder.

    Raises:
        UserError: no format claims the folder, or several do, or one needs to know more.
    """
    for labelled in (True, False):
        claims = {
            key: claim
            for key, known in FORMATS.items()
            if known.labelled == labelled and known.declarable and (claim := known.claims(entry)) is not None
        }
        if len(claims) > 1:
            raise UserError(f"{entry.root} may be {' or '.join(claims)}; set datasets.{name}.format to one of them")
        for key, claim in claims.items():
            files = f" with {claim.annotations}" if claim.annotations else ""
            log.info("data set %s: %s is read as %s%s", name, entry.root, key, files)
            return replace(claim, format=key)
    looked_for = "; ".join(known.looks_for for known in FORMATS.values() if known.looks_for)
    raise UserError(f"{entry.root}: its format cannot be told; looked for: {looked_for}; set datasets.{name}.format")

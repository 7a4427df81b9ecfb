"""The keys of ``LOSSMIX`` in a Detectron2 configuration."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

import yaml
from detectron2.config import CfgNode

from lossmix_det.config import MixingConfig, Settings, check
from lossmix_det.errors import UserError
from lossmix_det.mixing import Recipe

SETTINGS = (
    *("mixer", "rule", "weighting", "alpha", "probability", "weight_sum", "background_weight", "lam_range"),
    *("saliency", "least_visible", "stages", "fmix_decay", "confmix_sure", "puzzle", "comixup"),
)


def add_lossmix_config(cfg: CfgNode) -> None:
    """Add ``LOSSMIX`` to a Detectron2 configuration, with the defaults; its keys are those of `MixingConfig` that do
    without a target domain. Without it the defaults hold."""
    cfg.LOSSMIX = _node(MixingConfig(), SETTINGS)


def _node(settings: Settings, names: Sequence[str]) -> CfgNode:
    """Some of a group of settings in Detectron2's manner; a group within it is a node within."""
    values = {name: getattr(settings, name) for name in names}
    return CfgNode(
        {
            name.upper(): _node(value, [spec.name for spec in fields(value)]) if isinstance(value, Settings) else value
            for name, value in values.items()
        }
    )


def mixing_of(cfg: CfgNode) -> MixingConfig:
    """The settings under ``LOSSMIX``.

    Raises:
        UserError: a value lies outside its limits, or a key is unknown.
    """
    mixing = _read(MixingConfig(), cfg.get("LOSSMIX", {}), SETTINGS, "LOSSMIX.")
    mixing = replace(mixing, mixer=_table(mixing.mixer), stages=[str(stage) for stage in mixing.stages])
    try:
        check(mixing, "LOSSMIX.")
        Recipe(mixing)  # whether its mixers exist
    except UserError as error:
        raise UserError(re.sub(r"\b(?:LOSSMIX|mixing)\.([a-z_.]+)", _in_capitals, str(error))) from None
    if mixing.saliency == "gradient":  # also where no mixer would ask for it
        raise UserError("LOSSMIX.SALIENCY: gradient needs a student that looks twice; use spectral or boxes")
    return mixing


def _in_capitals(key: re.Match[str]) -> str:
    """A key as Detectron2's configurations write it."""
    return f"LOSSMIX.{key[1].upper()}"


def _table(mixer: Any) -> Any:
    """A mixer's name, or several with weights, as text or as a table."""
    if not isinstance(mixer, str):
        return dict(mixer) if isinstance(mixer, Mapping) else mixer
    try:
        return yaml.safe_load(mixer)
    except yaml.YAMLError:
        return mixer


def _read(settings: Settings, node: Mapping[str, Any], names: Sequence[str], prefix: str) -> Any:
    """A group of settings with the values of a node of Detectron2's."""
    unknown = {key for key in node if key.lower() not in names}
    if unknown:
        raise UserError(f"{prefix}{unknown.pop()} is unknown; it takes {', '.join(names).upper()}")
    values = {}
    for key, value in node.items():
        group = getattr(settings, key.lower())
        if isinstance(group, Settings):
            value = _read(group, value, [spec.name for spec in fields(group)], f"{prefix}{key}.")
        values[key.lower()] = value
    return replace(settings, **values)

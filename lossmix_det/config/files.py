"""Reading YAML files with their bases, and KEY=VALUE overrides, over a tree of dataclasses."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lossmix_det.errors import UserError, first_line, nearest


def read_files(path: str | Path | None, seen: tuple[Path, ...] = ()) -> list[tuple[str, DictConfig]]:
    """The file and its chain of bases, the base first."""
    if path is None:
        return []
    path = Path(path)
    if path.resolve() in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; remove one link of the circle")
    try:
        content = OmegaConf.load(path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, DictConfig):
        raise UserError(f"{path}: expected 'key: value' lines, found a list")
    if not content:
        raise UserError(f"{path}: holds no setting; leave --config-file out for the quick run on generated data")
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: _BASE_ must be the path of one YAML file, got {base!r}")
    chain = read_files(path.parent / base, (*seen, path.resolve())) if base else []
    return [*chain, (str(path), content)]


def read_overrides(overrides: list[str]) -> list[tuple[str, DictConfig]]:
    parts = []
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise UserError(f"override {text!r} is not of the form KEY=VALUE, for example train.steps=100")
        try:
            parts.append((f"override {text!r}", OmegaConf.from_dotlist([text])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override {text!r}: {first_line(error)}") from None
    return parts


def merge(config: DictConfig, part: DictConfig, origin: str, schema: type) -> DictConfig:
    unknown = _unknown_key(part, schema)
    if unknown:
        key, known = unknown
        raise UserError(f"{origin}: unknown key {key!r}{nearest(key, known)}")
    try:
        return OmegaConf.merge(config, part)
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        raise UserError(f"{origin}: {f'{key}: ' if key else ''}{_in_words(first_line(error))}") from None


def _in_words(reason: str) -> str:
    """What OmegaConf says of its own classes, for people who do not know these."""
    if "is not a ListConfig" in reason:
        return "takes a list, for example [a, b]"
    if "is not a subclass of" in reason:
        return "is a group of settings; give these one by one, as GROUP.KEY=VALUE or indented below it"
    return reason


def _entries(hint: Any) -> type | None:
    """The dataclass of the entries of a field that is a table of them by name."""
    return next((kind for kind in get_args(hint) if is_dataclass(kind)), None)


def _unknown_key(part: Any, schema: type, prefix: str = "") -> tuple[str, list[str]] | None:
    """The first key that the schema does not have, and the keys that it has there."""
    if not OmegaConf.is_dict(part):
        return None
    known, hints = {spec.name: spec for spec in fields(schema)}, get_type_hints(schema)
    for key in part:
        if key not in known:
            return prefix + str(key), [prefix + name for name in known]
        below = known[key]
        if is_dataclass(below.default_factory):
            found = _unknown_key(part[key], below.default_factory, f"{prefix}{key}.")
        elif table := _entries(hints[key]):
            entries = ((name, part[key][name]) for name in part[key]) if OmegaConf.is_dict(part[key]) else ()
            results = (_unknown_key(entry, table, f"{prefix}{key}.{name}.") for name, entry in entries)
            found = next((result for result in results if result), None)
        else:
            found = None
        if found:
            return found
    return None

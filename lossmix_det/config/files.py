"""Reading a configuration from YAML files with their bases and from KEY=VALUE overrides, and writing it."""

from __future__ import annotations

import os.path
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.nodes import MappingNode, ScalarNode

from lossmix_det.config.fields import Settings, check, entries
from lossmix_det.config.schema import Config
from lossmix_det.config.typed import KINDS, Reader, compose, kinds_of, text
from lossmix_det.errors import UserError, first_line, nearest


def load_config(path: str | Path | None = None, overrides: list[str] | None = None) -> Config:
    """Read a YAML file over the defaults, and ``KEY=VALUE`` overrides over that.

    A setting that names a file (``model.detectron2_config``) is looked for beside the YAML that says so, then from the
    working directory; in an override, from the working directory alone.

    Args:
        path: YAML file; its ``_BASE_`` (relative to it) is read first. Absent: the defaults.
        overrides: ``a.b=value`` strings, the value in YAML.

    Raises:
        UserError: a file is missing or malformed, a key is unknown, a value has the wrong type or lies out of range.
    """
    config = OmegaConf.structured(Config)
    tried: dict[str, Path] = {}
    try:
        for file, content in _read_files(path):
            tried |= _find_files(content, file.parent)
            config = _merge(config, content, str(file))
        for origin, content in _read_overrides(overrides or []):
            tried |= dict.fromkeys((key for key, _ in _files_named(content)), Path())
            config = _merge(config, content, origin)
        result = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(f"{path or 'overrides'}: {first_line(error)}") from None
    _expand_home(result)
    check(result)
    _check_files(config, tried)
    return result


def overrides_set(key: str, overrides: list[str]) -> bool:
    """Whether ``KEY=VALUE`` overrides give a key a value of their own."""
    values = [OmegaConf.select(content, key) for _, content in _read_overrides(overrides)]
    return any(value is not None for value in values)


def save_config(config: Config, path: Path) -> None:
    """Write every setting as YAML that `load_config` reads back to the same configuration."""
    from lossmix_det.files import write_atomically  # loads torch, which --help must not wait for

    write_atomically(path, OmegaConf.to_yaml(OmegaConf.structured(config)))


# ------------------------------------------------------------------------------------------------ reading, merging

# Tables that are one value: a new one takes the place of the old, and is not merged with it.
CHOICES = ("mixing.mixer",)


def _read_files(path: str | Path | None, seen: tuple[Path, ...] = ()) -> list[tuple[Path, DictConfig]]:
    """The file and its chain of bases, the base first."""
    if path is None:
        return []
    path = Path(path)
    if path.resolve() in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; remove one link of the circle")
    base, content = _read_yaml(path)
    chain = _read_files(path.parent / base, (*seen, path.resolve())) if base else []
    return [*chain, (path, content)]


def _read_yaml(path: Path) -> tuple[str | None, DictConfig]:
    """The base that a file names, and its settings."""
    try:
        node, loader = compose(path.read_bytes())
        if not isinstance(node, MappingNode | None):
            raise UserError(f"expected 'key: value' lines, found {KINDS[type(node)]}")
        base = _take_base(node)
        content = Reader(loader).group(node, Config) if node is not None else {}
        content = OmegaConf.create(content)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not content and base is None:
        raise UserError(f"{path}: holds no setting; leave --config-file out for the quick run on generated data")
    return base, content


def _take_base(node: MappingNode | None) -> str | None:
    """Take ``_BASE_`` out of the node of a file."""
    named = [value for key, value in (node.value if node else []) if key.value == "_BASE_"]
    if node is not None:
        node.value = [(key, value) for key, value in node.value if key.value != "_BASE_"]
    for value in named:
        if not isinstance(value, ScalarNode):
            raise UserError(f"_BASE_ must be the path of one YAML file, found {KINDS[type(value)]}")
    return named[-1].value if named else None


def _read_overrides(overrides: list[str]) -> list[tuple[str, DictConfig]]:
    contents = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise UserError(f"override {override!r} is not of the form KEY=VALUE, for example train.steps=100")
        try:
            contents.append((f"override {override!r}", OmegaConf.create(_override(key, value))))
        except (yaml.YAMLError, OmegaConfBaseException, UserError, RecursionError) as error:
            raise UserError(f"override {override!r}: {first_line(error)}") from None
    return contents


def _override(key: str, value: str) -> dict[str, Any]:
    """The nested table that one ``KEY=VALUE`` stands for; a text is taken as it is typed."""
    kind, path = _place(key)
    if kind is str and value and value[0] not in "'\"":
        result: Any = text(value, key)
    else:
        node, loader = compose(value)
        result = Reader(loader).value(node or ScalarNode("", ""), kind, key)
    for name in reversed(path):
        result = {name: result}
    return result


def _place(key: str) -> tuple[Any, list[str]]:
    """The type of a setting, and the names that lead to it; in a table by name, a name may have dots."""
    group: Any = Config
    names, rest = [], key
    while rest and is_dataclass(group):
        name, _, rest = rest.partition(".")
        kinds = kinds_of(group)
        if name not in kinds:
            prefix = ".".join([*names, ""]) if names else ""
            known = [prefix + each for each in kinds]
            raise UserError(f"unknown key {prefix + name!r}{nearest(prefix + name, known)}")
        names.append(name)
        group = kinds[name]
    if not rest:
        return group, names
    if get_origin(group) is not dict:
        raise UserError(f"unknown key {key!r}; {'.'.join(names)} has no settings below it")
    kind, more = _place_in_table(key, get_args(group)[1], rest)
    return kind, [*names, *more]


def _place_in_table(key: str, kind: Any, rest: str) -> tuple[Any, list[str]]:
    """The same for what follows a table by name; where its entries are groups, one setting may follow the name."""
    if not is_dataclass(kind):
        return kind, [rest]
    name, _, last = rest.rpartition(".")
    if last not in kinds_of(kind) or not name:
        name, _, last = rest.partition(".")
    if not last:
        return kind, [name]
    if last not in kinds_of(kind):
        known = [f"{key.removesuffix(last)}{each}" for each in kinds_of(kind)]
        raise UserError(f"unknown key {key!r}{nearest(key, known)}")
    return kinds_of(kind)[last], [name, last]


def _merge(config: DictConfig, content: DictConfig, origin: str) -> DictConfig:
    for key in CHOICES:
        if isinstance(OmegaConf.select(content, key), DictConfig):
            OmegaConf.update(config, key, None)
    try:
        return OmegaConf.unsafe_merge(config, content)  # in place: copying every setting for every file takes longest
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        reason = f"{key}: {_in_words(error)}" if key else _in_words(error)
    raise UserError(f"{origin}: {reason}")


EMPTY = "takes neither null nor nothing; to empty a text, write '', and to empty a list []"
# What OmegaConf says of its own classes, for people who do not know these.
IN_WORDS = {
    "Incompatible value 'None'": EMPTY,
    "is not Optional": EMPTY,
}


def _in_words(error: Exception) -> str:
    reason = first_line(error)
    return next((words for phrase, words in IN_WORDS.items() if phrase in reason), reason)


# ------------------------------------------------------------------------------------- settings that name a file


def _file_settings(settings: Settings, prefix: str = "") -> list[str]:
    """The keys of all settings that are the path of a file."""
    keys = []
    for key, value, limits in entries(settings, prefix):
        if isinstance(value, Settings):
            keys += _file_settings(value, f"{key}.")
        elif "file" in limits:
            keys.append(key)
    return keys


def _files_named(content: DictConfig) -> list[tuple[str, str]]:
    """The keys and values of the settings in a file or an override that name a file of this machine."""
    named = ((key, OmegaConf.select(content, key)) for key in _file_settings(Config()))
    return [(key, value) for key, value in named if isinstance(value, str) and value and "://" not in value]


def _find_files(content: DictConfig, folder: Path) -> dict[str, Path]:
    """Make the paths that are found beside their YAML lead there; the others stay as they are written.

    Args:
        content: of the YAML; changed in place.
        folder: that the YAML lies in.

    Returns:
        By key, the path beside the YAML that was tried.
    """
    tried = {key: folder / value for key, value in _files_named(content)}
    for key, path in tried.items():
        if path.is_file():
            OmegaConf.update(content, key, str(path))
    return tried


def _expand_home(settings: Settings) -> None:
    """Make ``~`` the user's folder in settings that are paths: in KEY=~/x no shell does."""
    for spec in fields(settings):
        value = getattr(settings, spec.name)
        if isinstance(value, Settings):
            _expand_home(value)
        elif "path" in spec.metadata and value.startswith(f"~{os.sep}"):  # ~ alone is a name like any other
            setattr(settings, spec.name, os.path.expanduser(value))


def _check_files(config: DictConfig, tried: dict[str, Path]) -> None:
    """Refuse a file that is in none of the places where it was looked for."""
    for key, value in _files_named(config):
        if not Path(value).is_file():
            places = dict.fromkeys(str(path.resolve()) for path in (tried[key], Path(value)) if path != Path())
            raise UserError(f"{key}={value}: there is no such file; tried {' and '.join(places)}")

"""Reading a configuration from YAML files with their bases and from KEY=VALUE overrides, and writing it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from lossmix_det.config.fields import Settings, check, entries
from lossmix_det.config.schema import Config
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


def _read_files(path: str | Path | None, seen: tuple[Path, ...] = ()) -> list[tuple[Path, DictConfig]]:
    """The file and its chain of bases, the base first."""
    if path is None:
        return []
    path = Path(path)
    if path.resolve() in seen:
        raise UserError(f"{path}: _BASE_ leads back to the file itself; remove one link of the circle")
    content = _read_yaml(path)
    base = content.pop("_BASE_", None)
    if base is not None and not isinstance(base, str):
        raise UserError(f"{path}: _BASE_ must be the path of one YAML file, got {base!r}")
    chain = _read_files(path.parent / base, (*seen, path.resolve())) if base else []
    return [*chain, (path, content)]


def _read_yaml(path: Path) -> DictConfig:
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
    return content


def _read_overrides(overrides: list[str]) -> list[tuple[str, DictConfig]]:
    contents = []
    for text in overrides:
        key, equals, _ = text.partition("=")
        if not equals or not key:
            raise UserError(f"override {text!r} is not of the form KEY=VALUE, for example train.steps=100")
        try:
            contents.append((f"override {text!r}", OmegaConf.from_dotlist([text])))
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            raise UserError(f"override {text!r}: {first_line(error)}") from None
    return contents


def _merge(config: DictConfig, content: DictConfig, origin: str) -> DictConfig:
    try:
        return OmegaConf.merge(config, content)
    except ConfigKeyError as error:
        group = error.full_key.rpartition(".")[0]
        known = [f"{group}.{spec.name}" if group else spec.name for spec in fields(error.object_type)]
        reason = f"unknown key {error.full_key!r}{nearest(error.full_key, known)}"
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        reason = f"{key}: {_in_words(error)}" if key else _in_words(error)
    raise UserError(f"{origin}: {reason}")


# What OmegaConf says of its own classes, for people who do not know these.
IN_WORDS = {
    "is not a ListConfig": "takes a list, for example [a, b]",
    "Incompatible value 'None'": "takes neither null nor nothing; to empty a text, write ''",
    "is not a subclass of": "is a group of settings; give these one by one, as GROUP.KEY=VALUE or indented below it",
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


def _check_files(config: DictConfig, tried: dict[str, Path]) -> None:
    """Refuse a file that is in none of the places where it was looked for."""
    for key, value in _files_named(config):
        if not Path(value).is_file():
            places = dict.fromkeys(str(path.resolve()) for path in (tried[key], Path(value)) if path != Path())
            raise UserError(f"{key}={value}: there is no such file; tried {' and '.join(places)}")

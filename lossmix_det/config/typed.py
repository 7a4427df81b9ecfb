"""YAML read by what a setting takes: where that is text, `yes`, `007` and `2024_01` stay as they are written.

The settings of a group are a table by their names. Lists, tables by name and groups are told apart, with an example.
"""

from __future__ import annotations

import math
import types
import typing
import unicodedata
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from lossmix_det.config.fields import Settings
from lossmix_det.errors import UserError, nearest

MOST = 100_000  # values in one file, those that an alias repeats counted as often as it does
NOTHING = ("", "~", "null", "Null", "NULL")  # how YAML writes that there is no value
UNUSUAL = {".inf": math.inf, "+.inf": math.inf, "-.inf": -math.inf, ".nan": math.nan}  # numbers as YAML writes them
KINDS = {ScalarNode: "a text or number", SequenceNode: "a list", MappingNode: "a table"}


def compose(text: str | bytes) -> tuple[Node | None, yaml.SafeLoader]:
    """The nodes of a YAML text, and the loader that read them.

    Raises:
        YAMLError: it is not YAML.
        UserError: its aliases repeat more values than any configuration has, or lead back to themselves.
    """
    loader = yaml.SafeLoader(text)
    node = loader.get_single_node()
    if node is not None and _size(node, {}) > MOST:
        raise UserError(f"its anchors and aliases stand for more than {MOST} values; write out what is meant")
    return node, loader


def _size(node: Node, known: dict[int, float]) -> float:
    """How many values a node stands for, without visiting what is repeated more than once."""
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: one that holds itself has no end
        parts = node.value if isinstance(node, SequenceNode) else []
        if isinstance(node, MappingNode):
            parts = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


@cache
def kinds_of(group: type[Settings]) -> dict[str, Any]:
    """The type of each setting of a group, by its name."""
    return typing.get_type_hints(group)


class Reader:
    """Makes plain values of nodes, guided by the types of the settings.

    Args:
        loader: that composed the nodes.
    """

    def __init__(self, loader: yaml.SafeLoader) -> None:
        self.loader = loader

    def group(self, node: Node, group: type[Settings], key: str = "") -> dict[str, Any]:
        """The settings of a group that a node gives values to.

        Args:
            node: a table by their names.
            group: the dataclass.
            key: of the group, dotted; empty: all settings.

        Raises:
            UserError: a setting is unknown, is given twice, or is given another kind of value than it takes.
        """
        if not isinstance(node, MappingNode):
            example = next(spec.name for spec in fields(group))
            raise UserError(
                f"{key}: is a group of settings; give these one by one, as GROUP.KEY=VALUE or indented below it, for "
                f"example {key}.{example}; found {KINDS[type(node)]}"
            )
        kinds = kinds_of(group)
        prefix = f"{key}." if key else ""
        result = {}
        for name, value in self._pairs(node, key).items():
            if name not in kinds:
                known = [prefix + each for each in kinds]
                raise UserError(f"unknown key {prefix + name!r}{nearest(prefix + name, known)}")
            result[name] = self.value(value, kinds[name], prefix + name)
        return result

    def value(self, node: Node, kind: Any, key: str) -> Any:
        """The value of one setting.

        Args:
            node: as it is written.
            kind: the type of the setting.
            key: of the setting, for messages.

        Raises:
            UserError: it is of another kind.
        """
        if isinstance(kind, types.UnionType):
            if _is_nothing(node):
                return None
            kind = next(each for each in typing.get_args(kind) if each is not type(None))
        if is_dataclass(kind):
            return None if _is_nothing(node) else self.group(node, kind, key)
        origin, parts = typing.get_origin(kind), typing.get_args(kind)
        if origin is list:
            return self._list(node, parts[0], key)
        if origin is dict:
            return self._table(node, parts[1], key)
        return self._name_or_weights(node, key) if kind is Any else scalar(node, kind, key)

    def _name_or_weights(self, node: Node, key: str) -> str | dict[str, float] | None:
        """One name, or several with their weights: what a setting takes whose type is left open."""
        if isinstance(node, SequenceNode):
            raise UserError(f"{key}: takes a name, or weights by name such as {{mixup: 2, sage: 1}}; found a list")
        if not isinstance(node, MappingNode):
            return scalar(node, str, key)
        table = self._table(node, float, key) or {}
        for name, value in table.items():
            try:
                table[name] = float(value)
            except (TypeError, ValueError):
                raise UserError(f"{key}.{name}={value} must be a number, as in {{mixup: 2, sage: 1}}") from None
        return table

    def _list(self, node: Node, kind: Any, key: str) -> list[Any] | None:
        if _is_nothing(node):
            return None
        if not isinstance(node, SequenceNode):
            example = "[a, b]" if kind is str else "[1, 2]"
            raise UserError(f"{key}: takes a list, for example {example}; found {KINDS[type(node)]}")
        return [self.value(part, kind, f"{key}[{index}]") for index, part in enumerate(node.value)]

    def _table(self, node: Node, kind: Any, key: str) -> dict[str, Any] | None:
        if _is_nothing(node):
            return None
        if not isinstance(node, MappingNode):
            example = "{mine: {format: voc, root: /data/mine}}" if is_dataclass(kind) else "{car: 0.5}"
            raise UserError(f"{key}: takes a table by name, for example {example}; found {KINDS[type(node)]}")
        return {name: self.value(part, kind, f"{key}.{name}") for name, part in self._pairs(node, key).items()}

    def _pairs(self, node: MappingNode, key: str) -> dict[str, Node]:
        """The entries of a table by name; what `<<` takes over comes first."""
        merged = any(name.tag == MERGE for name, _ in node.value)
        own = [_name(name, key) for name, _ in node.value if name.tag != MERGE]
        twice = next((name for index, name in enumerate(own) if name in own[:index]), None)
        if twice is not None:
            raise UserError(f"not valid YAML: {f'{key}.' if key else ''}{twice} is given twice")
        if merged:
            self.loader.flatten_mapping(node)
        return {_name(name, key): value for name, value in node.value}


MERGE = "tag:yaml.org,2002:merge"


def _is_nothing(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.style is None and node.value in NOTHING


def _name(node: Node, key: str) -> str:
    """The name of an entry of the table ``key``."""
    where = f"a name in {key}" if key else "the name of a setting"
    if _is_nothing(node):
        raise UserError(f"{where} is empty; put names that YAML takes for nothing in quotes, for example 'null'")
    return scalar(node, str, where)


def scalar(node: Node, kind: Any, key: str) -> Any:
    """The text of a node, or a number that the setting's own type is to be made of.

    Args:
        node: as it is written.
        kind: of the setting.
        key: of the setting, for messages.

    Raises:
        UserError: it is a list or a table, or a text with what no name has.
    """
    wanted = "a text" if kind is str else f"one {NAMES.get(kind, 'value')}"
    if not isinstance(node, ScalarNode):
        raise UserError(f"{key}: takes {wanted}, found {KINDS[type(node)]}")
    if _is_nothing(node):
        if key.endswith("]"):
            raise UserError(f"{key} is empty; put names that YAML takes for nothing in quotes, for example ['null']")
        return None
    if kind is str:
        return text(node.value, key)
    return UNUSUAL.get(node.value.lower(), node.value)


NAMES = {int: "whole number", float: "number", bool: "of true and false"}


def text(value: str, key: str) -> str:
    """A text that can be a name or a path.

    Raises:
        UserError: it holds a control character, or half of a character.
    """
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise UserError(f"{key}={value!r} holds {character!r}, which no name or path here may have")
    return value

"""What mkdocs adds to Markdown for the pages of docs/: links to files outside, the table of settings.

On a code host the pages are read as they are, and links such as ``../configs/quick.yaml`` lead to the file. The site
has only docs/, so there such a link becomes the path of the file as text, or a link to the host where ``repo_url`` is
set.
"""

from __future__ import annotations

import ast
import inspect
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)\s#]*)(#[^)]*)?\)")
MARK = "<!-- all settings -->"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Called by mkdocs for each page."""
    folder, host = posixpath.dirname(page.file.src_uri), config.repo_url
    markdown = LINK.sub(lambda found: outside(found, folder, host), markdown)
    return markdown.replace(MARK, settings_page()) if MARK in markdown else markdown


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Called by mkdocs with the page as HTML: says to screen readers what the theme's search is."""
    return output.replace('role="dialog">', 'role="dialog" aria-label="Search">')


def outside(found: re.Match[str], folder: str, host: str | None = None) -> str:
    """The link as it is to be on the site.

    Args:
        found: of `LINK`.
        folder: of the page, below docs.
        host: address of the repository, where it is known.

    Raises:
        FileNotFoundError: there is no such file.
    """
    text, target, anchor = found.groups()
    path = posixpath.normpath(posixpath.join("docs", folder, target))
    if path.startswith("docs/"):
        return found[0]
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{found[0]}: there is no {path}")
    if host:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({host.rstrip('/')}/{kind}/main/{path}{anchor or ''})"
    name = text.strip("`")
    return f"`{path}`" if path.endswith(name) else f"{text} (`{path}`)"


# ------------------------------------------------------------------------------------------------- the settings


def settings_page() -> str:
    """A table for each group of settings, from the dataclasses and the comments beside their fields."""
    from lossmix_det.config import Config

    return "\n".join(_groups(Config(), ""))


def _groups(group: Any, prefix: str) -> Iterator[str]:
    from lossmix_det.config import DatasetConfig, Settings

    rows, inner = [], []
    comments = comments_of(type(group))
    for spec in fields(group):
        value, key = getattr(group, spec.name), prefix + spec.name
        if isinstance(value, Settings):
            inner.append((value, f"{key}."))
        elif key == "datasets":
            inner.append((DatasetConfig(), "datasets.<name>."))
        else:
            rows.append(_row(key, spec, comments[spec.name]))
    title = f"`{prefix[:-1]}`" if prefix else "Of the whole run"
    summary = (inspect.getdoc(type(group)) or "").splitlines()[0] if prefix else ""
    yield f"## {title}\n\n{summary}\n\n| setting | meaning | default | takes |\n|---|---|---|---|"
    yield from rows
    yield ""
    for value, below in inner:
        yield from _groups(value, below)


def _row(key: str, spec: Any, comment: str) -> str:
    default = spec.default_factory() if spec.default is MISSING else spec.default
    cells = (f"`{key}`", comment.replace("<", "&lt;"), f"`{_text(default)}`", _takes(spec))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _text(value: Any) -> str:
    """As YAML writes it."""
    words = {None: "null", True: "true", False: "false", "": "''"}
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return words[value] if value is None or isinstance(value, bool) or value == "" else str(value)


def _takes(spec: Any) -> str:
    limits = spec.metadata
    if "choices" in limits:
        return ", ".join(f"`{choice}`" for choice in limits["choices"])
    kind = str(spec.type).replace(" | None", " or null").replace("str", "text").replace("Any", "name or table")
    kind = kind.replace("int", "whole number").replace("float", "number").replace("bool", "true or false")
    kind = re.sub(r"list\[(.*?)\]", r"list of \1s", kind).replace("dict[text, number]", "numbers by name")
    low, high = limits.get("low"), limits.get("high")
    if low is None or low == float("-inf"):
        return kind
    return f"{kind}, {low:g} … {high:g}" if high != float("inf") else f"{kind}, at least {low:g}"


def comments_of(group: type) -> dict[str, str]:
    """The comment of each field of a dataclass: behind it, and in the lines above it."""
    lines = inspect.getsource(group).splitlines()
    result = {}
    for node in ast.parse(inspect.cleandoc("\n".join(lines))).body[0].body:
        if isinstance(node, ast.AnnAssign):
            above, number = [], node.lineno - 2
            while lines[number].strip().startswith("#"):
                above.insert(0, lines[number].strip(" #"))
                number -= 1
            behind = lines[node.end_lineno - 1][node.end_col_offset :].strip(" #")
            result[node.target.id] = "; ".join(filter(None, (" ".join(above), behind)))
    return result

"""What the pages name exists: commands with their options, settings with their values, files, headings, messages."""

from __future__ import annotations

import ast
import re
from dataclasses import fields
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from pages import NAMES, PAGES, anchors, blocks, calls, prose, read, slug, spans
from runs import ROOT

from lossmix_det.commands import COMMANDS
from lossmix_det.config import Config, as_dict, flat, load_config
from lossmix_det.config.typed import Reader, compose
from lossmix_det.errors import UserError

GROUPS = [spec.name for spec in fields(Config)]
KEYS = {*flat(as_dict(Config())), "pseudo_labels.class_scores", "train.loss_weights"}
TOOLS = {"train_net": "train", "convert_dataset": "convert"}  # where a script has another name than its command
EXAMPLES = {"count"}  # commands that CONTRIBUTING.md shows how to add
YOURS = ("configs/my", "my", "photos")  # files of the reader


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


# ----------------------------------------------------------------------------------------------------- commands


def parser_of(call):
    if call.tool == "benchmark":
        return import_module("benchmarks.suites").build_parser()
    if call.tool:
        assert (ROOT / "tools" / f"{call.tool}.py").is_file()
    module, _ = COMMANDS[call.command or TOOLS.get(call.tool, call.tool)]
    return import_module(module).build_parser("lossmix")


def check(call, capsys) -> None:
    """Its options are known, and its settings are valid over the file that it names."""
    settings = [word for word in call.words if re.match(rf"({'|'.join(GROUPS)})[.=]", word) and "=" in word]
    words = [word for word in call.words if word not in settings and not re.match(r"\w+=", word)]
    try:
        options = parser_of(call).parse_args(words)
    except SystemExit as end:
        pytest.fail(f"{call}: {capsys.readouterr().err}") if end.code else None
        return
    file = getattr(options, "config_file", None)
    assert file is None or Path(file).is_file() or file.startswith(YOURS), file
    if getattr(options, "suite", None) == "people_art_cost":  # over the files of its methods
        suites, cost = (import_module(f"benchmarks.{name}") for name in ("suites", "method_cost"))
        names = suites.PEOPLE.names_of(options.methods or ["*"])
        assert [cost.config_of(method, settings) for method in suites.PEOPLE.methods if method.name in names]
    else:
        load_config(file if file and Path(file).is_file() else None, settings)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one_that_the_program_takes(name, capsys):
    lines = [line for block in blocks(read(name), "bash", "") for line in block.splitlines()]
    for call in calls(lines):
        if call.command not in EXAMPLES:
            check(call, capsys)


@pytest.mark.parametrize("name", NAMES)
def test_every_command_in_the_text_exists(name, capsys):
    for call in calls([span for span in spans(read(name)) if "…" not in span]):
        if call.command in EXAMPLES:
            continue
        if call.words:
            check(call, capsys)
        elif call.command:
            assert call.command in COMMANDS
        else:
            assert (ROOT / "tools" / f"{call.tool}.py").is_file()


def test_the_page_of_commands_has_them_all():
    assert re.findall(r"^\| `lossmix (\w+)` \|", read("docs/commands.md"), re.MULTILINE) == list(COMMANDS)


# ----------------------------------------------------------------------------------------------------- settings


def is_known(key: str) -> bool:
    """Whether a key, or the group or family ``a.b.*``, is one of the configuration."""
    if key.startswith("datasets."):
        return True
    key = key.removesuffix(".*")
    return key in KEYS or any(known.startswith(f"{key}.") or key.startswith(f"{known}.") for known in KEYS)


@cache
def fault_of(setting: str) -> str:
    """What is said about a setting that stands alone; one that needs others beside it is not at fault."""
    try:
        load_config(None, [setting.removesuffix(",")])
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_in_the_text_exists_and_takes_the_value(name):
    for word in " ".join(spans(read(name))).split():
        found = re.fullmatch(rf"(({'|'.join(GROUPS)})\.[\w.*]+)(\[c\])?(=.+)?,?", word)
        if found is None or Path(word).suffix in {".yaml", ".py", ".pth"} or found[1].endswith("."):
            continue
        assert is_known(found[1]), word
        if found[4] and "…" not in word and "<" not in word:
            assert not re.search(r"unknown key|is not one of|lies outside|takes |must ", fault_of(word)), word


@pytest.mark.parametrize("name", NAMES)
def test_every_group_of_settings_in_the_text_exists(name):
    for span in spans(read(name)):
        if re.fullmatch(rf"({'|'.join(GROUPS)}): ?\{{.*\}}", span):
            node, loader = compose(span)
            assert Reader(loader).group(node, Config)


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_is_a_configuration(name, tmp_path):
    for block in blocks(read(name), "yaml"):
        (tmp_path / "it.yaml").write_text(re.sub(r"^_BASE_:.*\n", "", block, flags=re.MULTILINE))
        load_config(tmp_path / "it.yaml")


# ------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("path", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_a_heading(path):
    from benchmarks.suites import SUITES

    yet_to_come = {ROOT / page for _, page in SUITES.values()}
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path.read_text())):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        place = (path.parent / file).resolve() if file else path
        assert place.exists() or place in yet_to_come, f"{path}: {target}"
        if anchor and place.suffix == ".md":
            assert anchor in anchors(place), f"{path}: {target}"


def test_anchors_are_those_of_code_hosts():
    assert slug("Canvases: what an image's neighbours change") == "canvases-what-an-images-neighbours-change"
    assert slug("`timm/…`, a network of timm") == "timm-a-network-of-timm"


# ---------------------------------------------------------------------------------------------------- messages


HOLE = "\0"  # what a message fills in
FILLED = re.compile(r"%[-\d.]*[sdrgf]|\{\w*\}")


def text_of(node: ast.AST) -> str:
    """A text of the code with holes in it; empty where it is no text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(part) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return FILLED.sub(HOLE, node.value) if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def messages() -> dict[str, re.Pattern]:
    """A pattern for every text of the package that is long enough to be a message."""
    nodes = [node for path in (ROOT / "lossmix_det").rglob("*.py") for node in ast.walk(ast.parse(path.read_text()))]
    parts = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    texts = {text_of(node) for node in nodes if id(node) not in parts}
    long = [text for text in texts if len(text.replace(HOLE, "")) > 15]
    return {text: re.compile(".{0,60}?".join(map(re.escape, text.split(HOLE)))) for text in long}


def quoted() -> list[str]:
    pages = ("docs/troubleshooting.md", "docs/own_data.md")
    lines = [line for name in pages for block in blocks(read(name), "text") for line in block.splitlines()]
    return [line.removeprefix("note: ") for line in lines if " " in line]


def left_over(line: str, known: dict[str, re.Pattern]) -> str:
    """What is left of a quoted message without the messages of the code that are in it."""
    for text in sorted(known, key=len, reverse=True):
        found = known[text].search(line)
        if found and len(text.replace(HOLE, "")) >= 0.55 * (found.end() - found.start()):
            return left_over(line[: found.start()], known) + left_over(line[found.end() :], known)
    return line


def test_every_quoted_message_is_one_of_the_code():
    known = messages()
    assert len(quoted()) > 25
    for line in quoted():
        rest = left_over(line, known)
        assert re.sub(r"[…\W\d]", "", rest) == "", f"{line}\nnot in the code: {rest!r}"
    assert left_over("the teacher has grown a beard overnight", known) == "the teacher has grown a beard overnight"

"""The house: imports only go down, there is no circle, and few files know Detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lossmix_det"
LEVELS = {
    "__init__": 0,
    "errors": 1,
    "structures": 1,
    "files": 1,
    "config": 2,
    "mixing": 3,
    "data": 3,
    "engines": 3,
    "adaptation": 4,
    "evaluation": 4,
    "detectron2_plugin": 4,
    "report": 5,
    "training": 6,
    "commands": 7,
}
APART = [{"mixing", "data", "engines"}, {"adaptation", "evaluation", "detectron2_plugin"}]


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, part of the package) of every import of ours, also of those inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module] if node.module != "lossmix_det" else [f"lossmix_det.{n.name}" for n in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(node.lineno, name.split(".")[1]) for name in names if name.startswith("lossmix_det.")]
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_only_go_down(path):
    own = part_of(path)
    for line, other in imports(path):
        assert LEVELS[other] <= LEVELS[own], f"{path}:{line} imports {other}, which lies above {own}"
        assert own == other or not any({own, other} <= rooms for rooms in APART), f"{path}:{line}: {own} knows {other}"


DETECTRON2 = ("engines/detectron2", "data/formats/detectron2.py", "detectron2_plugin.py")


def test_detectron2_is_known_to_few():
    for path in FILES:
        words = {alias for node in ast.walk(ast.parse(path.read_text())) for alias in imported(node)}
        assert "detectron2" not in words or str(path.relative_to(PACKAGE)).startswith(DETECTRON2)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_every_part_has_its_floor():
    assert {part_of(path) for path in FILES} == set(LEVELS)

"""Imports only go down, and neighbours on a floor do not know each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lossmix_det"
FLOORS = {
    "errors": 1,
    "structures": 1,
    "config": 1,
    "config_files": 1,
    "config_rules": 1,
    "checkpoint": 1,
    "mixing": 2,
    "data": 2,
    "engines": 2,
    "signals": 1,
    "lock": 1,
    "phases": 3,
    "alignment": 3,
    "pseudo_labels": 3,
    "guards": 3,
    "adaptation": 3,
    "drawing": 3,
    "student": 3,
    "evaluation": 3,
    "teacher": 3,
    "export": 3,
    "optimization": 3,
    "resume": 3,
    "runlog": 3,
    "plugin": 4,
    "scoring": 4,
    "state": 4,
    "streams": 4,
    "publish": 4,
    "trainer": 4,
    "cli": 5,
    "report": 6,
    "__init__": 0,
}
APART = {"mixing", "data", "engines"}


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
        assert FLOORS[other] <= FLOORS[own], f"{path}:{line} imports {other}, which lies above {own}"
        assert not (own in APART and other in APART and own != other), f"{path}:{line}: {own} knows {other}"


DETECTRON2 = {"detectron2_rcnn.py", "detectron2_vgg.py", "detectron2_catalog.py", "plugin.py", "speed.py"}


def test_detectron2_is_known_to_few():
    for path in FILES:
        words = {alias for node in ast.walk(ast.parse(path.read_text())) for alias in imported(node)}
        assert "detectron2" not in words or path.name in DETECTRON2


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_every_part_has_its_floor():
    assert {part_of(path) for path in FILES} == set(FLOORS)

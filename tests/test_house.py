"""The house: imports only go down, there is no circle, and few files know Detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "lossmix_det"
LEVELS = {
    "__init__": 0,
    "errors": 1,
    "visible": 1,
    "instances": 1,
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


FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in FILES}


def room_of(module: str) -> str:
    return [*module.split("."), "__init__"][1]


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module) of every import of ours, also of those inside functions and for types alone."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} is relative"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found += [(node.lineno, name) for name in names if name.split(".")[0] == PACKAGE.name]
    return found


GRAPH = {module: {name for _, name in imports(path)} for module, path in MODULES.items()}


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_imports_only_go_down(path):
    room = room_of(name_of(path))
    for line, module in imports(path):
        other = room_of(module)
        assert LEVELS[other] <= LEVELS[room], f"{path}:{line} imports {other}, which lies above {room}"
        assert room == other or not any({room, other} <= rooms for rooms in APART), (
            f"{path}:{line}: {room} knows {other}"
        )


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that lead back to themselves, by following imports from each."""
    found = []
    for start in graph:
        ahead, seen = list(graph[start]), set()
        while ahead:
            module = ahead.pop()
            if module not in seen:
                seen.add(module)
                ahead += graph.get(module, ())
        if start in seen:
            found.append([start, *sorted(module for module in seen if module != start)])
    return found


def test_there_is_no_circle_not_even_inside_a_room():
    assert [circle[0] for circle in circles(GRAPH)] == []


def test_a_circle_would_be_seen():
    assert [circle[0] for circle in circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}})] == ["b", "c"]


DETECTRON2 = ("engines/detectron2", "data/formats/detectron2.py", "detectron2_plugin")


def test_detectron2_is_known_to_few():
    for path in FILES:
        words = {alias for node in ast.walk(ast.parse(path.read_text())) for alias in imported(node)}
        assert "detectron2" not in words or str(path.relative_to(PACKAGE)).startswith(DETECTRON2)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.split(".")[0] for alias in node.names]
    return [node.module.split(".")[0]] if isinstance(node, ast.ImportFrom) and node.module else []


def test_every_room_has_its_level():
    assert {room_of(module) for module in MODULES} == set(LEVELS)


def test_a_reader_can_keep_the_rooms_in_mind():
    assert len(LEVELS) - 1 <= 16


def test_no_class_has_more_than_fifteen_methods():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = [child.name for child in node.body if isinstance(child, ast.FunctionDef)]
                assert len(methods) <= 15, f"{path}: {node.name} has {len(methods)}"

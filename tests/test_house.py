"""The floors of the house: imports point down, siblings do not see each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cgnn"
FLOORS = {
    "cli": 11, "plots": 10, "screen": 9, "calculator": 9, "predict": 8, "train": 7,
    "data": 6, "model": 6, "graph": 5, "config": 4, "targets": 3, "strict": 2, "physics": 1, "kernels": 1,
    "yaml_text": 1,
    "files": 0.5, "errors": 0,
}  # fmt: skip
"""Room -> floor. ``files`` (safe writing) stands on the ground floor beside ``errors``, which it uses."""

FORBIDDEN_ROOMS = {"utils", "common", "base", "core", "helpers", "manager", "mixin"}
FORBIDDEN_CALLS = {"eval", "exec", "__import__"}
FORBIDDEN_IMPORTS = {"pickle", "joblib", "dill", "shelve", "marshal"}
FORBIDDEN_NAMES = {"MontyDecoder", "loadfn", "torch_load", "InMemoryDataset"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    return parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_point_down(file: Path) -> None:
    here = room(file.relative_to(PACKAGE).parts)
    if here == "__init__":
        return  # the face of the package imports lazily from every floor
    for name in imports(ast.parse(file.read_text())):
        parts = name.split(".")
        if parts[0] != "cgnn" or len(parts) < 2 or parts[1] not in FLOORS or parts[1] == here:
            continue
        assert FLOORS[parts[1]] < FLOORS[here], f"{here} imports {parts[1]}, which is not below it"


def test_every_room_has_a_floor_and_a_name() -> None:
    rooms = {room(file.relative_to(PACKAGE).parts) for file in FILES} - {"__init__"}
    assert rooms <= set(FLOORS)
    assert not {file.stem for file in FILES} & FORBIDDEN_ROOMS


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_nothing_is_unpickled_or_evaluated(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert not FORBIDDEN_IMPORTS & {name.split(".")[0] for name in imports(tree)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            assert node.id not in FORBIDDEN_NAMES
        if isinstance(node, ast.Attribute):
            assert node.attr not in FORBIDDEN_NAMES
            assert (getattr(node.value, "id", ""), node.attr) != ("torch", "load")
        if isinstance(node, ast.Call):
            assert getattr(node.func, "id", "") not in FORBIDDEN_CALLS
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert not keywords.get("allow_pickle")
            assert not keywords.get("shell")


@pytest.mark.parametrize(
    "package",
    [
        "",
        "graph",
        "data",
        "data/engines",
        "data/reading",
        "data/store",
        "kernels",
        "model",
        "physics",
        "predict",
        "train",
        "train/ensembles",
        "train/pu",
        "train/trust",
        "train/ways",
        "plots",
        "screen",
    ],
)
def test_faces_are_narrow(package: str) -> None:
    tree = ast.parse((PACKAGE / package / "__init__.py").read_text())
    names = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    assert all(len(entries) <= 8 for entries in names)


def test_files_and_functions_keep_their_size() -> None:
    for file in FILES:
        text = file.read_text()
        assert len(text.splitlines()) <= 450, f"{file}: think about its parts"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name} is too long"

"""The type stubs name nothing that the real modules do not have."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

STUBS = Path(__file__).parent.parent.parent / "stubs"
# Only mypy sees this class; its members are names of the module.
MODULE = "Tensorrt"


def list_names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """Yield what a module or class of a stub defines."""
    for statement in body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield statement.name, statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            yield statement.target.id, statement
        elif isinstance(statement, ast.Assign):
            yield from ((str(target.id), statement) for target in statement.targets)


def find_missing(stub: Path, module: ModuleType) -> list[str]:
    """Return all names of a stub that the module does not have."""
    missing = []
    for name, statement in list_names(ast.parse(stub.read_text()).body):
        real = module if name == MODULE else getattr(module, name, None)
        if real is None:
            missing.append(name)
            continue
        body = statement.body if isinstance(statement, ast.ClassDef) else []
        missing += [f"{name}.{key}" for key, _ in list_names(body) if not hasattr(real, key)]
    return missing


@pytest.mark.parametrize(
    ("stub", "module", "package"),
    [
        ("tensorrt/__init__.pyi", "tensorrt_rtx", "tensorrt-rtx-cu13"),
        ("cuda/bindings/runtime.pyi", "cuda.bindings.runtime", "cuda-bindings"),
    ],
)
def test_the_real_module_has_all_that_the_stub_names(stub: str, module: str, package: str) -> None:
    pytest.importorskip(module.partition(".")[0], reason=f"pip install {package}")
    assert find_missing(STUBS / stub, importlib.import_module(module)) == []


def test_a_name_that_does_not_exist_is_found(tmp_path: Path) -> None:
    stub = tmp_path / "stub.pyi"
    stub.write_text(
        "class Path:\n"
        "    name: str\n"
        "    def exists(self) -> bool: ...\n"
        "    def vanish(self) -> None: ...\n"
        "class Course: ...\n"
        "def PurePath() -> None: ...\n"
        "separator: str\n"
    )
    pathlib = importlib.import_module("pathlib")
    assert find_missing(stub, pathlib) == ["Path.vanish", "Course", "separator"]


def test_classes_that_the_module_is_asked_for_are_in_the_stub() -> None:
    body = ast.parse((STUBS / "tensorrt/__init__.pyi").read_text()).body
    names = dict(list_names(body))
    module = names[MODULE]
    assert isinstance(module, ast.ClassDef)
    asked = {name for name, _ in list_names(module.body)} - {"__version__"}
    assert asked <= names.keys()

"""A test that asserts nothing passes whatever happens: each asserts, expects an error, or calls what does."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

from utils.paths import PROJECT_ROOT

FILES = sorted((PROJECT_ROOT / "tests").rglob("*.py"))
EXPECTS = {"raises", "warns", "fail"}
"""Of pytest: each fails where what it waits for does not come."""
Functions = dict[str, ast.AST]


def functions_of(tree: ast.AST) -> Functions:
    """Every function of a file by name, those of classes and those inside others too."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name: node for node in ast.walk(tree) if isinstance(node, kinds)}


@cache
def helpers() -> Functions:
    """Every function of the tests that is no test itself, by name: one file's may be called in another."""
    found: Functions = {}
    for path in FILES:
        functions = functions_of(ast.parse(path.read_text(encoding="utf-8")))
        found |= {name: node for name, node in functions.items() if not name.startswith("test_")}
    return found


def called(node: ast.AST) -> set[str]:
    """The names of what is called inside, without what they are attributes of."""
    calls = [part.func for part in ast.walk(node) if isinstance(part, ast.Call)]
    return {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}


def checks(node: ast.AST, known: Functions, *, seen: frozenset[str] = frozenset()) -> bool:
    """Whether a function asserts, expects an error, or calls a helper that does."""
    if any(isinstance(part, ast.Assert) for part in ast.walk(node)):
        return True
    names = called(node)
    if names & EXPECTS or any(name.startswith("assert_") for name in names):
        return True
    return any(checks(known[n], known, seen=seen | {n}) for n in names & known.keys() if n not in seen)


@pytest.mark.parametrize("path", [p for p in FILES if p.name.startswith("test_")], ids=lambda p: p.stem)
def test_every_test_checks_something(path: Path):
    known = helpers()
    tests = functions_of(ast.parse(path.read_text(encoding="utf-8")))
    idle = [n for n, node in tests.items() if n.startswith("test_") and not checks(node, known)]
    assert not idle, f"{path.name}: no assertion in {', '.join(idle)}"


def test_an_idle_test_is_seen():
    tree = ast.parse(
        "def test_idle():\n    run()\ndef test_good():\n    same(1, 1)\ndef same(a, b):\n    assert a == b"
    )
    tests = functions_of(tree)
    assert not checks(tests["test_idle"], tests) and checks(tests["test_good"], tests)

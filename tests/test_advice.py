"""The flags that messages name are taken by the command: otherwise its reader is sent in a circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.commands import LAUNCHERS, parser_of
from utils.config import Config
from utils.family_flags import REFUSED
from utils.flag_history import REMOVED
from utils.paths import PROJECT_ROOT

FLAG = re.compile(r"(?<![\w-])--(?:no-)?([a-z]\w*)")
FOLDERS = ("models", "layers", "utils", "data_provider", "scripts")
OTHERS = {"help", "ntasks", "porcelain", "deps", "version"}
"""argparse's own, Slurm's, git's and pip's."""
SCRIPTS = sorted(
    path for path in (PROJECT_ROOT / "scripts").glob("*.py") if path.stem not in ("__init__", "quickstart")
)


def flags_of(parser_names: list[str]) -> set[str]:
    return {name.removeprefix("--").removeprefix("no-") for name in parser_names if name.startswith("--")}


@cache
def taken_by(module: str) -> set[str]:
    """The flags of a command; the preflight takes those of a run, and three of its own."""
    if module == "scripts.preflight":
        return {*Config().flat(), "no_timing", "trace", "list_llms"}
    return flags_of([name for action in parser_of(module)._actions for name in action.option_strings])


def texts(node: ast.AST) -> Iterator[str]:
    """Every string in the code below a node."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value


def messages(path: Path) -> Iterator[str]:
    """The texts of errors that a file raises for its user."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in ("UserError", "error"):
            yield " ".join(texts(node))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_script_s_errors_name_its_own_flags(path):
    """`ablation.py` without data asked for --root_path, which it did not have."""
    own = taken_by(f"scripts.{path.stem}")
    for message in messages(path):
        if not re.search(r"run_main|\bruns?\b|train", message):
            assert set(FLAG.findall(message)) <= own, message


def test_a_flag_that_any_text_names_exists():
    known = {*Config().flat(), "preset", *REFUSED, *REMOVED, *OTHERS}
    commands = [*(f"scripts.{path.stem}" for path in SCRIPTS), "data_provider.synthetic"]
    known |= set().union(*(taken_by(command) for command in commands))
    for launcher in LAUNCHERS.values():
        known |= flags_of([name for action in launcher()._actions for name in action.option_strings])
    for folder in FOLDERS:
        for path in (PROJECT_ROOT / folder).rglob("*.py"):
            named = set(FLAG.findall(" ".join(texts(ast.parse(path.read_text("utf-8"))))))
            assert named <= known, f"{path}: {named - known}"

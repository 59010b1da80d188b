"""The wheel: one package `timellm_enhanced`, so that names as general as ``utils`` lie in nobody's way.

pyproject.toml names this file as what builds it (PEP 517). The modules of a checkout import each other as
``utils.config``, those of the wheel as ``timellm_enhanced.utils.config``: each import statement is
rewritten at its place in the syntax tree, and nothing else is. setuptools makes the wheel of that copy,
in a temporary folder: nothing is left in the checkout. The package's own ``__init__`` is that of
`models`, the door.

In the wheel are the floors, the scripts that a user of a run calls, and what these import. Studies,
benchmarks, crash tests and the quick start work on the checkout itself, and stay there.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator, Mapping
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from setuptools import build_meta

PACKAGE = "timellm_enhanced"
FLOORS = ("utils", "data_provider", "layers", "models")
"""Packages that go into the wheel whole."""
COMMANDS = (
    "predict", "preflight", "plot", "explain", "report", "runs", "verify_checkpoint", "export_adapters",
    "m4_summary", "text_audit",
)  # fmt: skip
"""Scripts that do, with what they import."""
ENTRIES = ("run_main", "run_main_enhanced", *(f"scripts.{name}" for name in COMMANDS))
ROOMS = (*FLOORS, "scripts", "run_main", "run_main_enhanced")
DATA = ("scripts/presets", "scripts/accelerate")
"""Folders that do, beside what lies in the folders of the modules."""
PROJECT = ("pyproject.toml", "README.md", "LICENSE")
"""What the wheel's metadata are made from."""


class BuildError(Exception):
    """The code can not be moved into one package as it stands."""


def build_wheel(
    wheel_directory: str,
    config_settings: Mapping[str, Any] | None = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel of the checkout that is the current folder; its file name."""
    root, out = Path.cwd(), Path(wheel_directory).resolve()
    with TemporaryDirectory() as folder:
        write_package(root, Path(folder))
        for name in PROJECT:
            shutil.copy(root / name, folder)
        with chdir(folder):
            return build_meta.build_wheel(str(out), config_settings)


def build_sdist(sdist_directory: str, config_settings: Mapping[str, Any] | None = None) -> str:
    """There is none: the sources are the checkout.

    Raises:
        BuildError: always.
    """
    raise BuildError(
        "a source distribution is not offered; build the wheel of a checkout: pip wheel --no-deps ."
    )


def write_package(root: Path, target: Path) -> None:
    """Write the package of the checkout ``root`` into the folder ``target``.

    Raises:
        BuildError: a module names another in a way that can not be rewritten.
    """
    known = modules(root)
    names = shipped(known)
    for name in sorted(names):
        place = target / PACKAGE / known[name].relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        text = known[name].read_text(encoding="utf-8")
        place.write_text(rewritten(text, known, where=str(known[name])), encoding="utf-8")
    shutil.copy(target / PACKAGE / "models" / "__init__.py", target / PACKAGE / "__init__.py")
    for path in data_files(root, {known[name].parent for name in names}):
        place = target / PACKAGE / path.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)


def modules(root: Path) -> dict[str, Path]:
    """Every module of a checkout that could go into the package, by its dotted name there."""
    paths = [path for room in ROOMS for path in (root / f"{room}.py", *(root / room).rglob("*.py"))]
    found = {}
    for path in paths:
        if path.is_file():
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def shipped(known: Mapping[str, Path]) -> set[str]:
    """The names of the modules that go into the package: the floors, the entries, and what these import.

    Raises:
        BuildError: an entry is not among the modules.
    """
    if missing := [name for name in ENTRIES if name not in known]:
        raise BuildError(f"expected the modules {', '.join(missing)}, which ENTRIES names; found none")
    waiting = [name for name in known if name.split(".")[0] in FLOORS or name in ENTRIES]
    names: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in names:
            names.add(name)
            waiting += imported(known[name].read_text(encoding="utf-8"), known)
            waiting += [above for above in [name.rpartition(".")[0]] if above in known]
    return names


def imported(text: str, known: Mapping[str, Path]) -> Iterator[str]:
    """The modules of this project that a module's text imports, in functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from (name for name in names if name in known)


def data_files(root: Path, folders: set[Path]) -> Iterator[Path]:
    """What the modules in these folders read beside them; of the scripts' own folder what `DATA` names."""
    wanted = [*(root / name for name in (*FLOORS, *DATA)), *(folders - {root, root / "scripts"})]
    for folder in wanted:
        for path in folder.rglob("*"):
            if path.is_file() and path.suffix != ".py" and "__pycache__" not in path.parts:
                yield path


def rewritten(text: str, known: Mapping[str, Path], *, where: str) -> str:
    """A module's text with its imports of `known` modules as they are in the package.

    Args:
        text: of the module.
        known: the project's modules, by their names in a checkout.
        where: the module's file, for errors.

    Raises:
        BuildError: as `write_package`.
    """
    tree = ast.parse(text)
    _refuse_names_in_strings(tree, known, where)
    lines = text.encode().splitlines(keepends=True)  # places in the tree count bytes of UTF-8
    for line, column, addition in sorted(_additions(tree, where), reverse=True):
        content = lines[line - 1]
        lines[line - 1] = content[:column] + addition.encode() + content[column:]
    moved = b"".join(lines).decode()
    left = [name for name in _top_names(ast.parse(moved)) if name in ROOMS]
    if left:
        raise BuildError(
            f"{where}: expected each import on lines of the usual form, found one of {left[0]} that is not"
        )
    return moved


def _additions(tree: ast.Module, where: str) -> Iterator[tuple[int, int, str]]:
    """(line, column in bytes, text to add there) for each import of this project's modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and (node.module or "").split(".")[0] in ROOMS:
                yield node.lineno, node.col_offset + len("from "), f"{PACKAGE}."
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] not in ROOMS:
                    continue
                if alias.asname is not None:
                    yield alias.lineno, alias.col_offset, f"{PACKAGE}."
                elif "." not in alias.name and len(node.names) == 1:
                    yield node.lineno, node.col_offset, f"from {PACKAGE} "
                else:
                    raise BuildError(
                        f"{where}, line {node.lineno}: expected `from ... import`, or `as` and a name, found "
                        f"`import {alias.name}` or several modules in one statement"
                    )


def _refuse_names_in_strings(tree: ast.Module, known: Mapping[str, Path], where: str) -> None:
    """Raise where a string that is no docstring names a module of the project by its name in a checkout."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in prose:
            continue
        for word in node.value.split():
            name = word.strip(".`'\"(),:")
            if "." in name and name in known:
                raise BuildError(
                    f"{where}, line {node.lineno}: expected a module's own __name__ or __spec__.name, found "
                    f"{name} in a string, which is not its name in the package"
                )


def _top_names(tree: ast.Module) -> Iterator[str]:
    """What absolute imports begin with."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module.split(".")[0]

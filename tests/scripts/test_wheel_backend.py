"""What the wheel's modules say: the checkout's text, its imports aside."""

from __future__ import annotations

import ast

import pytest

from scripts.distribution.wheel_backend import (
    FLOORS,
    ROOMS,
    BuildError,
    build_sdist,
    modules,
    rewritten,
    shipped,
)
from utils.paths import PROJECT_ROOT

KNOWN = modules(PROJECT_ROOT)


def places(text: str, *, package: str = "") -> dict[int, str]:
    """Line and room of each import of the project's modules, as they are called within ``package``."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        if names[0].startswith(package) and names[0].removeprefix(package).split(".")[0] in ROOMS:
            found[node.lineno] = " ".join(name.removeprefix(package) for name in names)
    return found


def test_every_module_is_what_it_was_but_for_its_imports():
    """Rewritten as text, a docstring, a key or a file's name that looks like an import would change too."""
    for name in shipped(KNOWN):
        text = KNOWN[name].read_text(encoding="utf-8")
        moved = rewritten(text, KNOWN, where=name)
        ours = places(text)
        assert places(moved, package="timellm_enhanced.") == ours, name
        pairs = enumerate(zip(text.splitlines(), moved.splitlines(), strict=True), 1)
        assert {line for line, (before, after) in pairs if before != after} == ours.keys(), name


@pytest.mark.parametrize(
    "text, expected",
    [
        ("import run_main\n", "from timellm_enhanced import run_main\n"),
        ("import utils.paths as p, os\n", "import timellm_enhanced.utils.paths as p, os\n"),
        ('x = "é"; from utils import paths\n', 'x = "é"; from timellm_enhanced.utils import paths\n'),
        (
            "def f():\n    from layers.llm.load import (\n        load_llm,\n    )\n",
            "def f():\n    from timellm_enhanced.layers.llm.load import (\n        load_llm,\n    )\n",
        ),
        ("import os\nfrom utilsx import models\n", "import os\nfrom utilsx import models\n"),
        ("from . import utils\n", "from . import utils\n"),
        ('"""See utils.paths."""\nx = "models"\n', '"""See utils.paths."""\nx = "models"\n'),
    ],
)
def test_an_import_of_ours_is_moved_wherever_it_stands_and_nothing_else(text, expected):
    assert rewritten(text, KNOWN, where="x.py") == expected


@pytest.mark.parametrize(
    "text",
    [
        "import os\nimport utils.paths\n",
        "import os\nimport run_main, os\n",
        'import os\ncommand = ["-m", "data_provider.synthetic"]\n',
        'import os\ncommand = f"python -m data_provider.synthetic {os.sep}"\n',
    ],
)
def test_what_can_not_be_moved_ends_the_build_with_its_line(text):
    """A module that is named in a string would be looked for at its old place, in the user's own folders."""
    with pytest.raises(BuildError, match="x.py, line 2: expected"):
        rewritten(text, KNOWN, where="x.py")


def test_the_wheel_holds_the_floors_and_no_tool_of_the_checkout():
    names = shipped(KNOWN)
    assert {name for name in KNOWN if name.split(".")[0] in FLOORS} <= names
    assert {"run_main", "run_main_enhanced", "scripts.predict"} <= names
    tools = ("scripts.bench", "scripts.crash", "scripts.distribution")
    assert not [name for name in names if name.startswith(tools)]


def test_a_command_that_is_no_longer_there_ends_the_build():
    """Left out in silence, its users would find out."""
    with pytest.raises(BuildError, match="scripts.m4_summary"):
        shipped({name: path for name, path in KNOWN.items() if name != "scripts.m4_summary"})


def test_a_source_distribution_is_refused_with_what_to_do():
    with pytest.raises(BuildError, match="pip wheel --no-deps"):
        build_sdist(".")

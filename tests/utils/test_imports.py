"""The house has floors: imports only go down."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

import models
from utils.paths import PROJECT_ROOT

FLOORS = {
    "utils": {"utils"},
    "layers": {"utils", "layers"},
    "data_provider": {"utils", "data_provider"},
    "models": {"utils", "layers", "models", "data_provider"},
}
DOOR = {
    f"models.{name}" for name in ("forecaster", "trained", "loading", "forecast_tables", "panel_forecasts")
}
"""What a trained run is loaded by, to forecast tables: of `models` it alone reads data."""
WING = "utils.training.distributed"
ENGINE = (f"{WING}.fsdp", "layers.llm.fsdp")
"""What divides the frozen layers must know them, and nothing else of the training does."""
ROOMS = {*FLOORS, "scripts", "run_main", "run_main_enhanced", "tests"}


def modules(packages: Iterable[str] = FLOORS) -> dict[str, Path]:
    """Dotted name to file, of every module on a floor."""
    found = {}
    for package in packages:
        for path in (PROJECT_ROOT / package).rglob("*.py"):
            parts = path.relative_to(PROJECT_ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: dict[str, Path]) -> set[str]:
    """Modules of this project that the module names in an import statement, functions' own included."""
    targets: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            targets.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} line {node.lineno}: imports are absolute here"
            assert node.module is not None
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                targets.add(deeper if deeper in known else node.module)
    return {t for t in targets if t.split(".")[0] in ROOMS}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_only_go_down(floor):
    """A layer that reads the data, or a utility that knows a model, cannot be used without them."""
    known = modules()
    up = {
        f"{name} imports {target}"
        for name, path in known.items()
        if name.split(".")[0] == floor
        for target in imported(name, path, known)
        if target.split(".")[0] not in FLOORS[floor] and (name, target) != ENGINE
    }
    assert not up


def test_of_the_models_the_door_alone_reads_data():
    """A model that knows a file's columns can not be trained on windows from elsewhere."""
    known = modules()
    assert known.keys() >= DOOR
    readers = {
        name
        for name, path in known.items()
        if name.startswith("models.")
        and any(t.startswith("data_provider") for t in imported(name, path, known))
    }
    assert readers <= DOOR


def test_the_wing_for_many_gpus_is_named_by_one_hook():
    """A run on one device would be read through what only many need."""
    known = modules((*FLOORS, "scripts"))
    inside = {name for name in known if name.startswith(WING)} | {"layers.llm.fsdp"}
    doors = {
        (name, target)
        for name in known.keys() - inside
        for target in imported(name, known[name], known) & inside
    }
    assert doors == {("utils.training.experiment", f"{WING}.wing")}
    names = [
        line for line in known["utils.training.experiment"].read_text("utf-8").splitlines() if WING in line
    ]
    assert names == [f"from {WING}.wing import wing_of"]


def test_the_door_costs_a_training_run_nothing():
    """Every process of a run would load pandas' readers and the checkpoints' beside its model."""
    code = "import sys, models; assert not [name for name in sys.modules if name.startswith('models.')]"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)
    known, seen, waiting = modules(), set(), ["models.registry"]
    while waiting:
        name = waiting.pop()
        if name in known and name not in seen:
            seen.add(name)
            waiting += imported(name, known[name], known)
    assert "models.TimeLLM" in seen and not seen & DOOR


def test_the_door_has_no_other_names():
    """A name that is found where there is none hides a mistyped import."""
    assert hasattr(models, "Forecaster") and not hasattr(models, "Forecastr")


def test_no_module_imports_itself_by_a_detour():
    """Cycles work until someone imports the other end first."""
    known = modules()
    edges = {name: imported(name, path, known) & known.keys() for name, path in known.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(edges[name] - {name}):
                visit(target, (*trail, name))
            done.add(name)

    for name in known:
        visit(name, ())

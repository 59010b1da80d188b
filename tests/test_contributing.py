"""The additions that CONTRIBUTING.md shows are applied to a copy of the code, and do what it says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from tests.processes import python
from utils.paths import PROJECT_ROOT

DOCUMENT = PROJECT_ROOT / "CONTRIBUTING.md"
FLOORS = ("models", "layers", "data_provider", "utils")
USED = """
import math
from pathlib import Path
import torch
from layers.llm.sources import HUB_IDS
from models.registry import MODELS
from utils.cli import parse_config
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.training.metrics import ScoreSums
from utils.training.forward import forecast_state
from utils.prompt_bank import describe
from utils.training.objective import Objective, forecast_loss
from utils.types import Batch, ForecastState, RetrievalRecord

models = {"models": MODELS}
words = "--model Drift --data Wind --llm_model PYTHIA --loss LogCosh --pred_len 3".split()
config = parse_config(words, **models)
assert config.data.root_path == "./dataset/wind" and config.data.file_name == "wind.csv"
assert "wind turbines" in describe("Wind") and HUB_IDS["PYTHIA"]

line = torch.arange(512.0)[None, :, None].expand(2, -1, 4)
drift = MODELS["Drift"](config)
forecast = drift(line)
assert torch.allclose(forecast, torch.tensor([512.0, 513.0, 514.0])[None, :, None].expand(2, -1, 4))

empty = torch.zeros(1)
batch = Batch(line, forecast + 1, empty, empty, empty, empty, empty)
loss = float(forecast_loss(forecast, batch, config.training))
assert math.isclose(loss, math.log(math.cosh(1)), rel_tol=1e-5)

scores = ScoreSums(torch.device("cpu"), trend_label="level")
scores.add(forecast_state(drift, batch), batch)
assert scores.reduce(lambda sums: sums)["mse"] == 1

assert scores.reduce(lambda sums: sums)["bias"] == -1
gate, one = torch.full((8, 1), 0.5), torch.ones(8, 1)
record = RetrievalRecord(gate, one, one, one.long(), one, one[:, 0].bool())
state = ForecastState(forecast, None, record)
assert Objective(config)(state, batch, step=0).terms["gate_size"] == 0.25


def refused(path, right, wrong, use, error, said):
    # a module with one thing done wrong, and what is said where it is used
    text, names = Path(path).read_text(encoding="utf-8"), {"__name__": "wrong"}
    assert text.count(right) == 1, right
    try:
        exec(text.replace(right, wrong), names)
        use(names)
    except error as found:
        assert said in str(found), found
    else:
        raise AssertionError(f"{wrong} was taken")


def scored(names):
    return forecast_state(names["Model"](config), batch)


def trained(names):
    return names["Objective"](config)(state, batch, step=0)


drifts, losses = "models/Drift.py", "utils/training/objective.py"
right = "return x_enc[:, -1:] + slope * steps"
shape = "Drift: expected a forecast of [2, 3, 4] (windows, rows, forecast variables), found "
one = "return x_enc[:, -1:, :1] + slope[..., :1] * steps"
refused(drifts, right, one, scored, UserError, shape + "[2, 3, 1]")
refused(drifts, right, "return (x_enc + slope)[:, -1:]", scored, UserError, shape + "[2, 1, 4]")
refused(drifts, right, f"{right}, slope", scored, UserError, shape + "tuple")
refused(drifts, "is_trainable", "takes_steps", scored, TypeError, "models/base.py lists, found takes_steps")
formula = '    "LogCosh": lambda error: error + F.softplus(-2 * error) - math.log(2),  # does not overflow'
refused(losses, formula, "", trained, ValueError, "--loss LogCosh: expected a formula")
size = "gate.square().mean()"
refused(losses, size, "gate.square()", trained, ValueError, "found {'gate_size': [8, 1]}; take their means")
try:
    Config.from_flat({**config.flat(), "features": "MS", "seed": -1}, **models)
    raise AssertionError("--features MS was taken")
except ConfigError as error:
    assert len(error.problems) == 2 and "--features MS: Drift" in str(error)
"""


def diffs() -> str:
    """Every diff of the document, one after the other."""
    return "".join(re.findall(r"```diff\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S))


def files(text: str) -> list[tuple[str, list[str]]]:
    """(path, hunks) of each file that a diff changes; a hunk is its lines below the @@."""
    parts = re.split(r"^--- .*\n\+\+\+ b/(.*)\n", text, flags=re.M)[1:]
    return [
        (path, re.split(r"^@@.*\n", body, flags=re.M)[1:])
        for path, body in zip(parts[::2], parts[1::2], strict=True)
    ]


def applied(text: str, root: Path) -> None:
    """Change the files under ``root`` as a diff says, whatever its line numbers are."""
    for path, hunks in files(text):
        target = root / path
        content = target.read_text(encoding="utf-8") if target.exists() else ""
        for hunk in hunks:
            lines = hunk.splitlines(keepends=True)
            before = "".join(line[1:] for line in lines if line[0] in " -")
            after = "".join(line[1:] for line in lines if line[0] in " +")
            assert not before or content.count(before) == 1, (
                f"{path}: found {content.count(before)} times\n{before}"
            )
            content = content.replace(before, after) if before else after
        target.write_text(content, encoding="utf-8")


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code with all additions."""
    root = tmp_path_factory.mktemp("changed")
    for name in FLOORS:
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "pyproject.toml", root)
    applied(diffs(), root)
    return root


def test_a_model_a_data_set_an_llm_losses_and_a_metric_are_shown():
    paths = {path for path, _ in files(diffs())}
    assert {"models/Drift.py", "utils/data_sets.py", "layers/llm/sources.py"} <= paths
    assert {"utils/training/objective.py", "utils/training/metrics.py"} <= paths
    assert diffs().count("+++ b/utils/config.py") == 1


def test_the_additions_do_what_they_say_and_wrong_ones_are_refused(changed):
    """A forecast of one variable was stretched to all and scored; a loss without its formula was Huber's."""
    done = python("-c", USED, cwd=changed)
    assert done.returncode == 0, done.stderr


def test_the_additions_are_written_as_the_rest_is(changed):
    for words in (["check"], ["format", "--check"]):
        done = python("-m", "ruff", *words, "--no-cache", *FLOORS, cwd=changed)
        assert done.returncode == 0, done.stdout

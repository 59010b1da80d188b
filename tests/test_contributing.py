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
import torch
from layers.llm.sources import HUB_IDS
from models.registry import MODELS
from utils.cli import parse_config
from utils.config import Config, ConfigError
from utils.errors import UserError
from utils.training.metrics import ScoreSums
from utils.training.forward import forecast_state
from utils.prompt_bank import describe
from utils.training.objective import forecast_loss
from utils.types import Batch

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

try:
    forecast_state(drift, batch._replace(y=batch.y[..., -1:]))
    raise AssertionError("a forecast of other variables than the target's was scored")
except UserError as error:
    assert "Drift: expected a forecast of [2, 3, 1]" in str(error) and "found [2, 3, 4]" in str(error)
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
    """A copy of the code with all four additions."""
    root = tmp_path_factory.mktemp("changed")
    for name in FLOORS:
        shutil.copytree(PROJECT_ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "pyproject.toml", root)
    applied(diffs(), root)
    return root


def test_a_model_a_data_set_an_llm_and_a_loss_are_shown():
    paths = {path for path, _ in files(diffs())}
    assert {"models/Drift.py", "utils/data_sets.py", "layers/llm/sources.py"} <= paths
    assert "utils/training/objective.py" in paths and diffs().count("+++ b/utils/config.py") == 1


def test_the_additions_do_what_they_say(changed):
    done = python("-c", USED, cwd=changed)
    assert done.returncode == 0, done.stderr


def test_the_additions_are_written_as_the_rest_is(changed):
    for words in (["check"], ["format", "--check"]):
        done = python("-m", "ruff", *words, "--no-cache", *FLOORS, cwd=changed)
        assert done.returncode == 0, done.stdout

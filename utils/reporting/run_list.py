"""What lies in a folder of runs: each run's settings, how far it came, and what it scored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.config import settings_where
from utils.errors import UserError
from utils.log import MetricsFile
from utils.training import run_folder as folders
from utils.training.checkpoint import step_checkpoints
from utils.training.run_folder import is_alive, read_status

ABSENT = "-"
"""Shown where a run was made before there was a setting, or before it scored."""


@dataclass(frozen=True)
class Run:
    """One run's folder, read."""

    name: str
    settings: Mapping[str, Any]
    status: str
    """finished, running, failed, or cut off at step N; with what it said, if anything."""
    step: int
    """Optimizer steps taken, as far as the folder tells."""
    llm: str
    validation_mse: float | None
    """The best so far."""
    test_mse: float | None
    """Of the best weights; None before the test."""
    test_mae: float | None


@dataclass(frozen=True)
class Broken:
    """A folder that cannot be read as a run, and why."""

    name: str
    reason: str


def read_runs(home: Path) -> tuple[list[Run], list[Broken]]:
    """Every run in the folder ``home`` by name, and the folders there that are none.

    ``home`` may also be one run's folder.

    Raises:
        ValueError: ``home`` is no folder.
    """
    if not home.is_dir():
        raise UserError(f"{home}: expected a folder of runs, found none")
    places = [home] if (home / folders.CONFIG_FILE).is_file() else sorted(p for p in home.iterdir())
    runs, broken = [], []
    for folder in places:
        if not folder.is_dir() or folder.name.startswith("."):
            continue
        try:
            runs.append(read_run(folder))
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            broken.append(Broken(folder.name, _reason(error)))
    return runs, broken


def read_run(folder: Path) -> Run:
    """One run.

    Raises:
        ValueError, OSError, KeyError, TypeError, AttributeError: its files are missing or not what a
            run writes.
        ValueError: its settings are none.
    """
    settings = folders.settings_in(folder)
    facts_file = folder / folders.ENVIRONMENT_FILE
    facts = folders.read_json(facts_file) if facts_file.is_file() else {}
    records = MetricsFile(folder / folders.METRICS_FILE).read(skip_broken=True)
    steps = [int(re.sub(r"\D", "", path.parent.name)) for path in step_checkpoints(folder)]
    step = max([*steps, *(int(r["step"]) for r in records)], default=0)
    validations = [r["validation"]["mse"] for r in records if r["event"] == "validation"]
    results_file = folder / folders.RESULTS_FILE
    results = folders.read_json(results_file) if results_file.is_file() else None
    test = results["best"]["test"] if results else {}
    return Run(
        name=folder.name,
        settings=settings,
        status=_status(folder, step, finished=results is not None),
        step=step,
        llm=facts.get("llm", {}).get("name", "none"),
        validation_mse=results["best"]["validation_mse"] if results else min(validations, default=None),
        test_mse=test.get("mse"),
        test_mae=test.get("mae"),
    )


def _status(folder: Path, step: int, *, finished: bool) -> str:
    """In words; folders from before there was a status file say only whether they have results."""
    said = read_status(folder)
    cut_off = f"cut off at step {step}"
    if said is None or said.state == "finished":
        return "finished" if finished else cut_off
    if said.state == "failed":
        return f"failed at step {step}: {said.message}"
    if said.state == "stopped":
        return f"{cut_off}: {said.message.split(';')[0]}"
    alive = is_alive(said)
    if alive is None:
        return f"running on {said.host} since {said.updated}, unless it was cut off there (step {step})"
    return f"running, at step {step}" if alive else cut_off


def _reason(error: Exception) -> str:
    """One line."""
    text = str(error).split("\n")[0]
    if isinstance(error, FileNotFoundError):
        return f"no {Path(error.filename).name}"
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}"


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which two of the runs differ, in the order they are written.

    A run made before there was a setting says nothing about it.
    """
    place = settings_where("decides", "place")
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in place)
    return [n for n in names if len({repr(r.settings[n]) for r in runs if n in r.settings}) > 1]


def as_json(runs: Sequence[Run], broken: Sequence[Broken]) -> dict[str, Any]:
    """Everything as plain values; each run with all its settings, and the differing ones named once."""
    return {
        "differing": differing(runs),
        "runs": [asdict(run) for run in runs],
        "broken": [asdict(one) for one in broken],
    }


def as_text(runs: Sequence[Run], broken: Sequence[Broken]) -> str:
    """A block for each run: its name, a line of status and scores, and the settings that tell it apart."""
    apart = differing(runs)
    lines = []
    for run in runs:
        scores = f"validation mse {_number(run.validation_mse)}, test mse {_number(run.test_mse)}"
        lines.append(run.name)
        lines.append(f"  {run.status}")
        lines.append(f"  step {run.step}, {scores}, mae {_number(run.test_mae)}, LLM {run.llm}")
        if apart:
            own = (f"{name}={run.settings.get(name, ABSENT)}" for name in apart)
            lines.append(f"  {' '.join(own)}")
    lines += [f"NOT READ  {one.name}: {one.reason}" for one in broken]
    return "\n".join(lines) if lines else "no runs"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"

"""The folder of one run: its name, what lies in it, and that no other run writes into it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from utils.config import Config
from utils.training.checkpoint import newest_in

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
LOG_FILE = "run.log"
RESULTS_FILE = "results.json"
FORECASTS_FILE = "forecasts.npz"


def numbered_folders(checkpoints: Path, name: str) -> list[Path]:
    """The folders of this run's name that exist, oldest first: ``name``, ``name_2``, ``name_3``, ...

    A user may have removed some between others.
    """
    first = checkpoints / name
    found = {_number_of(f, first.name): f for f in first.parent.glob("*") if f.is_dir()}
    return [folder for number, folder in sorted(found.items()) if number]


def _number_of(folder: Path, name: str) -> int:
    """1 for ``name``, N for ``name_N``, 0 for any other folder."""
    if folder.name == name:
        return 1
    match = re.fullmatch(re.escape(name) + r"_([2-9]|[1-9]\d+)", folder.name)
    return int(match.group(1)) if match else 0


def new_folder(checkpoints: Path, name: str) -> Path:
    """A folder of this name that holds no run yet; numbered where the name is taken."""
    taken = numbered_folders(checkpoints, name)
    if not taken:
        return checkpoints / name
    if not any(taken[-1].iterdir()):
        return taken[-1]
    return checkpoints / f"{name}_{_number_of(taken[-1], Path(name).name) + 1}"


def find_finished(checkpoints: Path, name: str) -> Path | None:
    """The newest folder of this run's name whose results are written, or None."""
    done = [f for f in numbered_folders(checkpoints, name) if (f / RESULTS_FILE).is_file()]
    return done[-1] if done else None


def find_resumable(checkpoints: Path, name: str) -> Path | None:
    """The newest whole checkpoint of this run's name, in its newest folder that has one, or None."""
    for folder in reversed(numbered_folders(checkpoints, name)):
        newest = newest_in(folder)
        if newest is not None:
            return newest
    return None


def run_folder_of(checkpoint: Path) -> Path:
    """The run folder that a checkpoint file lies in."""
    parent = checkpoint.resolve().parent
    return parent.parent if parent.name.startswith("checkpoint_step_") else parent


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def read_json(path: Path) -> Any:
    """What `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def describe_run(folder: Path, config: Config, environment: dict[str, Any]) -> None:
    """Write the resolved configuration and the environment of a run that begins."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG_FILE, config.flat())
    write_json(folder / ENVIRONMENT_FILE, environment)

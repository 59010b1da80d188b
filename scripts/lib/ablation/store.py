"""What is kept of a finished cell: one JSON and one npz file under ``results/<study>/cells``."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scripts.lib.ablation.cells import Cell, identity
from utils.atomic_files import whole_file
from utils.config import IDENTITY
from utils.log import MetricsFile
from utils.training import run_folder as folders
from utils.training.window_errors import read_details

CELLS = "cells"
ATTEMPTS = "attempts.jsonl"
MOST_RECORDS = 200
"""Training records kept of a cell; of more, evenly spread ones."""
ENVIRONMENT = ("python", "packages", "git_commit", "threads", "gpus")


def cell_files(results: Path, study: str, key: str) -> tuple[Path, Path]:
    """Where a study keeps a cell's record, and its errors window by window."""
    folder = results / study / CELLS
    return folder / f"{key}.json", folder / f"{key}.npz"


def is_kept(results: Path, cell: Cell) -> bool:
    """Whether the results of a cell are there, in its study's folder."""
    return all(path.is_file() for path in cell_files(results, cell.study, cell.key))


def kept_elsewhere(results: Path, cell: Cell) -> tuple[Path, Path] | None:
    """The files of a cell in the folder of another study, or None."""
    for record in sorted(results.glob(f"*/{CELLS}/{cell.key}.json")):
        if record.with_suffix(".npz").is_file():
            return record, record.with_suffix(".npz")
    return None


def take_over(results: Path, cell: Cell, found: tuple[Path, Path]) -> None:
    """Copy the files of a cell from another study's folder; the record last."""
    record, errors = cell_files(results, cell.study, cell.key)
    _copy(found[1], errors)
    _copy(found[0], record)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, whole_file(target) as write:
        shutil.copyfileobj(read, write)


def finished_run(folder: Path) -> Path | None:
    """The newest run in a cell's folder that has results and details, or None."""
    wanted = (folders.RESULTS_FILE, folders.DETAILS_FILE)
    runs = [run for run in folder.glob("*/") if all((run / name).is_file() for name in wanted)]
    return max(runs, key=lambda run: (run / folders.RESULTS_FILE).stat().st_mtime_ns, default=None)


def keep(results: Path, cell: Cell, *, folder: Path) -> None:
    """Write the record and the errors of a cell whose run, in ``folder``, has ended.

    The record is written last: where it is, the errors are.
    """
    run = finished_run(folder)
    assert run is not None
    record_file, errors_file = cell_files(results, cell.study, cell.key)
    read_details(run / folders.DETAILS_FILE)  # whole, or an error here
    _copy(run / folders.DETAILS_FILE, errors_file)
    folders.write_json(record_file, _record(cell, run, attempts=read_attempts(folder)))


def _record(cell: Cell, run: Path, *, attempts: list[dict[str, Any]]) -> dict[str, Any]:
    """What a report needs of a run, without any path."""
    found = folders.read_json(run / folders.RESULTS_FILE)
    environment = folders.read_json(run / folders.ENVIRONMENT_FILE)
    events = MetricsFile(run / folders.METRICS_FILE).read()
    train = [_without(e, "event") for e in events if e["event"] == "train"]
    every = -(-len(train) // MOST_RECORDS) or 1
    settings = {k: v for k, v in cell.config.flat().items() if k in (*IDENTITY, "test_stride")}
    return {
        "key": cell.key,
        "model": cell.model,
        "identity": identity(cell.config, cell.model),
        "settings": settings,
        **{name: found[name] for name in ("data", "notes", "llm", "last", "best", "phases")},
        "validations": [_without(e, "event") for e in events if e["event"] == "validation"],
        "training": train[::every],
        "seconds": sum(attempt["seconds"] for attempt in attempts),
        "attempts": len(attempts),
        "data_hash": environment["data_hash"],
        "environment": {name: environment[name] for name in ENVIRONMENT if name in environment},
    }


def _without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {k: v for k, v in event.items() if k != name}


def note_attempt(folder: Path, *, seconds: float, status: int) -> None:
    """Remember how long a process worked on a cell."""
    with (folder / ATTEMPTS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"seconds": seconds, "status": status}) + "\n")


def read_attempts(folder: Path) -> list[dict[str, Any]]:
    """The attempts at a cell, oldest first."""
    path = folder / ATTEMPTS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def kept_records(results: Path, study: str) -> Iterator[dict[str, Any]]:
    """The records of a study's finished cells."""
    for path in sorted((results / study / CELLS).glob("*.json")):
        if path.with_suffix(".npz").is_file():
            yield folders.read_json(path)

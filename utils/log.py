"""Logging: readable lines on screen and in the run's folder, JSON lines for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

from utils.errors import using_file
from utils.paths import PACKAGE

OUR_PACKAGES = (
    "__main__",
    *([PACKAGE] if PACKAGE else ("utils", "layers", "models", "data_provider", "scripts", "run_main")),
)


class _BarFriendlyHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def setup_logging(*, main_process: bool) -> None:
    """Lines of this project on standard output, on the main process; others only warn."""
    root = logging.getLogger()
    if not any(isinstance(h, _BarFriendlyHandler) for h in root.handlers):
        handler = _BarFriendlyHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        root.addHandler(handler)
    for package in OUR_PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO if main_process else logging.WARNING)


class RunLogFile:
    """Copies the log into ``<run folder>/run.log`` while open; a resumed run appends."""

    def __init__(self, path: Path) -> None:
        """Open ``path`` for appending and listen."""
        self.path = path
        with using_file(path, "a log that can be written"):
            self._handler = logging.FileHandler(path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        logging.getLogger().addHandler(self._handler)

    def close(self) -> None:
        """Stop listening and close the file."""
        logging.getLogger().removeHandler(self._handler)
        self._handler.close()


class MetricsFile:
    """``metrics.jsonl``: one record per line, each with the optimizer step it belongs to."""

    def __init__(self, path: Path) -> None:
        """Records are appended to ``path``."""
        self.path = path

    def append(self, *, event: str, step: int, **values: Any) -> None:
        """Write one record."""
        with (
            using_file(self.path, "a place that can be written"),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(json.dumps({"event": event, "step": step, **values}) + "\n")

    def flush_to_disk(self) -> None:
        """Make what was written survive a power cut (a checkpoint of this step is about to be saved)."""
        if self.path.exists():
            with self.path.open("rb+") as file:
                os.fsync(file.fileno())

    def cut_back(self, step: int, *, validated: bool = True) -> None:
        """Forget what was written after this optimizer step (a run resumes from there).

        The tests at the end of the run go too, whatever step their weights are from, and where the
        step is still to be ``validated`` its validation does.
        """
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if _place_of(line) <= (step, validated)]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, self.path)

    def read(self, *, skip_broken: bool = False) -> list[dict[str, Any]]:
        """All records; ``skip_broken`` passes over lines that a killed run left half written."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if not skip_broken or _is_record(line)]


def _is_record(line: str) -> bool:
    """Whether a line is whole."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        return False
    return isinstance(record, dict) and {"event", "step"} <= record.keys()


def _place_of(line: str) -> tuple[float, bool]:
    """A record's step, and whether it belongs to the validation after it.

    A final test, or a line that was cut off in writing, is after every step.
    """
    try:
        record = json.loads(line)
        last = record["event"] == "test"
        return (float("inf") if last else float(record["step"]), record["event"] == "validation")
    except (json.JSONDecodeError, KeyError):
        return (float("inf"), True)

"""What is still to be run: the state of each cell, its optimizer steps, and how long it will take."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean

from data_provider.data_factory import build_data, files_are_there, training_loader
from models.registry import MODELS
from scripts.lib.ablation.cells import Cell
from scripts.lib.ablation.store import finished_run, is_kept, keep, kept_elsewhere, kept_records, take_over
from scripts.lib.ablation.study import Study
from utils.config import Config
from utils.training import run_folder as folders
from utils.training.time_estimate import clock_text, planned_steps


@dataclass(frozen=True)
class Estimate:
    """Seconds of a cell, by those that have run."""

    by_configuration: dict[tuple[str, str], float]
    """(study, configuration) to the mean of its finished cells."""
    of_study: dict[str, float]
    """The mean of a study's finished cells, or what its file says."""

    def seconds(self, cell: Cell) -> float:
        """Of one cell."""
        return self.by_configuration.get((cell.study, cell.configuration), self.of_study[cell.study])

    def total(self, queue: Sequence[list[Cell]]) -> float:
        """Of a queue, one cell after the other."""
        return sum(self.seconds(item[0]) for item in queue)


def estimate(studies: Iterable[Study], queue: Sequence[list[Cell]], results: Path) -> Estimate:
    """The estimate before a queue begins."""
    seconds = {
        (study.name, record["key"]): float(record["seconds"])
        for study in studies
        for record in kept_records(results, study.name)
    }
    measured: dict[tuple[str, str], list[float]] = {}
    for cell in (cell for item in queue for cell in item if (cell.study, cell.key) in seconds):
        measured.setdefault((cell.study, cell.configuration), []).append(seconds[cell.study, cell.key])
    known = {name: mean(values) for name, values in measured.items()}
    of_study = {}
    for study in studies:
        own = [s for (name, configuration), s in known.items() if name == study.name
               and not study.configurations[configuration].reference]  # fmt: skip
        of_study[study.name] = mean(own) if own else study.seconds_per_cell
    return Estimate(known, of_study)


def still_to_run(
    queue: Sequence[list[Cell]], *, results: Path, runs: Path, write: bool = True
) -> list[list[Cell]]:
    """The items of a queue that are still to be run.

    Cells whose run has ended, or that another study has run, need no run; unless ``write`` is off
    their results are put into their own study's folder on the way.
    """
    waiting = []
    for item in queue:
        lacking = [cell for cell in item if not is_kept(results, cell)]
        if not lacking:
            continue
        elsewhere, ended = kept_elsewhere(results, item[0]), finished_run(runs / item[0].key)
        if elsewhere is None and ended is None:
            waiting.append(lacking)
        for cell in lacking if write else []:
            if elsewhere is not None:
                take_over(results, cell, elsewhere)
            elif ended is not None:
                keep(results, cell, folder=runs / cell.key)
    return waiting


@cache
def _steps_per_epoch(config: Config) -> int:
    return len(training_loader(build_data(config), config)) // config.training.gradient_accumulation_steps


def steps_of(cell: Cell) -> int | None:
    """Optimizer steps of a cell; None where its data are not there: nothing is downloaded.

    Raises:
        UserError: as its run would, for data that do not fit.
    """
    if not MODELS[cell.model].is_trainable:
        return 0
    if not files_are_there(cell.config.data):
        return None
    return planned_steps(cell.config, _steps_per_epoch(cell.config.replace(seed=0)))


def dry_run_lines(
    queue: Sequence[list[Cell]], waiting: Sequence[list[Cell]], guess: Estimate, *, runs: Path, jobs: int
) -> list[str]:
    """A line for each cell with its state, steps and seconds, and one for them all."""
    keys = {item[0].key for item in waiting}
    lines = []
    for item in queue:
        state = "finished"
        if item[0].key in keys:
            state = "begun" if any((runs / item[0].key).glob(f"*/{folders.CONFIG_FILE}")) else "to run"
        names = " = ".join(cell.title for cell in item)
        steps, seconds = steps_of(item[0]), guess.seconds(item[0])
        shown = "     ?" if steps is None else f"{steps:6d}"
        lines.append(f"{state:8}  {item[0].key}  {shown} steps  {clock_text(seconds):>8}  {names}")
    counts = [steps_of(item[0]) for item in waiting]
    known = f"{sum(count or 0 for count in counts)} optimizer steps"
    if None in counts:
        known += f" and those of {counts.count(None)} whose data are not there yet"
    lines.append(
        f"{len(queue)} cells, {len(queue) - len(waiting)} finished, {len(waiting)} to run: {known}, "
        f"about {clock_text(guess.total(waiting) / jobs)} with --jobs {jobs}"
    )
    return lines

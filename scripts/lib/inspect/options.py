"""What the scripts that look at a run share: their command line, the run, and the window that is meant."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_provider.dates import time_like
from data_provider.series import Series
from data_provider.window_texts import SeriesTexts
from models import Forecaster
from utils.cli import PathFlag
from utils.config import TrainingConfig
from utils.errors import UserError
from utils.threads import fit_threads
from utils.training.precision import matmul_precision
from utils.training.run_folder import run_folder_of
from utils.types import DataBundle


@dataclass(frozen=True)
class LoadedRun:
    """A run's forecaster with the data it was trained on, read when they are asked for."""

    forecaster: Forecaster
    root_path: str | None
    text_file: str | None = None

    @cached_property
    def series(self) -> Series:
        """Original units, with dates."""
        return self.forecaster.own_series(root_path=self.root_path)

    @cached_property
    def data(self) -> DataBundle:
        """The three parts."""
        return self.forecaster.own_data(root_path=self.root_path, text_file=self.text_file)

    @cached_property
    def texts(self) -> SeriesTexts | None:
        """What its windows see of the run's texts; None where it reads none."""
        return self.forecaster.texts(self.series, self.text_file)

    @property
    def folder(self) -> Path:
        """The run's."""
        return run_folder_of(self.forecaster.path)

    def part_of(self, start: int) -> str:
        """Which part the window that begins at row ``start`` belongs to: train, validation, test or none."""
        end = start + self.forecaster.seq_len + self.forecaster.pred_len
        for name in ("train", "validation", "test"):
            split = getattr(self.data, name).split
            if split.begin <= start and end <= split.end:
                return name
        return "none"


def parser_for(text: str | None) -> argparse.ArgumentParser:
    """A parser with what every such script takes; ``text`` is the script's own docstring."""
    parser = argparse.ArgumentParser(description=(text or "").split("\n")[0])
    parser.add_argument(
        "run", action=PathFlag, metavar="RUN", help="run folder (its best weights), or a checkpoint"
    )
    parser.add_argument("--root_path", action=PathFlag, help="folder of the data file, if it moved")
    parser.add_argument("--text_file", action=PathFlag, help="file of the texts, if it moved")
    parser.add_argument("--llm_model_path", action=PathFlag, help="where the LLM lies, if it moved")
    parser.add_argument("--device", help="cpu, cuda, ... (default: a GPU where there is one)")
    return parser


@contextmanager
def inspected_run(arguments: argparse.Namespace) -> Iterator[LoadedRun]:
    """The run that the command line names; while the block runs, products are as precise as in training.

    Raises:
        ValueError, OSError: as `load` does.
    """
    fit_threads()
    run = load(arguments)
    f = run.forecaster
    with matmul_precision(f.config.training.matmul_precision, f.device):
        yield run


def load(arguments: argparse.Namespace) -> LoadedRun:
    """The run that the command line names.

    Raises:
        ValueError, OSError: its checkpoint, its LLM or its data are missing or are not what it saw.
    """
    forecaster = Forecaster.load(
        arguments.run, device=arguments.device, llm_model_path=arguments.llm_model_path
    )
    return LoadedRun(forecaster, arguments.root_path, arguments.text_file)


def first_row(run: LoadedRun, window: str | None) -> int:
    """The row at which the window begins that ``--window`` means.

    A time is that of the first step that is forecast, a whole number counts the test windows from 0
    (or, negative, from the end), and None is the first test window.

    Raises:
        ValueError: there is no such window.
    """
    test, lookback = run.data.test, run.forecaster.seq_len
    count = len(test)  # type: ignore[arg-type]  # torch's Dataset does not declare __len__
    try:
        number = 0 if window is None else int(window)
    except ValueError:
        return _row_of_time(run.series, str(window), lookback)
    if not -count <= number < count:
        raise UserError(f"--window: expected a test window from 0 to {count - 1}, found {window}")
    return int(test[number % count].start)


def _row_of_time(series: Series, window: str, lookback: int) -> int:
    dates = series.dates
    example = f"a time from {dates[lookback]} to {dates[-1]}, in steps of {series.frequency}"
    try:
        time = time_like(window, series.dates_kept, dates.tz)
    except ValueError:
        raise UserError(
            f"--window: expected {example}, or the number of a test window, found {window!r}"
        ) from None
    found = dates.get_indexer([time])[0]
    if found < lookback:
        raise UserError(f"--window: expected {example} (the first step that is forecast), found {window}")
    return int(found) - lookback


def spread(count: int, wanted: int | None) -> Sequence[int]:
    """``wanted`` of ``count`` numbers, evenly spread from the first to the last; None takes all."""
    if wanted is None or wanted >= count:
        return range(count)
    if wanted == 1:
        return [0]
    return sorted({round(i * (count - 1) / (wanted - 1)) for i in range(wanted)})


def shown_levels(run: LoadedRun) -> tuple[float, ...]:
    """The levels of the intervals that are drawn around a forecast: the run's own."""
    return tuple(run.forecaster.config.training.levels) or TrainingConfig().levels

"""Pictures of a run: ``python scripts/plot.py RUN``.

Writes PNG files: forecasts against truth with intervals, training curves, errors by horizon step and by
variable, calibration. What a run cannot show (intervals without a calibration, curves without steps) is
said. Exit status 2 where a user can mend what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib.inspect.options import LoadedRun, inspected_run, parser_for, shown_levels
from scripts.lib.inspect.plot_data import gather
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.log import MetricsFile, setup_logging
from utils.reporting.run_plots import plot_calibration, plot_errors, plot_test_windows, plot_training
from utils.training.run_folder import METRICS_FILE

WINDOWS = 200
"""Test windows forecast for the pictures, unless all are asked for."""
LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""Of the intervals whose coverage is drawn, beside the run's own."""


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Draw and say where; the exit status."""
    arguments = _parser().parse_args(argv)
    setup_logging(main_process=True)
    if arguments.windows is not None and arguments.windows < 1:
        raise UserError(f"--windows: expected 1 or more, or all, found {arguments.windows}")
    with inspected_run(arguments) as run:
        out = Path(arguments.out) if arguments.out else run.folder / "plots"
        for line in pictures(run, out, arguments.windows):
            print(line, flush=True)
    return 0


def pictures(run: LoadedRun, out: Path, windows: int | None) -> list[str]:
    """Draw every picture that the run has; where each lies, or why it is not there, a line each."""
    own = shown_levels(run)
    evidence = gather(run, windows=windows, levels=sorted({*LEVELS, *own}))
    lines = [
        str(plot_test_windows(evidence, out / "forecasts.png", levels=own)),
        str(plot_errors(evidence, out / "errors.png")),
    ]
    records = MetricsFile(run.folder / METRICS_FILE).read(skip_broken=True)
    try:
        lines.append(str(plot_training(records, out / "training.png", name=evidence.name)))
        if not any(r["event"] == "train" for r in records):
            lines[-1] += f" (of the validations alone: {_unlogged(run, records)})"
    except ValueError as error:
        lines.append(f"no training curves: {error}: {_unlogged(run, records)}")
    try:
        lines.append(str(plot_calibration(evidence, out / "calibration.png")))
    except ValueError as error:
        lines.append(f"no calibration picture: {error}")
    return lines


def _unlogged(run: LoadedRun, records: Sequence[Mapping[str, Any]]) -> str:
    """Why there is no record of a training step."""
    if not run.forecaster.model.is_trainable:
        return "the model takes no steps"
    taken, every = max((int(r["step"]) for r in records), default=0), run.forecaster.config.run.log_steps
    return (
        f"every {every}th step is logged (--log_steps {every}), and the run's records end with step {taken}; "
        "train with --log_steps 1 to see each"
    )


def _parser() -> argparse.ArgumentParser:
    parser = parser_for(__doc__)
    parser.add_argument(
        "--windows",
        type=lambda word: None if word == "all" else int(word),
        default=WINDOWS,
        help=f"test windows to forecast, evenly spread, or all [{WINDOWS}]",
    )
    parser.add_argument("--out", action=PathFlag, help="folder of the pictures [RUN/plots]")
    return parser


if __name__ == "__main__":
    sys.exit(main())

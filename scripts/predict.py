"""Forecast a table of your own with a trained run: ``python scripts/predict.py --help``.

``--checkpoint RUN --input my.csv --output forecast.csv`` writes the rows that follow the end of
``my.csv``; the checkpoint holds all else. ``--backtest N`` forecasts the last N windows whose future the
file holds, and prints their errors. Exit status 2 where a user can mend what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pandas as pd
import torch

from data_provider.table_files import TableFile, table_file, write_table
from models import Forecaster, ReadOptions
from models.forecast_tables import scores_text
from utils.atomic_files import whole_file
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import FileMissingError, UserError
from utils.forecast_columns import ORIGIN
from utils.log import setup_logging
from utils.threads import fit_threads
from utils.training.precision import matmul_precision

log = getLogger(__name__)
KINDS = "table (.csv, .csv.gz, .parquet, .feather)"
OWN_LEVELS: list[float] = []
"""What ``--levels`` without a number leaves: the levels of the run."""


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Forecast and write; the exit status."""
    args = _parser().parse_args(argv)
    setup_logging(main_process=True)
    try:
        kind = _check(args)
        fit_threads()
        forecaster = Forecaster.load(
            args.checkpoint,
            device="cpu" if args.cpu else None,
            batch_size=args.batch_size,
            llm_model_path=args.llm_model_path,
        )
        _say_what(forecaster)
        with matmul_precision(forecaster.config.training.matmul_precision, forecaster.device):
            frame = _forecast(forecaster, args)
        with whole_file(args.output) as file:
            write_table(frame, file, kind.ending, name=kind.stem)
    except torch.OutOfMemoryError as error:
        raise UserError(f"out of memory; lower --batch_size, or use --cpu ({error})") from error
    dates = frame["date" if forecaster.panel is None else _date_column(frame)]
    print(f"{len(frame)} rows, {dates.min()} to {dates.max()}: {args.output}")
    return 0


def _forecast(forecaster: Forecaster, args: argparse.Namespace) -> pd.DataFrame:
    """The table that is asked for; a backtest's scores are printed."""
    levels = args.levels or ()
    if args.levels == OWN_LEVELS:
        levels = forecaster.config.training.levels
        if not levels:
            raise UserError("--levels: expected numbers, as the run itself has none, found none")
    how: dict[str, Any] = {
        "levels": levels,
        "recalibrate": args.recalibrate,
        "reading": ReadOptions(
            freq=args.freq,
            fill_missing=args.fill_missing,
            date_format=args.date_format,
            time_zone=args.time_zone,
            round_dates=args.round_dates,
            repeated_times=args.repeated_times,
        ),
    }
    if args.static_path is not None:
        how["static"] = args.static_path
    how["texts"] = args.text_file
    if args.backtest is None:
        return forecaster.predict(
            args.input, future=args.future, what_if=args.what_if, quantiles=args.quantiles, **how
        )
    tested = forecaster.backtest(args.input, args.backtest, **how)
    print(f"\nlast {args.backtest} windows of {args.input}: {forecaster.pred_len} rows ahead")
    print("mse, mae and width in each variable's own units (squared for mse), or standardised as in training")
    print(scores_text(tested) + "\n")
    return tested.frame


def _date_column(frame: pd.DataFrame) -> str:
    """The column of the times of a panel's forecasts."""
    return next(
        str(c) for c in frame.columns if c != ORIGIN and pd.api.types.is_datetime64_any_dtype(frame[c])
    )


def _say_what(forecaster: Forecaster) -> None:
    """Which weights, and which LLM around them."""
    facts, llm = forecaster.facts, forecaster.facts["llm"]
    log.info(
        "%s, step %d of %s; LLM: %s; on %s",
        forecaster.model.name,
        facts.get("global_step", 0),
        forecaster.path,
        " ".join(filter(None, (llm["name"], llm["note"]))) if llm else "none",
        forecaster.device,
    )


def _check(args: argparse.Namespace) -> TableFile:
    """Before anything is loaded: numbers that can be, files of known kinds, an output that destroys nothing.

    Returns:
        The output's name, taken apart.

    Raises:
        ValueError: otherwise.
    """
    if not args.input.is_dir():
        table_file(args.input, flag="--input")
    kind = table_file(args.output, flag="--output")
    for name in ("backtest", "recalibrate", "batch_size"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name}: expected 1 or more, found {value}")
    if args.what_if is not None and args.backtest is not None:
        raise UserError("--what_if: it is for the future after the end of the file; leave out --backtest")
    if args.recalibrate is not None and args.levels is None and not args.quantiles:
        raise UserError("--recalibrate: it calibrates intervals; say which with --levels")
    if args.quantiles and args.backtest is not None:
        raise UserError("--quantiles: --backtest scores intervals; name them with --levels, or leave it out")
    if args.future is not None and args.backtest is not None:
        raise UserError("--future: --backtest forecasts rows that --input holds; leave one of them out")
    for name in ("future", "static_path"):
        given = getattr(args, name)
        if given is not None and not given.is_file():
            raise FileMissingError(f"--{name}: expected a table, found none at {given}")
    if not args.input.exists():
        raise FileMissingError(f"--input: expected a CSV file, found none at {args.input}")
    if args.output.exists() and args.output.samefile(args.input):
        raise UserError(f"--output: expected another file than --input, found {args.output}")
    if args.output.is_dir():
        raise UserError(f"--output: expected a file, found the folder {args.output}")
    if args.output.exists() and not args.overwrite:
        raise UserError(f"--output: {args.output} is there already; name another, or say --overwrite")
    return kind


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0], allow_abbrev=False)
    add = parser.add_argument
    add(
        "--checkpoint",
        action=PathFlag,
        required=True,
        help="run folder (its best weights), step folder or checkpoint file",
    )
    add(
        "--input",
        required=True,
        action=PathFlag,
        kind=Path,
        help=f"{KINDS} with a date column and the columns trained on",
    )
    add(
        "--output",
        required=True,
        action=PathFlag,
        kind=Path,
        help=f"{KINDS} to write; a row per step, a column per variable",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--last", action="store_true", help="the future after the end of the file (default)")
    which.add_argument("--backtest", type=int, metavar="N", help="the last N windows, with truth and errors")
    add(
        "--levels",
        type=float,
        nargs="*",
        help="bounds of prediction intervals, e.g. 0.8 0.95 (no number: the run's)",
    )
    add(
        "--quantiles",
        type=float,
        nargs="+",
        default=(),
        help="columns of these, e.g. 0.1 0.5 0.9: bounds of the prediction intervals, the forecast at 0.5",
    )
    add(
        "--recalibrate",
        type=int,
        metavar="N",
        help="intervals by the N windows before each forecast, not by validation",
    )
    add(
        "--future",
        action=PathFlag,
        kind=Path,
        help=f"{KINDS} with a date column and the known covariates of the horizon",
    )
    add(
        "--static_path",
        action=PathFlag,
        kind=Path,
        help="table of what holds of each variable (default: as in training)",
    )
    add("--fill_missing", choices=("interpolate", "ffill"), help="as in training (default: what the run had)")
    add("--freq", help="frequency of the rows, where the dates have gaps that shall be accepted")
    add("--date_format", help="how dates are written, where not as in training: strptime's, or ISO8601")
    add("--time_zone", help="zone of the dates, such as Europe/Berlin (default: the file's, the run's)")
    add("--round_dates", action="store_true", help="round times that jitter around regular ones")
    add("--repeated_times", choices=("first", "last"), help="row that is kept of those of one time")
    add(
        "--llm_model_path",
        action=PathFlag,
        help="where the run's LLM lies now, if it moved; its content is checked",
    )
    add(
        "--text_file",
        action=PathFlag,
        kind=Path,
        help="dated texts up to now (default: the file that the run was trained with)",
    )
    add(
        "--what_if",
        action=PathFlag,
        kind=Path,
        help="the same texts edited: their forecast stands beside the first, as NAME_what_if",
    )
    add("--batch_size", type=int, help="windows per pass (default: the run's)")
    add("--cpu", action="store_true", help="do not use a GPU")
    add("--overwrite", action="store_true", help="replace an output that is there")
    return parser


if __name__ == "__main__":
    sys.exit(main())

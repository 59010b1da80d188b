"""The quick start: get the data, train the enhanced model, compare it with forecasts that need no training.

`scripts/quickstart.sh` makes the environment and calls this. Words of the command line are flags of
``run_main_enhanced.py`` and win over the quick start's own. Exit status 1 where a naive forecast, or on
`RIDGE_IS_BEATEN_ON` ridge, is not beaten on both metrics.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import run_main_enhanced
from data_provider.data_factory import build_data, data_file, is_published
from data_provider.download import DataUnavailableError, ensure_data
from models.closed_form import Scores, evaluate_baselines
from models.registry import MODELS
from scripts.lib.inspect.options import inspected_run, parser_for
from scripts.plot import pictures
from utils.cli import parse_config
from utils.config import Config
from utils.ending import command
from utils.log import setup_logging
from utils.paths import BASE_MODELS
from utils.reporting.text_tables import phase_table, score_table
from utils.training.experiment import resolve
from utils.training.run_folder import LOG_FILE, RESULTS_FILE, find_finished, find_resumable, read_json
from utils.types import DataBundle

MODEL = "TimeLLM_Enhanced"
FLAGS = ("--preset", "cpu", "--use_tapr", "--use_gram", "--model_comment", "quickstart")
WINDOWS = 24
"""Test windows forecast for the pictures."""
NAIVE = ("persistence", "seasonal_naive")
"""The forecasts that a trained model has to beat on any data; ridge is shown, and hard to beat."""
RIDGE_IS_BEATEN_ON = "ETTh1"
"""Where a run that is not ahead of ridge has failed, too: the quick start's own data."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run every phase, print the table and where everything lies; the exit status."""
    flags = [*FLAGS, *(sys.argv[1:] if argv is None else argv)]
    phases: dict[str, float] = {}
    setup_logging(main_process=True)

    with timed(phases, "data"):
        flags = with_data(flags)
        config = parse_config(flags, prog="quickstart", models=MODELS)
        bundle = build_data(config)
    with timed(phases, "training and test"):
        run_dir, results = trained_run(config, bundle, flags)
    with timed(phases, "baselines"):
        baselines = evaluate_baselines(bundle)
    with timed(phases, "pictures"):
        drawn = pictures_of(run_dir, config.data.root_path)
    model = Scores(results["best"]["test"]["mse"], results["best"]["test"]["mae"])
    report(
        results=results,
        model=model,
        baselines=baselines,
        season=f"{bundle.season} {'h' if bundle.frequency.lower() == 'h' else 'rows'}",
        seq_len=config.data.seq_len,
    )
    print("\n" + places(config, run_dir, results))
    print("\n".join(drawn))
    print(f"\n{phase_table(phases)}\n\nof the run itself\n{phase_table(results['phases'])}")
    return verdict(model, baselines, ridge=bundle.name == RIDGE_IS_BEATEN_ON)


def places(config: Config, run_dir: Path, results: Mapping[str, Any]) -> str:
    """Where everything lies, a line each."""
    file = data_file(config.data)
    data = "built in" if file is None else str(file.path.resolve())
    lines = {
        "environment": sys.prefix,
        "data": data,
        "LLM": f"{BASE_MODELS} ({results['llm'].get('name', '')})",
        "run folder": str(run_dir.resolve()),
        "log": str((run_dir / LOG_FILE).resolve()),
    }
    return "\n".join(f"{name:12}{where}" for name, where in lines.items())


def pictures_of(run_dir: Path, root_path: str) -> list[str]:
    """Draw what `scripts.plot` draws of a run, of fewer windows; where each picture lies, a line each."""
    with inspected_run(parser_for(None).parse_args([str(run_dir), "--root_path", root_path])) as run:
        return pictures(run, run_dir / "plots", WINDOWS)


def with_data(flags: list[str]) -> list[str]:
    """The flags, with the data file in place; or, announced, with the synthetic series instead."""
    config = parse_config(flags, prog="quickstart", models=MODELS)
    if not is_published(config.data):
        return flags
    try:
        ensure_data(config.data.data, config.data.root_path)
    except DataUnavailableError as error:
        line = "!" * 78
        print(
            f"\n{line}\n{config.data.data} is not available:\n{error}\n\n"
            f"THE BUILT-IN SYNTHETIC SERIES IS USED INSTEAD. Nothing below is a result on "
            f"{config.data.data}.\n{line}\n",
            flush=True,
        )
        return [*flags, "--data", "synthetic"]
    return flags


def trained_run(config: Config, bundle: DataBundle, flags: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """The run's folder and results: those of a finished run, or of one that is trained or resumed now."""
    checkpoints = Path(config.run.checkpoints)
    name = config.run_name(model=MODEL, llm_name=config.llm.llm_model_path or config.llm.llm_model)
    settings = resolve(config, bundle).flat()
    finished = find_finished(checkpoints, config.run_name_begins(MODEL), settings, bundle.content_hash)
    if finished is not None:
        print(f"Reusing the finished run {finished} (delete the folder to train again)", flush=True)
        return finished, read_json(finished / RESULTS_FILE)
    if find_resumable(checkpoints, name) is not None:
        print("Going on with an unfinished run", flush=True)
        flags = [*flags, "--resume_from_checkpoint", "auto"]
    result = run_main_enhanced.main(flags)
    return Path(result.run_dir), result.results


def report(
    *, results: Mapping[str, Any], model: Scores, baselines: Mapping[str, Scores], season: str, seq_len: int
) -> None:
    """Print the table of test errors, with what a reader must know about them."""
    names = {
        "persistence": "persistence",
        "seasonal_naive": f"seasonal naive ({season})",
        "ridge": "ridge",
    }
    rows = [
        ("this model, best weights", *model),
        *((label, *baselines[name]) for name, label in names.items() if name in baselines),
    ]
    windows = results["notes"].get("test", "every test window")
    print(f"\n{results['data']}, {windows}, standardised units\n\n{score_table(rows)}")
    if "seasonal_naive" not in baselines:
        print(f"\nno {names['seasonal_naive']}: a season is longer than the lookback of {seq_len} rows")
    note = results["llm"].get("note")
    if note:
        print(f"\nLLM: {results['llm'].get('name', '')}: {note}")


def verdict(model: Scores, baselines: Mapping[str, Scores], *, ridge: bool) -> int:
    """0 where naive forecasts, and ``ridge``, are beaten on both metrics; else 1, saying which is not."""
    names = [name for name in (*NAIVE, *(("ridge",) if ridge else ())) if name in baselines]
    problems = [
        f"{name} is not beaten on {metric.upper()}: {getattr(model, metric):.4f} against "
        f"{getattr(baselines[name], metric):.4f}"
        for name in names
        for metric in Scores._fields
        # Written so that a NaN counts as not beaten.
        if not getattr(model, metric) < getattr(baselines[name], metric)
    ]
    if problems:
        print("\nFAILED: " + "\nFAILED: ".join(problems), file=sys.stderr)
        return 1
    said = [name.replace("_", " ") for name in names]
    which = " and ".join(filter(None, (", ".join(said[:-1]), said[-1]))).capitalize()
    print(f"\n{which} {'are' if len(said) > 1 else 'is'} beaten on both metrics.")
    return 0


@contextmanager
def timed(phases: dict[str, float], name: str) -> Iterator[None]:
    """Announce a phase, and record its seconds."""
    print(f"\n== {name} ==", flush=True)
    begin = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())

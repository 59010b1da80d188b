"""Run studies and report them: ``python scripts/ablation.py scripts/studies/<name>.toml [...]``.

A cell of a study (configuration x horizon x data set x seed) is an ordinary run of the entry point.
Finished cells are skipped, cut-off ones go on, failures are told and the others run all the same.
The exit status is 0 when every cell has results, 1 when one failed, 75 when the runner was stopped,
2 when a user can mend what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from scripts.lib.ablation.cells import queue_of
from scripts.lib.ablation.overview import write_overview, write_scores
from scripts.lib.ablation.plan import dry_run_lines, estimate, still_to_run
from scripts.lib.ablation.plan_file import plan_study
from scripts.lib.ablation.precision import precision_of
from scripts.lib.ablation.report import write_report
from scripts.lib.ablation.runner import Ended, Outcome, run_queue
from scripts.lib.ablation.store import keep
from scripts.lib.ablation.study import Study, read_study
from utils.cli import PathFlag
from utils.ending import command
from utils.paths import PROJECT_ROOT
from utils.training import run_folder as folders
from utils.training.stopping import STOPPED_STATUS
from utils.training.time_estimate import clock_text

DOCUMENT = PROJECT_ROOT / "docs" / "results.md"
TECHNICAL_DOCUMENT = PROJECT_ROOT / "claude3.md"
STUDIES = PROJECT_ROOT / "scripts" / "studies"


@command(parser=lambda: _parser(), others='put them into the study file, as flags = "..."')
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; the exit status."""
    args = _parser().parse_args(argv)
    if args.docs and not args.report_only:
        print("--docs: expected --report_only beside it, found none", file=sys.stderr)
        return 2
    if args.report_only:
        for path in args.studies:
            print(write_report(args.results / path.stem))
        if args.docs:
            print(write_overview(args.results, args.docs, studies=STUDIES.glob("*.toml")))
        if args.docs == DOCUMENT:
            print(write_scores(args.results, TECHNICAL_DOCUMENT))
        return 0
    return _run([read_study(path) for path in args.studies], args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0], allow_abbrev=False)
    parser.add_argument(
        "studies", nargs="+", action=PathFlag, kind=Path, metavar="STUDY.toml", help="study files"
    )
    parser.add_argument("--jobs", type=_positive, default=1, help="runs at once [1]")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the cells, their steps and the time; run nothing"
    )
    parser.add_argument(
        "--report_only", action="store_true", help="rebuild the reports from results/<study>; run nothing"
    )
    parser.add_argument(
        "--docs",
        action=PathFlag,
        kind=Path,
        nargs="?",
        const=DOCUMENT,
        metavar="FILE",
        help=f"with --report_only: put a short table of every study into this document [{DOCUMENT.name}, "
        f"and the scores into {TECHNICAL_DOCUMENT.name}]",
    )
    parser.add_argument(
        "--runs",
        action=PathFlag,
        kind=Path,
        default=PROJECT_ROOT / "checkpoints" / "ablation",
        help="folder of the runs",
    )
    parser.add_argument(
        "--results",
        action=PathFlag,
        kind=Path,
        default=PROJECT_ROOT / "results",
        help="folder of what is kept of them",
    )
    return parser


def _positive(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {word}")
    return number


def _run(studies: Sequence[Study], args: argparse.Namespace) -> int:
    """Run what is missing, then report; the exit status."""
    runs, results = args.runs.resolve(), args.results.resolve()
    precisions = {study.name: precision_of(study, results) for study in studies}
    queue = queue_of(studies, precisions)
    waiting = still_to_run(queue, results=results, runs=runs, write=not args.dry_run)
    guess = [estimate(studies, queue, results)]
    if args.dry_run:
        print("\n".join(dry_run_lines(queue, waiting, guess[0], runs=runs, jobs=args.jobs)))
        return 0
    for study in studies:
        plan_study(study, results / study.name, precision=precisions[study.name])

    def finished(ended: Ended) -> None:
        for cell in ended.cells:
            keep(results, cell, folder=ended.folder)
        guess[0] = estimate(studies, queue, results)
        scores = folders.read_json(results / ended.cells[0].study / "cells" / f"{ended.cells[0].key}.json")
        test = scores["best"]["test"]
        tqdm.write(
            f"{' = '.join(c.title for c in ended.cells)}: mse {test['mse']:.4f} mae {test['mae']:.4f} "
            f"in {clock_text(ended.seconds)}"
        )

    outcome = run_queue(
        waiting,
        runs=runs,
        jobs=args.jobs,
        before=len(queue) - len(waiting),
        finished=finished,
        seconds_left=lambda left: guess[0].total(left),
    )
    for study in studies:
        print(write_report(results / study.name))
    return _status(outcome, of=len(queue), before=len(queue) - len(waiting))


def _status(outcome: Outcome, *, of: int, before: int) -> int:
    """Say how many cells have results; the exit status."""
    there = before + len(outcome.done)
    print(f"{there} of {of} cells have results")
    for ended in outcome.failed:
        print(f"failed, status {ended.status}: {ended.cells[0].title} ({ended.folder})", file=sys.stderr)
    for item in outcome.busy:
        print(f"another runner works on: {item[0].title}", file=sys.stderr)
    if outcome.stopped:
        print("stopped: give the same command again to go on", file=sys.stderr)
        return STOPPED_STATUS
    return 1 if outcome.failed or outcome.busy else 0


if __name__ == "__main__":
    sys.exit(main())

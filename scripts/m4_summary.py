"""M4's overall scores from the runs of its groups: ``python scripts/m4_summary.py RUN_FOLDER ...``.

Means over all series of all groups, and the overall weighted average of those means, as the competition
has it. Exit status 2 where a folder holds no such run, or two hold the same group.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import pandas as pd

from utils.cli import PathFlag
from utils.data_sets import M4_PATTERNS
from utils.ending import command
from utils.errors import UserError
from utils.m4_scores import owa
from utils.training.run_folder import RESULTS_FILE, read_json

COLUMNS = ["windows", "smape", "mase", "owa", "naive2_smape", "naive2_mase"]
MEANS = ("smape", "mase", "naive2_smape", "naive2_mase")
Scores = Mapping[str, float]


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the table; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "folders", nargs="+", action=PathFlag, kind=Path, metavar="RUN_FOLDER", help="runs with --data M4"
    )
    groups = groups_of(parser.parse_args(argv).folders)
    scores = pd.DataFrame({**groups, "all": together(list(groups.values()))}).T[COLUMNS]
    print(scores.astype({"windows": int}).to_string(float_format="%.3f"))
    missing = [name for name in M4_PATTERNS if name not in groups]
    if missing:
        print(f"\n{len(missing)} of {len(M4_PATTERNS)} groups are missing: {', '.join(missing)}")
    return 0


def groups_of(folders: Sequence[Path]) -> dict[str, Scores]:
    """The best weights' test scores of each folder's run, by the group's name.

    Raises:
        ValueError: for a folder without such a run, or a group that another folder has too.
    """
    found: dict[str, Scores] = {}
    for folder in folders:
        path = folder / RESULTS_FILE
        results = read_json(path) if path.is_file() else {}
        name = results.get("data", "").removeprefix("M4 ")
        scores = results.get("best", {}).get("test", {})
        if name not in M4_PATTERNS or "owa" not in scores:
            raise UserError(f"{folder}: expected {RESULTS_FILE} of a run with --data M4, found none")
        if name in found:
            raise UserError(f"{folder}: expected one run of each group, found a second one of {name}")
        found[name] = scores
    return found


def together(groups: Sequence[Scores]) -> Scores:
    """Means over all series, and their overall weighted average."""
    series = sum(scores["windows"] for scores in groups)
    means = {name: sum(scores["windows"] * scores[name] for scores in groups) / series for name in MEANS}
    average = owa(
        means["smape"],
        means["mase"],
        naive2_smape=means["naive2_smape"],
        naive2_mase=means["naive2_mase"],
    )
    return {**means, "windows": series, "owa": average}


if __name__ == "__main__":
    sys.exit(main())

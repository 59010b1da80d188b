"""List the runs of a folder, in what they differ, and what they scored: ``python scripts/runs.py [FOLDER]``.

Status is finished, running, failed, or cut off at a step. Folders that cannot be read are named and
passed over. Nothing is written.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.cli import PathFlag
from utils.config import RunConfig
from utils.ending import command
from utils.reporting.run_list import as_json, as_text, read_runs


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print the runs; the exit status, 2 where there is no such folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = RunConfig().checkpoints
    parser.add_argument(
        "folder", action=PathFlag, nargs="?", default=default, help=f"folder of run folders [{default}]"
    )
    parser.add_argument("--json", action="store_true", help="everything, with all settings, as JSON")
    arguments = parser.parse_args(argv)
    runs, broken = read_runs(Path(arguments.folder))
    print(json.dumps(as_json(runs, broken), indent=2) if arguments.json else as_text(runs, broken))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One self-contained HTML page about a run: ``python scripts/report.py RUN``.

Scores, forecasts with a window slider, retrieved neighbours, training curves, configuration. The page asks
for nothing from any network. Exit status 2 where a user can mend what is wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from scripts.lib.inspect.options import inspected_run, parser_for
from scripts.lib.inspect.page import page_of
from utils.atomic_files import whole_file
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.log import setup_logging

WINDOWS = 24
"""Test windows in the page, unless another number is asked for."""


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where; the exit status."""
    arguments = _parser().parse_args(argv)
    setup_logging(main_process=True)
    if arguments.windows < 1:
        raise UserError(f"--windows: expected 1 or more, found {arguments.windows}")
    if arguments.out and not arguments.out.lower().endswith((".html", ".htm")):
        raise UserError(
            f"--out: expected a name that ends in .html, which the page is, found {arguments.out}"
        )
    with inspected_run(arguments) as run:
        out = Path(arguments.out) if arguments.out else run.folder / "report.html"
        page = page_of(run, windows=arguments.windows).encode()
    with whole_file(out) as file:
        file.write(page)
    print(f"{out} ({len(page) / 1e6:.1f} MB)")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = parser_for(__doc__)
    parser.add_argument(
        "--windows", type=int, default=WINDOWS, help=f"test windows to show, evenly spread [{WINDOWS}]"
    )
    parser.add_argument("--out", action=PathFlag, help="HTML file to write [RUN/report.html]")
    return parser


if __name__ == "__main__":
    sys.exit(main())

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

from scripts.looking.options import looking, parser_for
from scripts.looking.page import page_of
from utils.cli import PathFlag
from utils.ending import command
from utils.errors import UserError
from utils.log import setup_logging
from utils.training.whole_files import whole_file

WINDOWS = 24
"""Test windows in the page, unless another number is asked for."""


@command(parser=lambda: _parser())
def main(argv: Sequence[str] | None = None) -> int:
    """Write the page and say where; the exit status."""
    words = _parser().parse_args(argv)
    setup_logging(main_process=True)
    if words.windows < 1:
        raise UserError(f"--windows: expected 1 or more, found {words.windows}")
    if words.out and not words.out.lower().endswith((".html", ".htm")):
        raise UserError(f"--out: expected a name that ends in .html, which the page is, found {words.out}")
    with looking(words) as run:
        out = Path(words.out) if words.out else run.folder / "report.html"
        page = page_of(run, windows=words.windows).encode()
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

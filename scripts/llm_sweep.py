"""Every causal and masked language model type of transformers through the product, beside transformers.

``python scripts/llm_sweep.py RESULTS.jsonl`` writes a line per type and mode, and goes on where it was
stopped. ``--types llama mamba`` takes some, ``--modes fp32 lora bf16`` more than fp32, ``--again`` does those
given over; ``--document docs/models.md`` writes the table of all results. Each case has a process and a time
limit of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import transformers

from scripts.lib.llm_sweep import case
from scripts.lib.llm_sweep.document import markdown
from scripts.lib.llm_sweep.tiny import model_types

LIMIT = 300
"""Seconds of one case."""
Rows = dict[tuple[str, str], dict[str, Any]]
"""By type and mode."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is still to be run, then write the table where one is asked for."""
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=about)
    parser.add_argument("results", type=Path, help="file of lines, one a case")
    parser.add_argument("--types", nargs="*", default=model_types(), help="model types (default: all)")
    parser.add_argument("--modes", nargs="+", default=["fp32"], choices=case.MODES, help="how the LLM is run")
    parser.add_argument("--again", action="store_true", help="also cases that have their line")
    parser.add_argument("--limit", type=int, default=LIMIT, help="seconds of one case")
    parser.add_argument("--document", type=Path, help="file for the table")
    args = parser.parse_args(argv)
    done = read(args.results)
    for mode in args.modes:
        for kind in args.types:
            if args.again or (kind, mode) not in done:
                row = in_a_process(kind, mode, limit=args.limit)
                done[kind, mode] = row
                with args.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(row) + "\n")
                last = (row["detail"].splitlines() or [""])[-1]
                print(f"{kind} {mode}: {row['status']} {last}", flush=True)
        print(mode, dict(Counter(row["status"] for (_, m), row in done.items() if m == mode)))
    if args.document:
        args.document.write_text(markdown(done, version=transformers.__version__), "utf-8")
    return 0


def read(file: Path) -> Rows:
    """The last line of each case."""
    if not file.is_file():
        return {}
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {(row["kind"], row["mode"]): row for row in rows}


def in_a_process(kind: str, mode: str, *, limit: int) -> dict[str, Any]:
    """The case's row; one that does not end, or ends its process, is a traceback."""
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "row.json"
        process = context.Process(target=_one, args=(kind, mode, Path(place), file))
        process.start()
        process.join(limit)
        if process.is_alive():
            process.kill()
            process.join()
            why = f"no end after {limit} s"
        else:
            why = f"the process ended with status {process.exitcode}"
        if file.is_file():
            row: dict[str, Any] = json.loads(file.read_text("utf-8"))
            return row
        return case.as_row(case.Outcome(kind, mode, "traceback", why))


def _one(kind: str, mode: str, place: Path, file: Path) -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder = place / kind
    folder.mkdir()
    try:
        case.write_checkpoint(kind, folder)
    except Exception as error:  # noqa: BLE001  said in the table
        said = f"{type(error).__name__}: {error}".replace("\n", " ")
        row = case.Outcome(kind, mode, "not built", said)
    else:
        row = case.run(kind, mode, folder)
    unfinished = file.with_suffix(".part")
    unfinished.write_text(json.dumps(case.as_row(row)), "utf-8")
    os.replace(unfinished, file)


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of GRA-M's memory at sizes up to a million rows: ``python scripts/bench_memory.py``.

Each size is a memory of raw keys drawn from a made-up hourly series that has so many training windows,
built, kept and searched in a process of its own. Prints a table; recall is the share of the exact five
nearest rows (float32) that a memory of other numbers finds as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from data_provider.synthetic import make_series
from layers.GRAM import Neighbours, PatternValueDualRetriever
from layers.retrieval_search import Rows
from scripts.benching.worker import reset_peak
from utils.config import Config
from utils.process_memory import give_back_freed, mib, peak_bytes, resident_bytes

SIZES = (10_000, 100_000, 1_000_000)
VARIABLES, SEASON = 7, 24
WINDOWS, ROUNDS = 8, 5
"""Windows searched for at once, with all their variables; searches timed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sizes and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES), metavar="ROWS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--measure", type=int, metavar="ROWS", help="one size here, in both numbers, as JSON")
    args = parser.parse_args(argv)
    if args.measure is not None:
        torch.set_num_threads(args.threads)
        print(json.dumps(measured(args.measure)))
        return 0
    print("| rows | numbers | built in | held | peak while built | search of 56 series | recall at 5 |")
    print("|---|---|---|---|---|---|---|")
    for rows in args.sizes:
        words = ["--measure", str(rows), "--threads", str(args.threads)]
        done = subprocess.run(
            [sys.executable, str(Path(__file__).resolve()), *words],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        for found in json.loads(done.stdout):
            print(
                f"| {rows:,} | {found['numbers']} | {found['build']:.1f} s | {mib(found['held'])} | "
                f"{mib(found['peak'])} | {1000 * found['search']:.0f} ms | {found['recall']:.3f} |",
                flush=True,
            )
    return 0


def measured(rows: int) -> list[dict[str, Any]]:
    """Half numbers, then float32 ones, which say what the exact neighbours are."""
    config = Config()
    windows = -(-rows // VARIABLES)
    data = config.data
    span = data.seq_len + data.pred_len
    series = make_series(rows=windows + 2 * span, variables=VARIABLES, seed=0)
    values = torch.from_numpy(series.values).float()
    values = (values - values.mean(0)) / values.std(0)
    source = TrainingWindows(
        values, Split(0, windows + span - 1), seq_len=data.seq_len, pred_len=data.pred_len, series_id=1
    )
    lookback, query = _queries(values, data.seq_len, span)
    half, half_found = _one("fp16", source, lookback=lookback, query=query)
    whole, exact = _one("fp32", source, lookback=lookback, query=query)
    same = (half_found.rows[:, :, None] == exact.rows[:, None, :]).any(2)
    return [half | {"recall": float(same.float().mean())}, whole | {"recall": 1.0}]


def _one(
    numbers: str, source: TrainingWindows, *, lookback: torch.Tensor, query: Rows
) -> tuple[dict[str, Any], Neighbours]:
    """A memory in these numbers: seconds and bytes, and what it finds."""
    config = Config.from_flat(
        {"use_gram": True, "retrieval_key": "raw", "memory_size": "all", "memory_dtype": numbers}
    )
    d = config.data
    retriever = PatternValueDualRetriever(
        config.gram, seq_len=d.seq_len, horizon=d.pred_len, patch_len=config.backbone.patch_len, season=SEASON
    )
    give_back_freed()
    reset_peak()
    before, began = resident_bytes(), time.perf_counter()
    retriever.build(source, generator=torch.Generator().manual_seed(0))
    build, peak = time.perf_counter() - began, peak_bytes()
    give_back_freed()
    held = resident_bytes() - before
    seconds = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            began = time.perf_counter()
            found = retriever(lookback, query)
            seconds.append(time.perf_counter() - began)
    facts = {"numbers": numbers, "build": build, "held": held, "peak": peak - before}
    return facts | {"search": statistics.median(seconds)}, found


def _queries(values: torch.Tensor, seq_len: int, span: int) -> tuple[torch.Tensor, Rows]:
    """The last windows of the series, each variable one query: lookbacks [S, L] and where they begin."""
    starts = [len(values) - span - i for i in range(WINDOWS)]
    places = [(v, s) for s in starts for v in range(VARIABLES)]
    lookback = torch.stack([values[s : s + seq_len, v] for v, s in places])
    variable, start = (torch.tensor(column) for column in zip(*places, strict=True))
    return lookback, Rows(torch.ones_like(start), variable, start)


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of loading files of the benchmarks' sizes: ``python scripts/bench_data.py``.

Each size is a made-up file of as many rows and columns, loaded in a process of its own: read, checked,
divided, standardised; then batches of training windows. Prints a table.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from data_provider.data_factory import build_data, training_loader
from data_provider.synthetic import make_series, with_gaps
from utils.config import Config
from utils.data_sets import CUSTOM, DATA_SETS
from utils.ending import command
from utils.process_memory import mib, peak_bytes, resident_bytes

SIZES = ("ETTm1", "Weather", "ECL", "Traffic")
BATCHES = 20


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the named sizes and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "names", nargs="*", default=list(SIZES), metavar="NAME", help=f"of {', '.join(SIZES)}"
    )
    parser.add_argument("--rows", type=int, help="rows of each file (default: the published file's)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in SIZES]
    if unknown:
        parser.error(f"expected names of {', '.join(SIZES)}, found {', '.join(unknown)}")
    print("| size of | rows x variables | file | loaded in | series, float32 | peak | batch of 32 |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names:
            print(row_of(name, Path(folder) / f"{name}.csv", rows=args.rows), flush=True)
    return 0


def row_of(name: str, path: Path, *, rows: int | None) -> str:
    """One size's row of the table."""
    known = DATA_SETS[name]
    rows = rows or known.rows
    assert rows and known.variables and known.frequency, f"{name} is of no known size"
    series = make_series(rows=rows, variables=known.variables, frequency=known.frequency)
    with_gaps(series).to_csv(path, index=False, float_format="%.6g")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        found = fresh.submit(measured, path).result()
    size = path.stat().st_size
    path.unlink()
    return (
        f"| {name} | {rows:,} x {known.variables} | {size / 1e6:.0f} MB | {found['seconds']:.1f} s | "
        f"{mib(found['series'])} | {mib(found['peak'])} | {1000 * found['batch']:.0f} ms |"
    )


def measured(path: Path) -> dict[str, float]:
    """Seconds and bytes of loading a file in this process, and seconds of a batch."""
    config = Config.from_flat({"data": CUSTOM, "root_path": str(path.parent), "data_path": path.name})
    before = resident_bytes()
    began = time.perf_counter()
    bundle = build_data(config)
    seconds = time.perf_counter() - began
    peak = peak_bytes() - before
    loader = iter(training_loader(bundle, config))
    next(loader)
    began = time.perf_counter()
    count = sum(1 for _ in zip(range(BATCHES), loader, strict=False))
    return {
        "seconds": seconds,
        "peak": peak,
        "series": bundle.train.values.nbytes,  # type: ignore[attr-defined]
        "batch": (time.perf_counter() - began) / max(count, 1),
    }


if __name__ == "__main__":
    sys.exit(main())

"""Time and memory of GRA-M's memory at sizes up to a million rows: ``python scripts/bench_memory.py``.

Each size is a memory of raw keys drawn from a made-up hourly series that has so many training windows,
built, kept and searched in a process of its own. Prints a table; recall is the share of the exact five
nearest rows (float32) that a memory of other numbers finds as well. Times are the processor's, which other
work on the machine does not lengthen much.

``--llm_weights`` measures what the formats of an LLM's weights take in their place: SmolLM2 and a random
Llama of the 7B's shape with two layers, each format in a process of its own. Memory is what a model adds to
the process once a step was taken, and at the peak of a step; forecasts are compared with those in fp32.

``--approximate`` compares the exact search with FAISS's graph index (pip install faiss-cpu) over the same
keys: what building it takes, and recall and time of its searches.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from data_provider.synthetic import make_series
from layers.GRAM import Neighbours, PatternValueDualRetriever
from layers.retrieval.search import Rows
from models import TimeLLM
from scripts.lib.benchmark import tiny
from scripts.lib.benchmark.worker import reset_peak
from utils.config import Config
from utils.ending import command
from utils.process_memory import give_back_freed, mib, peak_bytes, resident_bytes

SIZES = (10_000, 100_000, 1_000_000)
VARIABLES, SEASON = 7, 24
LINKS, EFFORTS = 32, (64, 256, 1024, 4096)
"""Of FAISS's graph: links of a row, and how many rows a search keeps in sight (efSearch)."""
FORMATS: dict[str, dict[str, Any]] = {
    **{name: {"llm_weights": name} for name in ("fp32", "bf16", "int8")},
    "4 bits": {"load_in_4bit": True},
}
SHAPE_7B: dict[str, Any] = {
    "hidden": 4096, "layers": 2, "vocabulary": 32000, "dtype": torch.bfloat16, "intermediate_size": 11008,
    "num_attention_heads": 32, "num_key_value_heads": 32,
}  # fmt: skip
STEPS = 3
"""Training steps that are timed, of one window of one variable."""
WINDOWS, ROUNDS = 8, 5
"""Windows searched for at once, with all their variables; searches timed."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure the sizes and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("sizes", nargs="*", type=int, default=list(SIZES), metavar="ROWS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--approximate", action="store_true", help="compare with FAISS's HNSW")
    parser.add_argument("--llm_weights", action="store_true", help="the formats of an LLM's weights instead")
    args = parser.parse_args(argv)
    if args.llm_weights:
        return _formats(threads=args.threads)
    if args.approximate:
        return _against_approximate(args.sizes, threads=args.threads)
    print("| rows | numbers | built in | held | peak while built | search of 56 series | recall at 5 |")
    print("|---|---|---|---|---|---|---|")
    for rows in args.sizes:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, spawned, torch.set_num_threads, (args.threads,)) as fresh:
            both = fresh.submit(measured, rows).result()
        for found in both:
            print(
                f"| {rows:,} | {found['numbers']} | {found['build']:.1f} s | {mib(found['held'])} | "
                f"{mib(found['peak'])} | {1000 * found['computing']:.0f} ms | {found['recall']:.3f} |",
                flush=True,
            )
    return 0


def _formats(*, threads: int) -> int:
    """The table of what the formats of an LLM's weights take."""
    with tempfile.TemporaryDirectory() as folder:
        shaped = tiny.write_llm(Path(folder), **SHAPE_7B)
        llms = {
            "SmolLM2, 12 layers": {"llm_model": "SMOLLM2", "llm_layers": 12},
            "Llama-7B's shape, 2 layers": {"llm_model_path": str(shaped), "llm_layers": 2},
        }
        print("| LLM | weights | held after a step | peak of a step | a step | forecasts differ by |")
        print("|---|---|---|---|---|---|")
        for name, llm in llms.items():
            whole = None
            for kind, more in FORMATS.items():
                spawned = multiprocessing.get_context("spawn")
                with ProcessPoolExecutor(1, spawned, torch.set_num_threads, (threads,)) as fresh:
                    found = fresh.submit(measured_format, llm | more).result()
                whole = found["forecast"] if whole is None else whole
                apart = float((found["forecast"] - whole).std() / whole.std())
                print(
                    f"| {name} | {kind} | {mib(found['held'])} | {mib(found['peak'])} | "
                    f"{found['computing']:.1f} s | {apart:.1%} |",
                    flush=True,
                )
    return 0


def measured_format(settings: dict[str, Any]) -> dict[str, Any]:
    """Bytes, seconds of the processor, and a forecast [1, H, 1] of a model with these settings, on a CPU."""
    with suppress(ImportError):  # what it takes itself is no model's
        import torchao.quantization  # noqa: F401
    config = Config.from_flat({"source_tokens": "prototypes", "dropout": 0.0, "cpu": True, **settings})
    _, lookback, _ = _source_and_queries(1000)
    before = resident_bytes()
    torch.manual_seed(0)
    model = TimeLLM.Model(config)
    windows = lookback[:1].unsqueeze(-1)
    reset_peak()
    computing = []
    for _ in range(STEPS):
        began = time.process_time()
        model.zero_grad(set_to_none=True)
        model(windows).square().mean().backward()
        computing.append(time.process_time() - began)
    peak = peak_bytes()
    give_back_freed()
    with torch.no_grad():
        forecast = model.eval()(windows)
    return {
        "held": resident_bytes() - before,
        "peak": peak - before,
        "computing": statistics.median(computing),
        "forecast": forecast,
    }


def _against_approximate(sizes: Sequence[int], *, threads: int) -> int:
    """The table of an index that finds most of the nearest rows, at several efforts of a search.

    Windows of the training part have neighbours that share rows with them, which must not be found: an
    index has to find more than is asked for, and leave those out.
    """
    import faiss

    torch.set_num_threads(threads)
    faiss.omp_set_num_threads(threads)
    print("| rows | windows | search | built in | search of 56 series | recall at 5 |")
    print("|---|---|---|---|---|---|")
    span = Config().data.seq_len + Config().data.pred_len
    for rows in sizes:
        source, lookback, query = _source_and_queries(rows)
        kinds = {"behind the memory": (lookback, query), "of the memory": _within(source)}
        index = None
        for kind, (lookback, query) in kinds.items():
            retriever = _retriever("fp32", retrieval_scope="all")  # an index knows of no variables
            facts, exact = _one("fp32", source, lookback=lookback, query=query, retriever=retriever)
            row = f"| {rows:,} | {kind} "
            print(f"{row}| exact | {facts['build']:.1f} s | {1000 * facts['computing']:.0f} ms | 1.000 |")
            with torch.no_grad():
                keys, asked = retriever.memory_keys.numpy(), retriever.keys(lookback).numpy()
            if index is None:
                began = time.process_time()
                index = faiss.IndexHNSWFlat(keys.shape[1], LINKS)
                index.add(keys)
                build = time.process_time() - began
            top = exact.rows.shape[1]
            wanted = top if kind == "behind the memory" else 2 * span + top
            for effort in sorted({max(effort, wanted) for effort in EFFORTS}):
                index.hnsw.efSearch = effort
                seconds = []
                for _ in range(ROUNDS):
                    began = time.process_time()
                    found = torch.from_numpy(index.search(asked, wanted)[1])
                    apart = (retriever.memory_start[found] - query.start[:, None]).abs() >= span
                    kept = (apart & (apart.cumsum(1) <= top)) & (found >= 0)
                    seconds.append(time.process_time() - began)
                same = ((found[:, :, None] == exact.rows[:, None, :]) & kept[:, :, None]).any(1)
                print(
                    f"{row}| HNSW, {effort} | {build:.0f} s | "
                    f"{1000 * statistics.median(seconds):.0f} ms | {float(same.float().mean()):.3f} |",
                    flush=True,
                )
    return 0


def measured(rows: int) -> list[dict[str, Any]]:
    """Half numbers, then float32 ones, which say what the exact neighbours are."""
    source, lookback, query = _source_and_queries(rows)
    half, half_found = _one("fp16", source, lookback=lookback, query=query)
    whole, exact = _one("fp32", source, lookback=lookback, query=query)
    same = (half_found.rows[:, :, None] == exact.rows[:, None, :]).any(2)
    return [half | {"recall": float(same.float().mean())}, whole | {"recall": 1.0}]


def _source_and_queries(rows: int) -> tuple[TrainingWindows, torch.Tensor, Rows]:
    """Training windows that make so many rows, and lookbacks behind them with where they begin."""
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
    return source, *_queries(values, data.seq_len, span)


def _one(
    numbers: str,
    source: TrainingWindows,
    *,
    lookback: torch.Tensor,
    query: Rows,
    retriever: PatternValueDualRetriever | None = None,
) -> tuple[dict[str, Any], Neighbours]:
    """A memory in these numbers, in ``retriever`` or one of its own: seconds and bytes, and what it finds."""
    retriever = retriever or _retriever(numbers)
    give_back_freed()
    reset_peak()
    before, began = resident_bytes(), time.process_time()
    retriever.build(source, generator=torch.Generator().manual_seed(0))
    build, peak = time.process_time() - began, peak_bytes()
    give_back_freed()
    held = resident_bytes() - before
    computing = []
    with torch.no_grad():
        for _ in range(ROUNDS):
            began = time.process_time()
            found = retriever(lookback, query)
            computing.append(time.process_time() - began)
    facts = {
        "numbers": numbers,
        "build": build,
        "held": held,
        "peak": peak - before,
        "computing": statistics.median(computing),
    }
    return facts, found


def _within(source: TrainingWindows) -> tuple[torch.Tensor, Rows]:
    """Windows from the middle of the training part, as `_queries`."""
    windows = torch.arange(WINDOWS) + source.num_windows // 2
    found = source.rows((torch.arange(VARIABLES)[:, None] * source.num_windows + windows).flatten())
    return found.lookback, Rows(found.series_id, found.variable, found.start)


def _retriever(numbers: str, **changes: str) -> PatternValueDualRetriever:
    """One of raw keys, with no memory yet."""
    settings = {"use_gram": True, "retrieval_key": "raw", "memory_size": "all", "memory_dtype": numbers}
    config = Config.from_flat({**settings, **changes})
    d = config.data
    return PatternValueDualRetriever(
        config.gram, seq_len=d.seq_len, horizon=d.pred_len, patch_len=config.backbone.patch_len, season=SEASON
    )


def _queries(values: torch.Tensor, seq_len: int, span: int) -> tuple[torch.Tensor, Rows]:
    """The last windows of the series, each variable one query: lookbacks [S, L] and where they begin."""
    starts = [len(values) - span - i for i in range(WINDOWS)]
    places = [(v, s) for s in starts for v in range(VARIABLES)]
    lookback = torch.stack([values[s : s + seq_len, v] for v, s in places])
    variable, start = (torch.tensor(column) for column in zip(*places, strict=True))
    return lookback, Rows(torch.ones_like(start), variable, start)


if __name__ == "__main__":
    sys.exit(main())

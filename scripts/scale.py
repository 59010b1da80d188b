"""What a training step costs, measured, and what that says for larger runs: ``python scripts/scale.py``.

Llamas of several widths and depths with random weights are trained for some steps each, a model of the
time (a step, a patch, an operation) is fitted to a part of them and checked on the others, and the
costs of larger runs are reckoned from it and from the formulas of memory and operations. ``--docs`` puts
the tables into docs/scale.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch

from scripts.lib.benchmark.subject import Subject
from scripts.lib.benchmark.table import place
from scripts.lib.benchmark.tiny import write_llm
from scripts.lib.scale.cost import Measurement, StepFlops, TimeModel, step_flops
from scripts.lib.scale.tables import markdown
from utils.cli import PathFlag
from utils.ending import command
from utils.paths import PROJECT_ROOT
from utils.reporting.peak_memory import sizes_of

DOCUMENT = PROJECT_ROOT / "docs/scale.md"
MARKERS = ("<!-- scale: begin -->", "<!-- scale: end -->")
FITTED: list[dict[str, Any]] = [
    {"hidden": hidden, "layers": layers, "batch_size": windows, "source_tokens": source}
    for hidden in (256, 512)
    for layers in (1, 4)
    for windows, source in ((1, "prototypes"), (4, "prototypes"), (2, "mapping"))
]
HELD_OUT: list[dict[str, Any]] = [
    {"hidden": 384, "layers": 2, "batch_size": 2, "source_tokens": "prototypes"},
    {"hidden": 384, "layers": 6, "batch_size": 3, "source_tokens": "mapping"},
    {"hidden": 768, "layers": 3, "batch_size": 2, "source_tokens": "prototypes"},
    {"hidden": 768, "layers": 2, "batch_size": 4, "source_tokens": "mapping"},
    {"hidden": 512, "layers": 3, "batch_size": 8, "source_tokens": "prototypes", "seq_len": 256},
]
VOCABULARY = 32_000
WARM, STEPS = 2, 5


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure, fit, check and print; or print again what ``--out`` kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"timed steps of each case [{STEPS}]")
    parser.add_argument(
        "--out", action=PathFlag, kind=Path, metavar="FILE", help="keep the measurements as JSON"
    )
    parser.add_argument(
        "--measured", action=PathFlag, kind=Path, metavar="FILE", help="take them from here; measure nothing"
    )
    parser.add_argument(
        "--docs",
        action=PathFlag,
        kind=Path,
        nargs="?",
        const=DOCUMENT,
        metavar="FILE",
        help="put the tables into it",
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    if args.measured:
        fitted, held_out = read(args.measured)
    else:
        fitted = [measure(case, steps=args.steps) for case in FITTED]
        held_out = [measure(case, steps=args.steps) for case in HELD_OUT]
    if args.out:
        kept = {"fitted": [asdict(m) for m in fitted], "held_out": [asdict(m) for m in held_out]}
        args.out.write_text(json.dumps(kept, indent=1) + "\n", "utf-8")
    text = markdown(TimeModel.fitted(fitted), fitted, held_out, threads=args.threads)
    print(text)
    if args.docs:
        place(text, args.docs, markers=MARKERS)
    return 0


def measure(case: dict[str, Any], *, steps: int) -> Measurement:
    """Train a Llama of this size for some steps."""
    sizes = {"hidden": case["hidden"], "layers": case["layers"], "vocabulary": VOCABULARY}
    settings = {name: value for name, value in case.items() if name not in ("hidden", "layers")}
    with tempfile.TemporaryDirectory() as folder:
        path = write_llm(Path(folder), **sizes)
        flags = {"data": "synthetic", "llm_model_path": str(path), "llm_layers": case["layers"], "cpu": True}
        subject = Subject({**flags, **settings}, model="TimeLLM", plain=False, description=None, device="cpu")
        taken = []
        for _ in range(WARM + steps):
            began = time.perf_counter()
            subject.train_step()
            taken.append(time.perf_counter() - began)
    found = sizes_of(subject.model, config=subject.config, forecast=len(subject.data.targets))
    patches = subject.config.training.batch_size * found.variables * subject.config.patch_count
    low, median, high = statistics.quantiles(taken[WARM:], n=4) if steps > 1 else [taken[-1]] * 3
    print(f"{case}: {median:.3f} s", file=sys.stderr, flush=True)
    return Measurement(case, patches, step_flops(found), median, (low, high))


def read(path: Path) -> tuple[list[Measurement], list[Measurement]]:
    """What ``--out`` kept: the fitted and the held-out measurements."""
    kept = json.loads(path.read_text("utf-8"))
    return _measurements(kept["fitted"]), _measurements(kept["held_out"])


def _measurements(kept: list[dict[str, Any]]) -> list[Measurement]:
    """From JSON, which knows neither tuples nor their names."""
    own = ({"flops": StepFlops(*m["flops"]), "spread": tuple(m["spread"])} for m in kept)
    return [Measurement(**{**m, **parts}) for m, parts in zip(kept, own, strict=True)]


if __name__ == "__main__":
    sys.exit(main())

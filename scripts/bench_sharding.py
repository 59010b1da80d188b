"""Memory and time with the LLM whole and divided among processes: ``python scripts/bench_sharding.py``.

A Llama with random weights trains on a made-up series, on several processes (gloo, on the CPU), with
``--shard_llm`` and without; or, by ``--zero``, a small one with a large map of its vocabulary, whose
gradients and optimizer DeepSpeed divides or not. A process's own memory is told apart from pages of the
weights' file, which the system holds once for all processes and can take back; on a GPU there are none.
The C library is told to give freed blocks back (MALLOC_MMAP_THRESHOLD_): by itself it keeps the holes
that freed layers leave.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch.utils.data import DataLoader

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from data_provider.synthetic import make_series, with_gaps
from models.inspection import inspection_lines
from models.registry import MODELS, llm_outline
from scripts.lib.benchmark.tiny import write_llm
from utils.config import Config
from utils.ending import command
from utils.paths import PROJECT_ROOT
from utils.process_memory import STATUS, give_back_freed, mib
from utils.training.experiment import Builders, run
from utils.training.run_folder import METRICS_FILE
from utils.types import Batch, DataBundle

VOCABULARY = 4_000
MAPPED = {"hidden": 128, "layers": 1, "vocabulary": 50_000}
"""The LLM of ``--zero``: 50 million trained weights map its vocabulary."""
LOOKBACK, HORIZON, ROWS = 128, 24, 260
STEPS = 6
WARM = 2
"""Steps that are not timed."""
PRECISIONS = {"no": "fp32", "bf16": "bf16"}
MEMORIES = ("peak_built", "built", "file", "peak")
LOOK = 0.01
"""Seconds between two looks at the memory."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Measure both kinds in both precisions and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"optimizer steps [{STEPS}]")
    parser.add_argument("--zero", action="store_true", help="divide what is trained, by DeepSpeed")
    parser.add_argument("--measure", type=Path, metavar="FOLDER", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure is not None:
        measure(args.measure)
        return 0
    what = "gradients and optimizer" if args.zero else "LLM"
    print(
        f"| run in | {what} | own, most while built | own, built | of the file | own, most | seconds a step |"
    )
    print("|---|---|---|---|---|---|---|")
    for precision in PRECISIONS:
        for divided in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                found = started(Path(folder), args, precision=precision, divided=divided)
            worst = [mib(max(one[name] for one in found)) for name in MEMORIES]
            print(
                f"| {PRECISIONS[precision]} | {'divided' if divided else 'whole'} | {' | '.join(worst)} "
                f"| {found[0]['seconds']:.2f} |",
                flush=True,
            )
    return 0


def started(folder: Path, args: argparse.Namespace, *, precision: str, divided: bool) -> list[dict[str, Any]]:
    """What each process of one run found."""
    sizes = {"hidden": args.hidden, "layers": args.layers, "vocabulary": VOCABULARY}
    if args.zero:
        sizes = MAPPED
    llm = write_llm(folder / "llm", **sizes)
    with_gaps(make_series(rows=ROWS, variables=1)).to_csv(folder / "series.csv", index=False)
    settings = {
        "data": "custom",
        "root_path": str(folder),
        "data_path": "series.csv",
        "seq_len": LOOKBACK,
        "pred_len": HORIZON,
        "llm_model_path": str(llm),
        "llm_layers": sizes["layers"],
        "source_tokens": "mapping" if args.zero else "prototypes",
        "batch_size": 1,
        "channel_sampling": "single",
        "max_steps": args.steps,
        "eval_batch_size": 8,
        "eval_stride": 1000,
        "save_steps": 0,
        "log_steps": 1,
        "levels": (),
        "mixed_precision": precision,
        "shard_llm": divided and not args.zero,
        "cpu": True,
        "checkpoints": str(folder / "checkpoints"),
    }
    (folder / "settings.json").write_text(json.dumps(settings), "utf-8")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    variables = {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "MALLOC_MMAP_THRESHOLD_": "1000000"}
    if divided and args.zero:
        variables["ACCELERATE_USE_DEEPSPEED"] = "true"
    done = subprocess.run(
        [*launch, "--nproc_per_node", str(args.processes), __file__, "--measure", str(folder)],
        check=False,
        cwd=PROJECT_ROOT,
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stderr[-5000:]}")
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("found.*"))]


class Memory(threading.Thread):
    """Looks at this process's own memory until it is told to stop."""

    def __init__(self) -> None:
        """Nothing seen yet."""
        super().__init__(daemon=True)
        self.peak = 0
        self.stop = threading.Event()

    @staticmethod
    def now() -> int:
        """Bytes that no file backs."""
        line = next(text for text in STATUS.read_text().splitlines() if text.startswith("RssAnon"))
        return int(line.split()[1]) * 1024

    @staticmethod
    def of_files() -> int:
        """Bytes of weights' files that are mapped and there."""
        found, counts = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:
                counts = line.endswith(".safetensors")
            elif counts and line.startswith("Rss:"):
                found += int(line.split()[1]) * 1024
        return found

    def run(self) -> None:
        """Keep the largest."""
        while not self.stop.wait(LOOK):
            self.peak = max(self.peak, self.now())


def measure(folder: Path) -> None:
    """One process of a run: its memory once all is built, its peaks, and the median time of a step."""
    settings = json.loads((folder / "settings.json").read_text("utf-8"))
    memory = Memory()
    memory.start()
    before = memory.now()
    found: dict[str, Any] = {}

    def loader(bundle: DataBundle, config: Config, **options: Any) -> DataLoader[Batch]:
        give_back_freed()
        found.update(built=memory.now() - before, peak_built=memory.peak - before, file=memory.of_files())
        return training_loader(bundle, config, **options)

    name = "TimeLLM"
    builders = Builders(
        name, MODELS[name], build_data, loader, evaluation_loader, inspection_lines, llm_outline(name)
    )
    result = run(Config.from_flat(settings), builders)
    memory.stop.set()
    found["peak"] = memory.peak - before
    records = map(json.loads, (result.run_dir / METRICS_FILE).read_text("utf-8").splitlines())
    taken = [r["seconds_per_step"] for r in records if r["event"] == "train"]
    found["seconds"] = statistics.median(taken[WARM:])
    (folder / f"found.{os.environ['RANK']}").write_text(json.dumps(found), "utf-8")


if __name__ == "__main__":
    sys.exit(main())

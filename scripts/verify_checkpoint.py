"""Say whether checkpoints are whole, and what is inside: ``python scripts/verify_checkpoint.py PATH ...``.

PATH is a checkpoint file, a step folder, or a run folder (all of its checkpoints). Exit status 0
where every one is whole, 1 where one is not. Nothing is written, and no code in a file is run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from torch import Tensor

from utils.cli import PathFlag
from utils.ending import command
from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError

MEMORIES = ("memory_values", "retrieved.futures")
"""What GRA-M retrieves from: a memory of its own, or the start's."""


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Print what is known of each checkpoint; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "paths", action=PathFlag, nargs="+", metavar="PATH", help="checkpoint file, step folder or run folder"
    )
    whole = True
    for where in parser.parse_args(argv).paths:
        files = checkpoint_files(Path(where))
        if not files:
            print(f"{where}: expected a checkpoint file, or a folder that holds one, found none")
            whole = False
        for path in files:
            try:
                print("\n".join(describe(path)))
            except CheckpointError as error:
                print(f"NOT WHOLE  {error}")
                whole = False
    return 0 if whole else 1


def checkpoint_files(path: Path) -> list[Path]:
    """The checkpoint files that a path means."""
    if path.is_file():
        return [path]
    if (path / checkpoints.STEP_FILE).is_file():
        return [path / checkpoints.STEP_FILE]
    best = path / checkpoints.BEST
    return [*([best] if best.is_file() else []), *checkpoints.step_checkpoints(path)]


def describe(path: Path) -> list[str]:
    """What a whole file holds, in lines.

    Raises:
        CheckpointError: it is not whole, or holds no weights.
    """
    payload = checkpoints.load_weights(path)
    weights: Mapping[str, Tensor] = payload["model"]
    checked = (
        "sha256 is right" if checkpoints.stated_checksum(path) else "no sha256; its records' CRC-32 are right"
    )
    lines = [f"WHOLE  {path}  ({path.stat().st_size / 1e6:.1f} MB, {checked})"]
    lines.append(f"  weights: {len(weights)} tensors, {sum(t.numel() for t in weights.values()):,} numbers")
    try:
        checkpoints.load(path)
    except CheckpointError as error:
        return [*lines, f"  cannot be gone on from: {str(error).split(': ', 1)[1]}"]
    return lines + [f"  {name}: {text}" for name, text in _facts(payload).items()]


def _facts(payload: Mapping[str, Any]) -> dict[str, str]:
    """What a run's payload says of the run."""
    config, llm, data = payload["config"], payload["llm"], payload["data"]
    memory = max((len(t) for name, t in payload["model"].items() if name.endswith(MEMORIES)), default=0)
    modules = [name for name in ("use_tapr", "use_gram") if config.get(name)]
    progress = payload["progress"]
    return {
        "format": str(payload["format_version"]),
        "step": f"{payload['global_step']}, in epoch {progress['epoch'] + 1} after {progress['epoch_steps']} "
        f"of its steps{', validation due' if progress['validation_due'] else ''}",
        "best validation": f"{payload['val_loss_min']:.6g} at step {progress['best_step']}, "
        f"{payload['counter']} without improvement since",
        "batch": ", ".join(f"{name} {value}" for name, value in payload["batch"].items()),
        "numerics": ", ".join(f"{name} {value}" for name, value in payload["numerics"].items()),
        "llm": f"{llm['name']}, {llm['layers']} layers, content {llm['content_hash'][:12]}"
        if llm
        else "none",
        "data": f"{data['name']}, {len(data['columns'])} columns, {data['frequency']}, content "
        f"{data['content_hash'][:12]}, windows {'/'.join(map(str, data['windows']))}",
        "intervals": _intervals(payload.get("calibration")),
        "modules": f"{' '.join(modules) or 'none'}; memory of {memory} rows",
        "lengths": f"seq_len {config['seq_len']}, pred_len {config['pred_len']}, seed {config['seed']}",
    }


def _intervals(calibration: Mapping[str, Any] | None) -> str:
    """What prediction intervals rest on."""
    if calibration is None:
        return "none"
    return f"{calibration['score']} errors of {calibration['count']} validation windows"


if __name__ == "__main__":
    sys.exit(main())

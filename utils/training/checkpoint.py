"""Checkpoints: written whole or not at all, found, verified, restored, pruned.

A run folder holds ``checkpoint`` (the best by validation) and ``checkpoint_step_N/checkpoint.pt``.
Both are full payloads: a run can go on from either. Nothing but tensors and plain values is
inside, so everything loads with ``weights_only=True``.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import zipfile
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

log = getLogger(__name__)
FORMAT_VERSION = 1
BEST = "checkpoint"
STEP_FOLDER = "checkpoint_step_{step}"
STEP_FILE = "checkpoint.pt"
REQUIRED_KEYS = ("model", "optimizer", "scheduler", "epoch", "global_step", "config", "llm")
_STEP_PATTERN = re.compile(r"checkpoint_step_(\d+)$")


class CheckpointError(ValueError):
    """A checkpoint is missing, broken, or belongs to another run; the message says which and why."""


def save(payload: Mapping[str, Any], path: Path) -> None:
    """Write ``payload`` to ``path``: a temporary file beside it, flushed to disk, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".writing-{path.name}-{os.getpid()}")  # not mkstemp: its files are private
    try:
        with temporary.open("wb") as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load(path: Path) -> dict[str, Any]:
    """The payload at ``path``, on the CPU.

    Raises:
        CheckpointError: the file is missing, cut off, altered, holds code, or lacks what a run needs.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a checkpoint file, found none")
    try:
        with zipfile.ZipFile(path) as records:
            altered = records.testzip()  # torch.load does not look at the checksums
        if altered is not None:
            raise zipfile.BadZipFile(f"{altered} fails its checksum")
        payload = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes its readers fail in any way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{path}: expected a whole checkpoint of tensors and plain values, "
            f"found one that does not load ({reason})"
        ) from error
    missing = [k for k in REQUIRED_KEYS if not isinstance(payload, dict) or k not in payload]
    if missing:
        raise CheckpointError(f"{path}: expected a run's checkpoint, found one without {', '.join(missing)}")
    return payload


def save_step(payload: Mapping[str, Any], run_dir: Path, *, step: int, keep: int) -> Path:
    """Save a step checkpoint, then remove all but the newest ``keep`` up to this step (0 keeps all).

    Those of later steps, which an earlier attempt left behind where a run resumed from before them,
    are not touched.
    """
    path = run_dir / STEP_FOLDER.format(step=step) / STEP_FILE
    save(payload, path)
    if keep:
        up_to_here = step_checkpoints(run_dir)
        for old in up_to_here[: up_to_here.index(path) + 1][:-keep]:
            old.unlink()
            if not any(old.parent.iterdir()):
                shutil.rmtree(old.parent)
    return path


def step_checkpoints(run_dir: Path) -> list[Path]:
    """Step checkpoint files of a run, oldest first."""
    found = [
        (int(match.group(1)), folder / STEP_FILE)
        for folder in run_dir.glob("checkpoint_step_*")
        if (match := _STEP_PATTERN.search(folder.name)) and (folder / STEP_FILE).is_file()
    ]
    return [path for _, path in sorted(found)]


def locate(where: str, *, flag: str = "--resume_from_checkpoint") -> Path:
    """The checkpoint file that a path means: a file, a step folder, or a run folder (its newest).

    Raises:
        CheckpointError: there is none; the message names ``flag``.
    """
    path = Path(where)
    if path.is_file():
        return path
    if (path / STEP_FILE).is_file():
        return path / STEP_FILE
    newest = newest_in(path)
    if newest is None:
        raise CheckpointError(
            f"{flag}: expected a checkpoint file, or a folder that holds one, found {where}"
        )
    return newest


def newest_in(run_dir: Path) -> Path | None:
    """The whole checkpoint of a run folder that was written last, or None.

    Last by time, not by step: a run that resumed from before an older attempt's last step goes on
    from its own.
    """
    best = run_dir / BEST
    candidates = [*([best] if best.is_file() else []), *step_checkpoints(run_dir)]
    in_order = sorted(enumerate(candidates), key=lambda item: (item[1].stat().st_mtime_ns, item[0]))
    for _, path in reversed(in_order):
        try:
            load(path)
        except CheckpointError as error:
            log.warning("passed over: %s", error)
            continue
        return path
    return None


def random_state() -> dict[str, Any]:
    """The state of every random generator of this process, as tensors and plain values."""
    numpy_state: Any = np.random.get_state(legacy=True)
    version, words, gauss = random.getstate()
    return {
        "python": [version, list(words), gauss],
        "numpy": [
            numpy_state[0],
            torch.from_numpy(np.asarray(numpy_state[1]).astype(np.int64)),
            *numpy_state[2:],
        ],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Set every random generator of this process to a `random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def differences(saved: Mapping[str, Any], current: Mapping[str, Any], *, free: frozenset[str]) -> list[str]:
    """One line for each setting that a checkpoint and this run do not share, ``free`` ones aside."""
    return [
        f"--{name}: the checkpoint has {saved.get(name)!r}, this run {current.get(name)!r}"
        for name in sorted(set(saved) | set(current))
        if name not in free and saved.get(name) != current.get(name)
    ]

"""What two runs left, compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from scripts.lib.crash.comparing import unequal as unequal
from utils.training import checkpoint as checkpoints
from utils.types import DataBundle

TIMES = ("seconds", "seconds_per_step", "samples_per_second", "memory_bytes")


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def last_payload(run_dir: Path) -> dict[str, Any]:
    """The step checkpoint of the highest step."""
    return load(checkpoints.step_checkpoints(run_dir)[-1])


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def note_items(bundle: DataBundle, order: list[int]) -> None:
    """From here on, each training item that is taken is noted in ``order``."""
    item = type(bundle.train).__getitem__

    class Spied(type(bundle.train)):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            order.append(index)
            return item(self, index)

    bundle.train.__class__ = Spied

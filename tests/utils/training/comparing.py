"""What two runs left, compared to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from utils.training import checkpoint as checkpoints

TIMES = ("seconds", "seconds_per_step")


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def last_payload(run_dir: Path) -> dict[str, Any]:
    """The step checkpoint of the highest step."""
    return load(checkpoints.step_checkpoints(run_dir)[-1])


def records(run_dir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock measured."""
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def unequal(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two payloads differ, to the bit."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
        return [] if same else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [found for k in a for found in unequal(a[k], b[k], f"{where}/{k}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: lengths {len(a)}, {len(b)}"]
        return [found for i in range(len(a)) for found in unequal(a[i], b[i], f"{where}/{i}")]
    return [] if a == b and type(a) is type(b) else [f"{where}: {a!r}, {b!r}"]

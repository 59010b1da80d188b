"""Two nested values, such as checkpoints or metrics, compared to the bit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch


def unequal(a: Any, b: Any, where: str = "", *, but: Collection[str] = ()) -> list[str]:
    """Where two values differ in content or type; a line each, none where they are the same.

    Args:
        a: tensors, dicts, lists and plain values, nested in any way.
        b: likewise.
        where: what to call the outermost value.
        but: keys that are not compared, at any depth.
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ({k: v for k, v in side.items() if k not in but} for side in (a, b))
        if a.keys() != b.keys():
            return [f"{where}: {sorted(map(str, a.keys() ^ b.keys()))}"]
        return [line for k in a for line in unequal(a[k], b[k], f"{where}/{k}", but=but)]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return [f"{where}: {len(a)} and {len(b)} entries"]
        return [line for i in range(len(a)) for line in unequal(a[i], b[i], f"{where}/{i}", but=but)]
    return [] if a == b and type(a) is type(b) else [f"{where}: {a!r} and {b!r}"]

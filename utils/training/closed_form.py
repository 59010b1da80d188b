"""Weights that have a closed form: solved for once, on the main process, and kept by content.

What is kept lies in ``--checkpoints``, in a file that is named after the hash of the data, their division and
scale, and of the settings that the model says its solution depends on (`utils.types.FitSource.once`).
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from utils.training import checkpoint as checkpoints
from utils.training.checkpoint import CheckpointError
from utils.training.run_state import RunContext
from utils.training.together import agreed
from utils.types import DataBundle

log = getLogger(__name__)
FOLDER = ".solved"
VERSION = 2
"""Of how a solution is computed: another finds nothing kept."""


def solve_once(
    ctx: RunContext, module: nn.Module, settings: dict[str, Any] | None, solve: Callable[[], None]
) -> None:
    """Let ``solve`` change the state of ``module``, the same in every process.

    Args:
        ctx: of the run.
        module: what is solved for.
        settings: what the solution depends on beside the data; None where it is not worth keeping.
        solve: the work.

    Raises:
        Exception: the main process's, in all of them.
    """
    handed: list[dict[str, Tensor] | None] = [None]
    with agreed(ctx.accelerator):
        if ctx.accelerator.is_main_process:
            handed = [_solution(ctx, module, settings, solve)]
    if ctx.accelerator.num_processes > 1:
        found = broadcast_object_list(handed)[0]
        assert found is not None
        if not ctx.accelerator.is_main_process:
            module.load_state_dict(found, strict=False)


def _solution(
    ctx: RunContext, module: nn.Module, settings: dict[str, Any] | None, solve: Callable[[], None]
) -> dict[str, Tensor]:
    """What solving changes of the module's state, which then has it."""
    path = None
    if settings is not None:
        path = Path(ctx.config.run.checkpoints) / FOLDER / f"{content_key(ctx.data, settings)}.pt"
        kept = _kept(path)
        if kept is not None:
            module.load_state_dict(kept, strict=False)
            log.info("closed form: that of %s, of the same data and settings", path)
            return kept
    began = time.perf_counter()
    before = {name: _place(tensor) for name, tensor in module.state_dict().items()}
    solve()
    solution = {
        name: tensor.detach().cpu()
        for name, tensor in module.state_dict().items()
        if before.get(name) != _place(tensor)
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save({"model": solution}, path)
        log.info("closed form: solved in %.1f s, kept as %s", time.perf_counter() - began, path)
    return solution


def content_key(data: DataBundle, settings: dict[str, Any]) -> str:
    """The hash of all that a solution depends on."""
    facts = {
        "version": VERSION,
        "settings": settings,
        "content": data.content_hash,
        "windows": list(data.windows),
        "targets": list(data.targets),
        "mean": data.standardisation.mean.tolist(),
        "std": data.standardisation.std.tolist(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def _kept(path: Path) -> dict[str, Tensor] | None:
    """A solution that was kept; None without one, or where it is no longer whole."""
    if not path.is_file():
        return None
    try:
        solution: dict[str, Tensor] = checkpoints.load_weights(path)["model"]
    except CheckpointError as error:
        log.warning("%s; solving again", error)
        return None
    return solution


def _place(tensor: Tensor) -> tuple[int, int, torch.Size]:
    """Where a tensor lies, how often it was written, its shape: others once it is solved for."""
    return tensor.data_ptr(), tensor._version, tensor.shape

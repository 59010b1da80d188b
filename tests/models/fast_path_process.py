"""What each of several processes computes for `test_fast_paths`: the fast and the plain way, wrapped."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.models.test_timellm_enhanced import BOTH, batch_of, model_of, state_of
from utils.training.objective import Objective
from utils.types import PassOfStep

WAYS: dict[str, dict[str, Any]] = {
    "baseline": {},
    "document": BOTH,
    "adapters": {**BOTH, "peft": "lora"},
    "prompt first": {**BOTH, "token_order": "prompt_first", "retrieval_fusion": "both"},
}
CASES = list(zip([0, 1, 2, 1], WAYS, strict=True))
"""The number of an LLM's folder with each way: all of both, as every pair meets on one process."""
BATCHES = [[(0, 100), (20, 130)], [(60, 30), (10, 90)]]
"""Starts of the windows, by process and pass."""


def main(rank: int, world: int, folders: list[str], out: str) -> None:
    """Everything of one process, saved under its rank."""
    torch.set_num_threads(1)
    store = f"file://{out}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    found = {way: compare(Path(folders[number]), WAYS[way]) for number, way in CASES}
    torch.save(found, Path(out) / f"{rank}")
    dist.barrier()
    dist.destroy_process_group()


def compare(folder: Path, switches: dict[str, Any]) -> dict[str, Any]:
    """Forecasts and gradients of the fast and of the plain way."""
    found: dict[str, Any] = {"processes": dist.get_world_size()}
    for way in ("fast", "plain"):
        model: Any = model_of(folder, **switches)
        calls = count_calls(model, "_map_words")
        if way == "plain":
            model.use_reference_forward()
        forecast, gradients = train(model, told=way == "fast")
        found |= {way: forecast, f"{way}_gradients": gradients, "mapped": found.get("mapped", len(calls))}
    return found


def count_calls(owner: Any, name: str) -> list[int]:
    """A list that grows by one item with every call of a method."""
    calls: list[int] = []
    called = getattr(owner, name)

    def counted(*args: Any) -> Any:
        calls.append(1)
        return called(*args)

    setattr(owner, name, counted)
    return calls


def train(model: Any, *, told: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The last pass's forecast, and every gradient of a step of two passes."""
    wrapped = DistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=False)
    wrapped.train()
    objective = Objective(model.config)
    passes = BATCHES[dist.get_rank()]
    for i, starts in enumerate(passes):
        batch, last = batch_of(*starts), i == len(passes) - 1
        if told:
            model.begin_pass(PassOfStep(first=i == 0, last=last))
        with contextlib.nullcontext() if last else wrapped.no_sync():
            state = state_of(wrapped, batch)
            objective(state, batch, step=10).total.backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    return state.prediction.detach(), gradients

"""What a test keeps beside its scores: errors window by window and step by step, gates and weights.

Shape legend: B windows, W windows of the whole test, M variables, H horizon, K neighbours, S series.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import gather_object
from numpy.typing import NDArray
from torch import Tensor

from utils.atomic_files import whole_file
from utils.types import Batch, ForecastState, RetrievalRecord

BINS = 20
"""Of the histograms, all over [0, 1]."""


class TestDetails(NamedTuple):
    """What one set of weights did on the test."""

    start: NDArray[np.int64]
    """[W], absolute row of each window, ascending."""
    squared: NDArray[np.float32]
    """[W], mean squared error of a window over horizon and variables."""
    absolute: NDArray[np.float32]
    """[W]."""
    horizon_squared: NDArray[np.float64]
    """[H], mean squared error of a step over windows and variables."""
    horizon_absolute: NDArray[np.float64]
    """[H]."""
    gate_counts: NDArray[np.int64]
    """[BINS], series by gate; all 0 without retrieval."""
    weight_counts: NDArray[np.int64]
    """[BINS], neighbours found by their weight."""


class DetailSums:
    """Collects `TestDetails` batch by batch; every process its share."""

    def __init__(self) -> None:
        """Empty."""
        self._windows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._horizon: Tensor | None = None
        self._counts = torch.zeros(2, BINS, dtype=torch.float64)

    def add(self, state: ForecastState, batch: Batch) -> None:
        """Take in one batch."""
        error = state.prediction.double() - batch.y.double()  # [B, H, M]
        squared, absolute = error.square(), error.abs()
        self._windows.append((batch.start, squared.mean(dim=(1, 2)), absolute.mean(dim=(1, 2))))
        by_step = torch.stack([squared.mean(dim=2).sum(dim=0), absolute.mean(dim=2).sum(dim=0)])  # [2, H]
        self._horizon = by_step if self._horizon is None else self._horizon + by_step
        if state.retrieval is not None:
            self._counts += _counts(state.retrieval).cpu()

    def gather(self) -> TestDetails:
        """Those of all processes together, the same in each.

        Raises:
            ValueError: there was no window, in any process.
        """
        own = []
        if self._windows:
            assert self._horizon is not None
            columns = [torch.cat(column).cpu().numpy() for column in zip(*self._windows, strict=True)]
            own = [(*columns, self._horizon.cpu().numpy(), self._counts.numpy())]
        parts = gather_object(own)
        if not parts:
            raise ValueError("no window was tested: the split is empty")
        start, squared, absolute = (np.concatenate([part[i] for part in parts]) for i in range(3))
        order = np.argsort(start, kind="stable")
        horizon = sum(part[3] for part in parts) / len(start)
        counts = sum(part[4] for part in parts).astype(np.int64)
        return TestDetails(
            start=start[order],
            squared=squared[order].astype(np.float32),
            absolute=absolute[order].astype(np.float32),
            horizon_squared=horizon[0],
            horizon_absolute=horizon[1],
            gate_counts=counts[0],
            weight_counts=counts[1],
        )


def _counts(record: RetrievalRecord) -> Tensor:
    """Series by gate, and neighbours that were found by weight, [2, BINS]."""
    found = record.weights[record.rows >= 0]
    return torch.stack([_histogram(record.gate), _histogram(found)])


def _histogram(values: Tensor) -> Tensor:
    """How many of ``values`` lie in each bin of [0, 1]; 1 itself is in the last."""
    bins = (values.double() * BINS).long().clamp(0, BINS - 1).reshape(-1)
    return torch.bincount(bins, minlength=BINS).double()


def write_details(path: Path, details: Mapping[str, TestDetails]) -> None:
    """Write the details of each set of weights, by its name, whole or not at all."""
    arrays: dict[str, Any] = {
        f"{weights}_{name}": value
        for weights, one in details.items()
        for name, value in one._asdict().items()
    }
    with whole_file(path) as file:
        np.savez_compressed(file, **arrays)


def read_details(path: Path) -> dict[str, TestDetails]:
    """What `write_details` wrote."""
    with np.load(path, allow_pickle=False) as saved:
        names = sorted({name.split("_")[0] for name in saved.files})
        return {n: TestDetails(**{f: saved[f"{n}_{f}"] for f in TestDetails._fields}) for n in names}

"""What a training step costs: its operations by formula, and a model of its time fitted to measurements.

Operations are multiplications and additions of matrix products, forward and backward, of the shortened
passes that a run takes by default; `layers.llm.forward` says what they leave out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import nnls

from utils.reporting.peak_memory import MemorySizes


class StepFlops(NamedTuple):
    """Operations of one training step of one process."""

    llm: float
    """In the frozen LLM."""
    source: float
    """Mapping the vocabulary to source tokens, and these to keys and values: the same for any batch."""
    rest: float
    """Reprogramming, embedding, head."""

    @property
    def total(self) -> float:
        """In all."""
        return sum(self)


def step_flops(sizes: MemorySizes) -> StepFlops:
    """Operations of a baseline's step, or of an enhanced one's but for its modules' own (a few percent).

    Raises:
        ValueError: the model has no LLM, or one whose pass is not shortened.
    """
    llm = sizes.llm
    if llm is None or sizes.kind != "causal":
        raise ValueError(f"expected a causal LLM, found the pass {sizes.kind}")
    series = sizes.config.training.batch_size * sizes.variables
    source, rest = _around(sizes, series)
    n = sizes.tokens()
    # two products of weights' size a token and layer; two of every query with every key, four backward
    tail_weights = llm.layers * n.tail * 2.0 * llm.layer_weights
    tail_maps = llm.layers * n.tail * 4.0 * llm.attention * sum(n[:3])
    front_weights = n.front * (2.0 * (llm.layers - 1) * llm.layer_weights + 4.0 * llm.width * llm.keys)
    front_maps = (llm.layers - 1) * n.front * 4.0 * llm.attention * (n.prefix + n.front)
    one = 2 * tail_weights + 3 * tail_maps + front_weights + front_maps
    if n.trained_front:
        one += front_weights + 2 * front_maps
    return StepFlops(llm=series * one, source=source, rest=rest)


def _around(sizes: MemorySizes, series: int) -> tuple[float, float]:
    """Operations around the LLM: of the source tokens, and of the series' patches."""
    llm, b, data = sizes.llm, sizes.config.backbone, sizes.config.data
    assert llm is not None
    width, queries = b.n_heads * b.d_ff, series * sizes.config.patch_count
    source = 3 * 2 * 2.0 * b.num_tokens * llm.width * width  # keys and values, both factors trained
    if b.source_tokens == "mapping":
        source += 2 * 2.0 * b.num_tokens * llm.vocabulary * llm.width
    rest = 2 * 2.0 * queries * 3 * b.patch_len * b.d_model
    rest += 3 * 2.0 * queries * (b.d_model * width + width * llm.width)
    # attention: scores and values forward, scores again, and four products backward
    rest += 7 * 2.0 * queries * b.num_tokens * width
    rest += 3 * 2.0 * series * sizes.config.patch_count * b.d_ff * data.pred_len
    return source, rest


@dataclass(frozen=True)
class Measurement:
    """A training step that was timed."""

    setting: dict[str, Any]
    """Hidden size, layers, windows, lookback."""
    patches: int
    """Of all series of the batch."""
    flops: StepFlops
    seconds: float
    """Median."""
    spread: tuple[float, float]
    """Quartiles."""


@dataclass(frozen=True)
class TimeModel:
    """Seconds of a step: so much a step, so much a patch, and so much an operation of two kinds.

    What is around the LLM grows with the patches alone, unless its own settings change.
    """

    step: float
    patch: float
    llm: float
    source: float

    @classmethod
    def fitted(cls, measured: Sequence[Measurement]) -> TimeModel:
        """The coefficients, none below 0, with the least squared relative error."""
        columns = np.array([_features(m.patches, m.flops) for m in measured])
        seconds = np.array([m.seconds for m in measured])
        scale = columns.max(axis=0)
        found, _ = nnls(columns / scale / seconds[:, None], np.ones(len(seconds)))
        return cls(*(found / scale))

    def seconds(self, patches: int, flops: StepFlops) -> float:
        """Of a step over so many patches."""
        costs = (self.step, self.patch, self.llm, self.source)
        return float(np.dot(costs, _features(patches, flops)))


def _features(patches: int, flops: StepFlops) -> tuple[float, ...]:
    return (1.0, float(patches), flops.llm, flops.source)

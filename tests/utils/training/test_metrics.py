"""Scores are exact over batches of any size, and stand beside what a guess would score."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from utils.training.metrics import ScoreSums, module_text
from utils.trend import TrendLabel
from utils.types import Batch, ForecastState, RetrievalRecord, TrendRecord

H, N = 6, 2
CUTS = torch.tensor([-0.7, -0.4, 0.0, 0.4, 0.7])
CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(y: Tensor) -> Batch:
    nothing, count = torch.zeros(len(y), 0), len(y)
    return Batch(
        torch.zeros(count, 4, N), y, nothing, nothing, torch.arange(count), torch.zeros(count), nothing
    )


def trend_of(size: int, seed: int = 3) -> TrendRecord:
    return TrendRecord(
        direction_logits=draw(size, 3, seed=seed),
        magnitude_logits=draw(size, 4, seed=seed + 1),
        path=draw(size, H),
        measure=draw(size),
        gate=torch.ones(size, 1),
        reference=0.3 * draw(size, seed=seed + 2),
        scale=draw(size, seed=seed + 3).abs() + 0.1,
        mean=draw(size, 1, seed=seed + 6),
        std=draw(size, 1, seed=seed + 7).abs() + 0.1,
        label_cuts=CUTS,
        magnitude_given_direction=torch.full((3, 4), 0.25),
        thresholds=CUTS[[0, 1, 3, 4]],
        scale_weights=torch.ones(1),
    )


def retrieval_of(gate: Tensor, confidence: Tensor, matched: Tensor) -> RetrievalRecord:
    size = len(gate)
    none = torch.zeros(size, 2)
    return RetrievalRecord(gate, confidence, none, none.long(), none, matched, *[none[:, :0]] * 3)


def scores_of(*batches: tuple[ForecastState, Batch], label: TrendLabel = "level") -> dict[str, float]:
    sums = ScoreSums(CPU, trend_label=label)
    for state, batch in batches:
        sums.add(state, batch)
    return sums.reduce(lambda tensor: tensor)


@pytest.mark.parametrize("sizes", [(37,), (16, 16, 5), (1,) * 37, (36, 1)])
def test_errors_are_exact_over_unequal_batches(sizes: tuple[int, ...]) -> None:
    """The mean of batch means gives the last, smaller batch too much weight."""
    y, prediction = draw(37, H, N), draw(37, H, N, seed=1) * 3
    parts = zip(prediction.split(sizes), y.split(sizes), strict=True)
    scores = scores_of(*((ForecastState(p, None, None), batch_of(t)) for p, t in parts))
    error = prediction.double().numpy() - y.double().numpy()
    assert scores["mse"] == pytest.approx(np.mean(error**2), rel=1e-6)
    assert scores["mae"] == pytest.approx(np.mean(np.abs(error)), rel=1e-6)
    assert scores["windows"] == 37
    assert set(scores) == {"mse", "mae", "windows"}


def test_many_batches_lose_no_precision() -> None:
    """Float32 sums over a whole test split stop growing."""
    y = torch.zeros(64, H, N)
    state, batch = ForecastState(y + 0.1, None, None), batch_of(y)
    sums = ScoreSums(CPU, trend_label="level")
    for _ in range(2000):
        sums.add(state, batch)
    assert sums.reduce(lambda t: t)["mae"] == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_processes_add_up() -> None:
    """Each process scores its share; the sums, not the scores, are reduced."""
    y, prediction = draw(11, H, N), draw(11, H, N, seed=1)
    size = 11 * N
    trend = trend_of(size)
    retrieval = retrieval_of(torch.rand(size, 1), torch.rand(size, 1), torch.arange(size) % 2 == 0)

    def part(where: slice) -> tuple[ForecastState, Batch]:
        rows = slice((where.start or 0) * N, where.stop * N)
        shared = ("label_cuts", "magnitude_given_direction", "thresholds", "scale_weights")
        t = TrendRecord(**{k: v if k in shared else v[rows] for k, v in trend._asdict().items()})
        r = RetrievalRecord(*(column[rows] for column in retrieval))
        return ForecastState(prediction[where], t, r), batch_of(y[where])

    whole = scores_of(part(slice(0, 11)))
    first, second = (ScoreSums(CPU, trend_label="level") for _ in range(2))
    first.add(*part(slice(0, 7)))
    second.add(*part(slice(7, 11)))
    both = first.reduce(lambda tensor: tensor + second.sums)
    assert both == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize("label", ["level", "relative"])
def test_accuracies_stand_beside_majority_and_the_forecasts_own_class(label: TrendLabel) -> None:
    """An accuracy of 60% says nothing where 60% of the windows are flat."""
    y, prediction = draw(50, H, N), draw(50, H, N, seed=1)
    record = trend_of(50 * N)
    scores = scores_of((ForecastState(prediction, record, None), batch_of(y)), label=label)

    def classes(future: Tensor) -> tuple[list[int], list[int]]:
        directions, magnitudes = [], []
        for s in range(50 * N):
            v = future[s // N, :, s % N].double()
            t = (v.mean() - record.reference[s]) / record.scale[s]
            if label == "relative":
                t = (v[-1] - v[0]) / v[0].abs()
            c = CUTS.double().tolist()
            directions.append(0 if t < c[1] else 2 if t > c[3] else 1)
            magnitudes.append(0 if t < c[0] else 1 if t < c[2] else 3 if t > c[4] else 2)
        return directions, magnitudes

    truth, own = classes(y), classes(prediction)
    for i, (level, logits) in enumerate(
        (("direction", record.direction_logits), ("magnitude", record.magnitude_logits))
    ):
        named = logits.argmax(1).tolist()
        correct = np.mean([a == b for a, b in zip(named, truth[i], strict=True)])
        forecast = np.mean([a == b for a, b in zip(own[i], truth[i], strict=True)])
        assert scores[f"{level}_accuracy"] == pytest.approx(correct)
        assert scores[f"{level}_of_forecast"] == pytest.approx(forecast)
        assert scores[f"{level}_majority"] == pytest.approx(np.bincount(truth[i]).max() / (50 * N))
    line = module_text(scores)
    assert f"Dir Acc: {scores['direction_accuracy']:.1%} (majority {scores['direction_majority']:.1%}" in line
    assert "Mag Acc:" in line


def test_majority_is_that_of_all_windows() -> None:
    """The mean of the batches' own majorities is higher than any one class scores."""
    up, down = torch.ones(3, H, N) * 9, torch.ones(2, H, N) * -9
    batches = [
        (ForecastState(y, trend_of(len(y) * N), None), batch_of(y)) for y in (up, down)
    ]  # each batch has one class only
    assert scores_of(*batches)["direction_majority"] == pytest.approx(0.6)


def test_gate_statistics_are_exact() -> None:
    """The mean alone does not show a gate that is constant."""
    y = draw(7, H, N)
    gate, confidence = torch.rand(14, 1), torch.rand(14, 1)
    matched = torch.arange(14) < 9
    batches = []
    for part in (slice(0, 4), slice(4, 7)):
        rows = slice(part.start * N, part.stop * N)
        record = retrieval_of(gate[rows], confidence[rows], matched[rows])
        batches.append((ForecastState(y[part], None, record), batch_of(y[part])))
    scores = scores_of(*batches)
    assert scores["gate_mean"] == pytest.approx(np.mean(gate.double().numpy()))
    assert scores["gate_std"] == pytest.approx(np.std(gate.double().numpy()))
    assert scores["confidence_mean"] == pytest.approx(np.mean(confidence.double().numpy()))
    assert scores["matched_share"] == pytest.approx(9 / 14)


def test_constant_gate_has_deviation_zero() -> None:
    """The difference of two nearly equal sums can be negative: its root is NaN."""
    y = draw(7, H, N)
    record = retrieval_of(torch.full((14, 1), 0.1), torch.zeros(14, 1), torch.ones(14, dtype=torch.bool))
    assert scores_of((ForecastState(y, None, record), batch_of(y)))["gate_std"] == pytest.approx(0, abs=1e-6)


def test_empty_split_is_an_error() -> None:
    """0 / 0 as a validation loss never improves, and training ends without a word."""
    with pytest.raises(ValueError, match="no window was scored: the split is empty"):
        scores_of()


def test_nothing_is_said_of_trends_where_there_are_none() -> None:
    """The baseline's line has no accuracies."""
    y: Any = draw(2, H, N)
    assert module_text(scores_of((ForecastState(y, None, None), batch_of(y)))) == ""

"""The solved start against scikit-learn and a search in float64 written out; its folds, what it decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from data_provider.dataset import TrainingWindows, WindowDataset
from data_provider.splits import Split
from layers.retrieval.futures import Fold, Kind
from layers.retrieval.search import Rows
from layers.solved_start import SolvedStart
from layers.start_fitting import FOLDS, PENALTIES, StartFit
from utils.config import STD_FLOOR

L, H, SEASON, SPAN = 8, 3, 4, 11
TRAIN, TOTAL, K = 150, 220, 5
WINDOWS = TRAIN - SPAN + 1
WEEKDAY = ("day_of_week",)


def series(seed: int, *, variables: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    wave = torch.sin(torch.arange(TOTAL) * 2 * torch.pi / SEASON)[:, None]
    return wave + 0.6 * torch.randn(TOTAL, variables, generator=generator).cumsum(0) / 3


def parts(values: torch.Tensor, marks: torch.Tensor | None = None) -> tuple[TrainingWindows, WindowDataset]:
    """The training rows and the validation windows of a series."""
    size: dict[str, Any] = {"seq_len": L, "pred_len": H, "series_id": 7}
    beside = torch.zeros(len(values), 0) if marks is None else marks
    return (
        TrainingWindows(values, Split(0, TRAIN), marks=marks, **size),
        WindowDataset(values, beside, Split(TRAIN - L, TOTAL), **size),
    )


def fitted(values: torch.Tensor, marks: torch.Tensor | None = None, **options: Any) -> SolvedStart:
    names = () if marks is None else WEEKDAY
    settings: dict[str, Any] = {"retrieves": True, "top_k": K, "marks": names, **options}
    start = SolvedStart(seq_len=L, horizon=H, season=SEASON, **settings)
    source, validation = parts(values, marks)
    start.fill(source)
    start.fit(source, validation)
    return start


class ByHand:
    """One window after the other, in float64."""

    def __init__(self, values: torch.Tensor, *, hidden: range = range(0)) -> None:
        """``hidden``: starts that are held out, and barred with all that they overlap."""
        self.values = values.double().numpy()
        self.memory = [s for s in range(WINDOWS) if all(abs(s - h) >= SPAN for h in hidden)]

    def features(self, variable: int, start: int, *, same_phase: bool) -> tuple[Any, Any, Any]:
        """(lookback and retrieved, future, std), normalised."""
        window = self.values[start : start + SPAN, variable]
        x, y = window[:L], window[L:]
        mean, std = x.mean(), max(x.std(), STD_FLOOR)
        found = []
        for other in self.memory:
            if abs(other - start) < SPAN or (same_phase and (other - start) % SEASON):
                continue
            theirs = self.values[other : other + SPAN, variable]
            shape = theirs[:L] - theirs[L - 1] - (x - x[-1])
            found.append((np.mean(shape**2), theirs[L:] - theirs[L - 1]))
        nearest = sorted(found, key=lambda pair: pair[0])[:K]
        future = x[-1] + (np.mean([f for _, f in nearest], axis=0) if nearest else np.zeros(H))
        return np.concatenate([x - mean, future - mean]) / std, (y - mean) / std, std

    def table(self, starts: Any, *, same_phase: bool) -> tuple[Any, Any, Any]:
        rows = [
            self.features(v, s, same_phase=same_phase) for v in range(self.values.shape[1]) for s in starts
        ]
        return tuple(np.stack(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]

    def solved(self, *, same_phase: bool, width: int, penalty: float | None = None) -> tuple[Any, float]:
        """The ridge map on the first ``width`` features, and its penalty: given, or validation's."""
        x, y, std = self.table(self.memory, same_phase=same_phase)
        vx, vy, vstd = self.table(range(TRAIN - L, TOTAL - SPAN + 1), same_phase=same_phase)
        fits = []
        for one in PENALTIES if penalty is None else (penalty,):
            model = Ridge(alpha=one, fit_intercept=False)
            model.fit(x[:, :width], y, sample_weight=std / std.mean())
            error = np.mean((vstd[:, None] * (vx[:, :width] @ model.coef_.T - vy)) ** 2)
            fits.append((error, one, model.coef_.T))
        _, chosen, coefficients = min(fits, key=lambda fit: fit[0])
        return coefficients, chosen


def test_the_maps_are_those_of_scikit_learn_on_neighbours_found_one_by_one():
    values = series(0)
    start, hand = fitted(values), ByHand(values)
    plain, _ = hand.solved(same_phase=False, width=L)
    maps = [hand.solved(same_phase=same, width=L + H)[0] for same in (False, True)]
    for s in (0, 60, WINDOWS - 1, TRAIN, TOTAL - SPAN):
        rows = [hand.features(1, s, same_phase=same)[0] for same in (False, True)]
        query = Rows(torch.tensor([7]), torch.tensor([1]), torch.tensor([s]))
        found = start(values[s : s + L, 1][None], query)
        np.testing.assert_allclose(found.plain[0], rows[0][:L] @ plain, atol=1e-4)
        joint = sum(row @ own for row, own in zip(rows, maps, strict=True)) / 2
        np.testing.assert_allclose(found.joint[0], joint, atol=1e-4)
        assert found.rows.shape == (1, 2 * K)
        assert found.weights.sum().item() == pytest.approx(1, abs=1e-6)


def test_the_advantage_is_that_of_maps_that_never_saw_the_block():
    values = series(1)
    start = fitted(values)
    edges = [WINDOWS * i // FOLDS for i in range(FOLDS + 1)]
    hidden = range(edges[1], edges[2])
    hand = ByHand(values, hidden=hidden)
    penalties = [float(p) for p in start.penalties]
    plain, _ = hand.solved(same_phase=False, width=L, penalty=penalties[0])
    maps = [
        hand.solved(same_phase=same, width=L + H, penalty=p)[0]
        for same, p in zip((False, True), penalties[1:], strict=True)
    ]
    for s in (hidden[0], hidden[-1]):
        rows = [hand.features(0, s, same_phase=same) for same in (False, True)]
        y = rows[0][1]
        joint = sum(row[0] @ own for row, own in zip(rows, maps, strict=True)) / 2
        wanted = np.mean((rows[0][0][:L] @ plain - y) ** 2) - np.mean((joint - y) ** 2)
        found = start.advantage(torch.tensor([7]), torch.tensor([0]), torch.tensor([s]))
        assert found.item() == pytest.approx(wanted, abs=1e-4)
    unknown = torch.tensor([7, 7, 8]), torch.tensor([0, 2, 0]), torch.tensor([TRAIN, 0, 0])
    assert start.advantage(*unknown).isnan().all()


def test_nothing_in_or_around_a_held_out_block_reaches_what_its_fold_is_fitted_on():
    """Neighbours of the fold's own rows still came from the block: its map had seen it."""
    fold = Fold(50, 80)
    sums = []
    for change in (0.0, 5.0):
        values = series(2)
        values[fold.begin : fold.end + SPAN - 1] += change * torch.randn(fold.end + SPAN - 1 - fold.begin, 2)
        source, validation = parts(values)
        start = SolvedStart(seq_len=L, horizon=H, season=SEASON, retrieves=True, top_k=K)
        start.fill(source)
        sums.append(StartFit(start, source, validation, calendar=None)._sum_up([fold])[0])
    (whole, held), (other_whole, other_held) = sums
    assert 0 < held.base.rows < whole.base.rows
    for name in ("across", "within", "cross"):
        assert torch.equal(getattr(held, name), getattr(other_held, name))
        assert not torch.equal(getattr(whole, name), getattr(other_whole, name))
    assert torch.equal(held.base.gram, other_held.base.gram)


@pytest.mark.parametrize("refine", [False, True])
@pytest.mark.parametrize("planted", [True, False])
def test_the_calendar_comes_in_where_it_tells_something_and_else_stays_out(planted, refine):
    """Refined, a calendar that was left out came in by its steps, unsaid, and a forecast then lacked it."""
    generator = torch.Generator().manual_seed(4)
    weekday = torch.arange(TOTAL) % 7
    values = torch.randn(TOTAL, 2, generator=generator)
    if planted:
        values += 2 * (weekday >= 5)[:, None]
    start = SolvedStart(seq_len=3, horizon=H, season=2, retrieves=False, marks=WEEKDAY)
    size: dict[str, Any] = {"seq_len": 3, "pred_len": H, "series_id": 7}
    marks = (weekday / 6 - 0.5)[:, None]
    validation = WindowDataset(values, marks, Split(TRAIN - 3, TOTAL), **size)
    start.fit(TrainingWindows(values, Split(0, TRAIN), marks=marks, **size), validation, refine=refine)
    assert start.has_calendar == planted == bool(start.plain_map[3:].any())
    (line,) = start.lines()
    assert f"calendar {'in' if planted else 'out'};" in line
    if planted:
        query = Rows(*(torch.zeros(1, dtype=torch.int64) for _ in range(3)))
        one, other = (start(values[None, :3, 0], query, marks=marks[day][None]).plain for day in (1, 4))
        assert not torch.equal(one, other)
        with pytest.raises(ValueError, match="time marks"):
            start(values[None, :3, 0], query)


def test_a_start_is_whole_in_its_state():
    values = series(5)
    one = fitted(values)
    other = SolvedStart(seq_len=L, horizon=H, season=SEASON, retrieves=True, top_k=K)
    other.load_state_dict(one.state_dict())
    places = torch.full((3,), 7), torch.zeros(3, dtype=torch.int64), torch.tensor([0, 70, 900])
    lookback = values[:L, 0].expand(3, -1)
    for mine, theirs in zip(one(lookback, Rows(*places)), other(lookback, Rows(*places)), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(one.advantage(*places)[:2], other.advantage(*places)[:2])
    assert other.facts() == one.facts() and one.facts()["retrieval"]["in"]


@pytest.mark.parametrize("control", ["random", "same_phase"])
def test_a_control_keeps_number_and_phase_of_the_neighbours(control):
    values = series(6)
    drawn = [fitted(values, control=control, draw=draw) for draw in (0, 0, 1)]
    query = Rows(torch.tensor([7]), torch.tensor([0]), torch.tensor([40]))
    rows = [start(values[40 : 40 + L, 0][None], query).rows[0] for start in drawn]
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])
    starts = drawn[0].retrieved.start[rows[0]]
    assert (rows[0] >= 0).all() and ((starts - 40).abs() >= SPAN).all()
    assert ((starts[K:] - 40) % SEASON == 0).all()
    assert bool(((starts[:K] - 40) % SEASON).any()) == (control == "random")
    assert drawn[0].retrieved.kinds == (Kind(K, control == "same_phase"), Kind(K, True))


def test_the_oracle_finds_the_nearest_futures_and_says_what_it_needs():
    values = series(7)
    query = Rows(torch.tensor([7]), torch.tensor([0]), torch.tensor([TRAIN]))
    lookback, future = values[TRAIN : TRAIN + L, 0][None], values[TRAIN + L : TRAIN + SPAN, 0][None]
    errors = []
    for control in ("oracle", "none"):
        start = fitted(values, control=control)
        errors.append(
            (
                start.retrieved.means(start(lookback, query, target=future).rows)[:, 0]
                - future
                + lookback[:, -1:]
            )
            .square()
            .mean()
        )
    assert errors[0] < errors[1]
    with pytest.raises(ValueError, match="oracle needs the target"):
        fitted(values, control="oracle")(lookback, query)


def test_what_a_fit_takes_is_said_before_it():
    """ETTh1 at horizon 96 took 34 seconds of one core."""
    start = SolvedStart(seq_len=512, horizon=96, season=24, retrieves=True)
    line = start.cost_line(rows=56231, variables=7)
    seconds = int(line.split("about ")[1].split(" s of")[0])
    assert 25 <= seconds <= 45 and "from 56231 training rows" in line
    assert "from 100000 training rows" in start.cost_line(rows=10**7, variables=800)

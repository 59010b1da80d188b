"""The covariates' columns of the solved start against loops and scikit-learn's ridge in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge

from data_provider.covariates import RowsBeside
from data_provider.dataset import TrainingWindows, WindowDataset
from data_provider.splits import Split
from layers.retrieval.search import Rows
from layers.solved_start import SolvedStart
from layers.start_features import MOST_OWN, CovariateSizes
from layers.start_fitting import PENALTIES
from utils.config import STD_FLOOR
from utils.types import covariates_of
from utils.windows import per_series, rows_of

L, H, TRAIN, TOTAL, N = 6, 3, 120, 190, 2
SIZES = CovariateSizes(known=2, past=1, static=3, variables=N)
GENERATOR = torch.Generator().manual_seed(5)
VALUES, KNOWN, PAST = (torch.randn(TOTAL, count, generator=GENERATOR) for count in (N, 2, 1))
VALUES[:, 0] += 2 * KNOWN[:, 0]
VALUES[:, 1] -= 2 * KNOWN[:, 0]
STATIC = torch.tensor([[1.0, 0.0, -0.7], [0.0, 1.0, 0.7]])
BESIDE = RowsBeside(KNOWN, PAST, STATIC, torch.zeros(N, 0, dtype=torch.uint8))


def parts(beside: RowsBeside) -> tuple[TrainingWindows, WindowDataset]:
    size: dict[str, Any] = {"seq_len": L, "pred_len": H, "series_id": 7, "beside": beside}
    return (
        TrainingWindows(VALUES, Split(0, TRAIN), **size),
        WindowDataset(VALUES, torch.zeros(TOTAL, 0), Split(TRAIN - L, TOTAL), **size),
    )


def fitted() -> SolvedStart:
    start = SolvedStart(seq_len=L, horizon=H, season=4, retrieves=False, covariates=SIZES)
    start.fit(*parts(BESIDE))
    return start


def by_hand(variable: int, first: int) -> tuple[Any, Any, Any, float]:
    """(columns of the shared map, each group's by row, the rows, deviation) of one window, all normalised."""
    window = VALUES[first : first + L + H, variable].double().numpy()
    known, past = (values[first : first + L + H].double().numpy() for values in (KNOWN, PAST))
    mean, std = window[:L].mean(), max(window[:L].std(), STD_FLOOR)
    columns = list(window[:L] - mean)
    columns += [known[row, c] - known[:L, c].mean() for c in range(2) for row in range(L + H)]
    columns += [past[row, 0] - past[:L, 0].mean() for row in range(L)]
    columns += [*STATIC[variable].double().tolist(), mean]
    groups = [*STATIC[variable].tolist(), *(float(variable == v) for v in range(N))]
    own = [
        [float(group) * (known[row, c] - known[:L, c].mean()) for group in groups for c in range(2)]
        for row in range(L + H)
    ]
    return np.array(columns) / std, np.array(own) / std, (window - mean) / std, std


def beside(item: Any) -> Any:
    """Of a window, as its variables' rows."""
    return rows_of(covariates_of(type(item)(*(column[None] for column in item))))


def table(starts: range) -> tuple[Any, Any, Any, Any]:
    rows = [by_hand(v, s) for v in range(N) for s in starts]
    return tuple(np.stack(column) for column in zip(*rows, strict=True))  # type: ignore[return-value]


def test_the_maps_are_scikit_learns_on_columns_written_out():
    """What each group's covariates do, and the map of what is left, at the penalties that the fit chose."""
    start = fitted()
    x, own, y, std = table(range(TRAIN - L - H + 1))
    weight = std / std.mean()
    pairs = own.reshape(-1, own.shape[-1]), y.reshape(-1)
    tried = [
        Ridge(alpha=penalty, fit_intercept=False).fit(*pairs, sample_weight=weight.repeat(L + H)).coef_
        for penalty in PENALTIES
    ]
    effects = start.effects.double().numpy().reshape(-1)
    assert min(np.abs(effects - one).max() for one in tried) < 1e-5 and np.abs(effects).max() > 0.1
    left = y - own @ effects
    x[:, :L] = left[:, :L]
    shared = Ridge(alpha=float(start.penalties[0]), fit_intercept=False).fit(
        x, left[:, L:], sample_weight=weight
    )
    np.testing.assert_allclose(start.plain_map.numpy(), shared.coef_.T, atol=1e-5)


def test_a_forecast_is_the_columns_times_the_maps():
    """What was fitted in blocks by rows of the memory is what is read of a batch, variable by variable."""
    start = fitted()
    _, validation = parts(BESIDE)
    effects = start.effects.double().numpy().reshape(-1)
    for place in (0, 20):
        item = validation[place]
        query = Rows(torch.full((N,), 7), torch.arange(N), item.start.repeat(N))
        found = start(per_series(item.x[None]), query, covariates=beside(item)).plain
        for variable in range(N):
            x, own, _, _ = by_hand(variable, int(item.start))
            x[:L] -= own[:L] @ effects
            wanted = x @ start.plain_map.double().numpy() + own[L:] @ effects
            np.testing.assert_allclose(found[variable].numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_of_the_future_known_covariates_alone_are_read():
    """A past covariate's later rows, whatever they hold, leave every forecast as it was, to the bit."""
    later = PAST.clone()
    _, before = parts(BESIDE)
    item = before[9]
    later[int(item.start) + L :] = float("nan")
    _, after = parts(RowsBeside(KNOWN, later, STATIC, BESIDE.words))
    start = fitted()
    query = Rows(torch.full((N,), 7), torch.arange(N), item.start.repeat(N))
    first, second = (
        start(per_series(one.x[None]), query, covariates=beside(one)).plain for one in (item, after[9])
    )
    assert torch.equal(first, second) and bool(first.isfinite().all())


def test_groups_have_effects_of_their_own_up_to_a_bound():
    """They are solved for together: the matrix of thousands of variables could not be held."""
    assert CovariateSizes(known=2, variables=7).groups == 7
    assert CovariateSizes(known=2, static=3, variables=7).groups == 10
    assert CovariateSizes(known=2, static=3, variables=MOST_OWN).groups == 3
    assert CovariateSizes(known=2, variables=MOST_OWN).groups == 0
    assert CovariateSizes(known=0, variables=7).groups == CovariateSizes(known=1).groups == 0


def test_too_many_groups_act_alike_and_that_is_said():
    """Where signs differ by store the error was three times the noise, and nothing said why."""

    def said(**sizes: int) -> list[str]:
        start = SolvedStart(
            seq_len=L, horizon=H, season=4, retrieves=False, covariates=CovariateSizes(**sizes)
        )
        return [line for line in start.lines() if "same effect for all" in line]

    assert said(known=2, static=3, variables=2) == [] == said(past=MOST_OWN, static=3, variables=9)
    (variables,) = said(known=10, static=3, variables=MOST_OWN)
    assert "all variables" in variables and f"more than {MOST_OWN} numbers" in variables
    assert [line.split("all ")[1].split(":")[0] for line in said(known=200, static=3, variables=9)] == [
        "variables", "statics"
    ]  # fmt: skip

"""The gate in a whole model: between the start's two forecasts, of which one knows no history."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data_provider.dataset import WindowDataset
from data_provider.splits import Split
from models import TimeLLM_Enhanced
from tests.models.test_timellm import H, L
from tests.models.test_timellm_enhanced import (
    BATCH,
    SERIES,
    SOURCE,
    TOTAL,
    TRAIN_END,
    VALUES,
    model_of,
    shake,
    state_of,
)
from utils.training.objective import Objective
from utils.types import FitSource, ForecastState, RetrievalRecord
from utils.windows import per_series

BEGUN: dict[str, Any] = {"use_gram": True, "start": "solved", "llm_layers": 1, "top_k": 7}
VALIDATION = WindowDataset(
    VALUES, torch.zeros(TOTAL, 0), Split(TRAIN_END - L, TOTAL), seq_len=L, pred_len=H, series_id=SERIES
)


@pytest.fixture(scope="module")
def begun(tiny_gpt2: Path) -> TimeLLM_Enhanced.Model:
    """A model with its start solved, which the tests copy; its dropout is off."""
    model = model_of(tiny_gpt2, retrieval_fusion="both", **BEGUN)
    model.fit_statistics(FitSource(SOURCE, VALIDATION))
    assert model.start.has_retrieval
    return model.eval()


def learned(model: TimeLLM_Enhanced.Model, *, opinion: float) -> TimeLLM_Enhanced.Model:
    """A copy with all its zero starts left behind, and a gate that is held."""
    model = copy.deepcopy(model)
    shake(model, 0.05)
    hold(model, opinion)
    return model


def hold(model: TimeLLM_Enhanced.Model, opinion: float) -> None:
    decision: Any = model.gram.gating.gate_network[2]
    with torch.no_grad():
        decision.weight.zero_()
        decision.bias.fill_(opinion)


def with_other_neighbours(model: TimeLLM_Enhanced.Model) -> TimeLLM_Enhanced.Model:
    """A copy whose memory has the same windows in another order, followed by other futures."""
    model = copy.deepcopy(model)
    memory = model.start.retrieved
    memory.keys = memory.keys.flip(0)
    memory.futures = memory.futures.flip(0) + 3
    memory._derive()
    return model


def record_of(state: ForecastState) -> RetrievalRecord:
    assert state.retrieval is not None
    return state.retrieval


@torch.no_grad()
def test_before_the_first_step_a_forecast_is_the_start_with_history(begun: Any) -> None:
    """Whatever training adds is added to it: it must begin at nothing, to the bit."""
    state = state_of(begun)
    record = record_of(state)
    assert record.matched.all() and (record.gate == 0).all()
    assert torch.equal(per_series(state.prediction), record.joint)
    assert not torch.equal(record.joint, record.plain)


@torch.no_grad()
def test_at_gate_one_a_forecast_depends_on_no_neighbour_to_the_bit(begun: Any) -> None:
    """Retrieval tokens passed ungated, so that "the current window alone" was not alone."""
    model = learned(begun, opinion=2.0)
    one, other = state_of(model), state_of(with_other_neighbours(model))
    assert (record_of(one).gate == 1).all() and (record_of(other).gate == 1).all()
    assert not torch.equal(record_of(one).joint, record_of(other).joint)
    assert torch.equal(one.prediction, other.prediction)
    assert not torch.equal(per_series(one.prediction), record_of(one).plain)  # the LLM adds to it


@torch.no_grad()
@pytest.mark.parametrize("opinion", [-1.0, 0.4])
def test_below_gate_one_other_neighbours_make_another_forecast(begun: Any, opinion: float) -> None:
    """A memory that does not matter."""
    model = learned(begun, opinion=opinion)
    one, other = state_of(model), state_of(with_other_neighbours(model))
    assert ((one.prediction - other.prediction).abs().amax(dim=1) > 1e-3).all()


@torch.no_grad()
def test_where_nothing_is_found_the_gate_is_one(begun: Any) -> None:
    """A window that overlaps every row of the memory has no history to begin from."""
    model = copy.deepcopy(begun)
    memory = model.start.retrieved
    near = (memory.start - BATCH.start[1]).abs() < L + H
    memory._hold(
        *(getattr(memory, name)[near] for name in ("keys", "futures", "series", "variable", "start"))
    )
    model.start._derive()
    state = state_of(model)
    record = record_of(state)
    matched = record.matched.view(len(BATCH.x), -1)
    assert not matched[1].any() and matched.any()
    assert torch.equal(record.gate[:, 0] == 1, ~record.matched)
    forecast = per_series(state.prediction)
    assert torch.equal(forecast[~record.matched], record.plain[~record.matched])


@torch.no_grad()
def test_one_search_and_one_memory_serve_the_start_and_gram(begun: Any, tiny_gpt2: Path) -> None:
    """Each searched its own copy of the same rows; a learned key is another search."""
    assert begun.shares_search and not len(begun.gram.retriever.memory_start)
    record, memory = record_of(state_of(begun)), begun.memory
    found = begun.start.retrieved.search(per_series(BATCH.x), query_of(), target=None)[:, 0]
    assert torch.equal(record.rows, found[:, :7])
    assert record.distance.diff(dim=1).min() >= -1e-6
    at = record.rows
    assert torch.equal(memory.places.variable[at], BATCH.variable.reshape(-1, 1).expand_as(at))
    searched = model_of(tiny_gpt2, retrieval_key="learned", **BEGUN)
    assert not searched.shares_search and len(searched.gram.retriever.memory_start) == 200


def query_of() -> Any:
    from layers.retrieval.search import query_rows

    b = BATCH
    return query_rows(b.y[:, 0], start=b.start, series_id=b.series_id, variable=b.variable)


def test_the_gate_follows_what_is_known_of_each_window(begun: Any) -> None:
    """Where history misleads it goes to 1, where it helps it stays at 0, whatever the training error says."""
    model = copy.deepcopy(begun)

    def advantage(series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        return torch.where(variable == 0, -5.0, 5.0)

    model.start.advantage = advantage
    objective = Objective(model.config.replace(lambda_retrieval=30.0, aux_warmup_steps=0))
    optimizer = torch.optim.Adam(model.gram.parameters(), lr=0.02)
    for step in range(70):
        optimizer.zero_grad()
        objective(state_of(model), BATCH, step=step).total.backward()
        optimizer.step()
    gate = record_of(state_of(model)).gate.view(len(BATCH.x), -1)
    assert (gate[:, 0] == 1).all() and (gate[:, 1:] == 0).all()

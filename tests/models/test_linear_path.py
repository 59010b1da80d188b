"""The linear path: begins at ridge, learns beside the LLM, is part of the checkpoint, is absent when off."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from data_provider.splits import Split
from layers.linear_path import LinearPath
from models.registry import MODELS
from tests.models.test_timellm_enhanced import BATCH, BOTH, SIZES, SOURCE, TOTAL, TRAIN_END, VALUES, H, L, N
from utils.config import Config, ConfigError
from utils.training.forward import forecast_state
from utils.training.objective import Objective
from utils.training.optim import build_optimizer
from utils.types import Batch

CASES = [("TimeLLM", {}), ("TimeLLM_Enhanced", BOTH)]


class Validation(Dataset[Batch]):
    """The windows behind the training part."""

    rows = Split(TRAIN_END - L, TOTAL)

    def __len__(self) -> int:
        return TOTAL - TRAIN_END - H + 1

    def __getitem__(self, index: int) -> Batch:
        x, y = VALUES[self.rows.begin + index :][: L + H].split([L, H])
        return BATCH._replace(x=x, y=y)


def built(model: str, folder: Path, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = Config.from_flat({**SIZES, "llm_model_path": str(folder), **settings})
    found = MODELS[model](config)
    found.fit_statistics(SOURCE)
    found.fit_closed_form(SOURCE, Validation())
    return found


def forecast(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return forecast_state(model, BATCH).prediction


@pytest.mark.parametrize(("model", "switches"), [*CASES, ("Linear", {})])
def test_before_training_the_forecast_is_ridge(model, switches, tiny_gpt2):
    ridge = forecast(built("Ridge", tiny_gpt2))
    on = built(model, tiny_gpt2, linear_path="ridge", **switches)
    torch.testing.assert_close(forecast(on).double(), ridge, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(forecast(built(model, tiny_gpt2, **switches)).double(), ridge, atol=1e-2)


@pytest.mark.parametrize(("model", "switches"), CASES)
def test_off_there_is_nothing_of_it_and_the_other_weights_are_the_same(model, switches, tiny_gpt2):
    """The path draws no random number, so that paired seeds differ in the path alone."""
    off, on = (built(model, tiny_gpt2, linear_path=path, **switches) for path in ("none", "ridge"))
    weights, more = off.state_dict(), on.state_dict()
    assert more.keys() - weights.keys() == {"linear_path.coefficients", "linear_path.change"}
    changed = {name for name in weights if not torch.equal(weights[name], more[name])}
    assert changed == {"output_projection.linear.weight", "output_projection.linear.bias"}
    assert not any(bool(more[name].any()) for name in changed)


@pytest.mark.parametrize(("model", "switches"), CASES)
def test_path_and_llm_parts_learn_together(model, switches, tiny_llama):
    one = built(model, tiny_llama, linear_path="ridge", **switches)
    optimizer = build_optimizer(one, one.config.training)
    begun = one.linear_path.coefficients.clone()
    before = (forecast(one) - BATCH.y).square().mean()
    one.train()
    for step in range(5):
        Objective(one.config)(forecast_state(one, BATCH), BATCH, step=step).total.backward()
        assert all(p.grad is not None for p in one.parameters() if p.requires_grad)
        if step == 4:
            for part in (one.linear_path, one.output_projection, one.reprogramming_layer):
                assert any(bool(p.grad.any()) for p in part.parameters())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert (forecast(one) - BATCH.y).square().mean() < before
    assert torch.equal(one.linear_path.coefficients, begun)
    assert bool(one.linear_path.change.detach().any())


def test_a_checkpoint_carries_both_the_solution_and_its_change(tiny_gpt2):
    one = built("TimeLLM", tiny_gpt2, linear_path="ridge")
    with torch.no_grad():
        one.linear_path.change.normal_()
    torch.manual_seed(5)
    other = MODELS["TimeLLM"](one.config)
    other.load_state_dict(one.state_dict())
    assert torch.equal(forecast(other), forecast(one))


def test_the_path_is_its_formula_whatever_the_precision_around_it():
    generator = torch.Generator().manual_seed(1)
    path = LinearPath(seq_len=L, horizon=H, dropout=0.5)
    with torch.no_grad():
        path.change.normal_(generator=generator)
    path.coefficients.normal_(generator=generator)
    x = torch.randn(7, L, generator=generator)
    weight = path.coefficients.double().numpy() + path.change.detach().double().numpy() / np.sqrt(L)
    wanted = torch.from_numpy(x.double().numpy() @ weight.T)
    path.eval()
    for inside in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            found = path(x)
        torch.testing.assert_close(found.detach().double(), wanted, rtol=1e-4, atol=1e-4)
    path.train()
    assert not torch.allclose(path(x), path(x))  # dropout acts on the lookback


def test_all_variables_with_ms_but_the_target_from_itself(tiny_gpt2):
    """The path of --features MS reads the target's own lookback, as ridge does."""
    torch.manual_seed(0)
    settings = {**SIZES, "llm_model_path": str(tiny_gpt2), "features": "MS", "enc_in": N}
    one = MODELS["TimeLLM"](Config.from_flat({**settings, "linear_path": "ridge"})).eval()
    one.load_state_dict({**one.state_dict(), "linear_path.coefficients": torch.randn(H, L)})
    with torch.no_grad():
        before = one(BATCH.x)
        other = BATCH.x.clone()
        other[..., :-1] += torch.randn_like(other[..., :-1])
        assert before.shape == (len(BATCH.x), H, 1)
        torch.testing.assert_close(one(other), before, rtol=1e-4, atol=1e-4)


def test_short_series_have_no_such_path():
    """Their lookbacks are padded, and ridge would take the padding for values."""
    with pytest.raises(ConfigError, match="linear_path"):
        Config.from_flat({"data": "M4", "linear_path": "ridge"})

"""Every model on windows that break naive arithmetic: constant, nearly so, huge, tiny, one outlier.

The floors that hold here: instance norm divides by sqrt(variance + 1e-5), so by 0.0032 at least; TAPR's
trend measure and GRA-M's futures divide by the deviation or `STD_FLOOR` (0.1), whichever is more.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoTokenizer

from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from layers.GRAM import FARTHEST
from layers.normalization import InstanceNorm
from layers.prompt import PromptBuilder
from models.registry import MODELS
from tests.models.test_timellm_enhanced import BOTH, SEASON, SIZES, H, L, N
from utils.config import Config
from utils.training.forward import forecast_state
from utils.training.objective import Objective
from utils.types import Batch, FitSource, unsolved
from utils.windows import per_series

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "TimeLLM": ("TimeLLM", {}),
    "tapr": ("TimeLLM_Enhanced", {"use_tapr": True}),
    "tapr relative": ("TimeLLM_Enhanced", {"use_tapr": True, "trend_label": "relative"}),
    "gram feature": ("TimeLLM_Enhanced", {"use_gram": True}),
    "both feature": ("TimeLLM_Enhanced", {**BOTH, "retrieval_fusion": "feature"}),
    "both prediction": ("TimeLLM_Enhanced", {**BOTH, "retrieval_fusion": "prediction"}),
    "both both": ("TimeLLM_Enhanced", {**BOTH, "retrieval_fusion": "both"}),
    "both raw": ("TimeLLM_Enhanced", {**BOTH, "retrieval_fusion": "both", "retrieval_key": "raw"}),
    "both learned": ("TimeLLM_Enhanced", {**BOTH, "retrieval_fusion": "both", "retrieval_key": "learned"}),
    **{name: (name, {}) for name in ("Autoformer", "DLinear", "Linear", "PatchTST")},
}
UNTRAINED = ("Persistence", "RetrievalRidge", "Ridge", "SeasonalNaive")
NORMALISED = ("TimeLLM", "tapr", "Linear", "PatchTST")
"""Cases whose forecast follows the window's level and scale: nothing in them reads either."""


def walk(rows: int = L + H, seed: int = 5) -> Tensor:
    """A season on a wandering level, [rows, N]."""
    steps = torch.randn(rows, N, generator=torch.Generator().manual_seed(seed)).cumsum(0) * 0.3
    return steps + torch.sin(2 * torch.pi * torch.arange(rows) / SEASON)[:, None]


def spiked(rows: Tensor, at: int, value: float) -> Tensor:
    changed = rows.clone()
    changed[at] = value
    return changed


WINDOWS: dict[str, Tensor] = {
    "zero": torch.zeros(L + H, N),
    "constant": torch.full((L + H, N), 0.7),
    "constant huge": torch.full((L + H, N), 1e8),
    "nearly constant": 1 + 1e-7 * walk(),
    "nearly constant huge": 1e8 * (1 + 1e-7 * walk()),
    "huge": 1e8 * walk(),
    "tiny": 1e-8 * walk(),
    "outlier": spiked(walk(), 20, 1e6),
    "outlier at the end": spiked(walk(), L - 1, -1e6),
    "outlier in the future": spiked(walk(), L + 3, 1e6),
    "constant but one": spiked(torch.full((L + H, N), 0.7), 5, 0.8),
}


def source_of(values: Tensor) -> TrainingWindows:
    return TrainingWindows(values, Split(0, len(values)), seq_len=L, pred_len=H, series_id=11)


def model_of(case: str, llm: Path, *, source: TrainingWindows | None = None, **changes: Any) -> Any:
    """The model of a case, fitted to training windows, with every part taking effect."""
    name, settings = CASES.get(case, (case, {}))
    config = Config.from_flat(
        {
            **SIZES,
            "model": None if name == "TimeLLM_Enhanced" else name,
            "enc_in": N,
            "label_len": 24,
            "llm_model_path": str(llm),
            "memory_size": 100,
            "aux_warmup_steps": 0,
            **settings,
            **changes,
        }
    )
    torch.manual_seed(0)
    model = MODELS[name](config)
    source = source or source_of(walk(220, seed=3))
    if name not in UNTRAINED:
        model.fit_statistics(FitSource(source, once=unsolved))
    with torch.no_grad():  # what starts at zero would hide what it multiplies
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.2)
    return model


def batch_of(*windows: Tensor) -> Batch:
    both = torch.stack(windows)
    count = len(windows)
    marks = torch.linspace(-0.5, 0.5, L + H)[None, :, None].repeat(count, 1, 4)
    return Batch(
        x=both[:, :L],
        y=both[:, L:],
        x_mark=marks[:, :L],
        y_mark=marks[:, L:],
        start=torch.arange(count) * 7,
        series_id=torch.full((count,), 99),
        variable=torch.arange(N).repeat(count, 1),
    )


def forecast(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return forecast_state(model.eval(), batch_of(torch.cat([x, torch.zeros(H, N)]))).prediction[0]


def assert_finite(state: Any, where: str = "") -> None:
    """Every tensor of a record, distances of missing neighbours aside."""
    for name, value in state._asdict().items():
        if name == "distance":
            value = value[state.rows >= 0]
        if isinstance(value, Tensor):
            assert torch.isfinite(value).all(), f"{where}{name}"
        elif value is not None:
            assert_finite(value, f"{where}{name}.")


@pytest.mark.parametrize("case", [*CASES, *UNTRAINED])
def test_forecasts_and_losses_are_finite(case: str, tiny_gpt2: Path) -> None:
    """One such window in a night's run would end it, or poison every weight."""
    model = model_of(case, tiny_gpt2).eval()
    for name, window in WINDOWS.items():
        batch = batch_of(window, walk())
        state = forecast_state(model, batch)
        assert_finite(state, f"{name}: ")
        loss = Objective(model.config)(state, batch, step=1)
        assert torch.isfinite(loss.total), name
        assert all(torch.isfinite(term) for term in loss.terms.values()), name


@pytest.mark.parametrize("case", CASES)
def test_gradients_and_their_squares_are_finite(case: str, tiny_gpt2: Path) -> None:
    """Through every loss, to every weight and to the window itself; Adam squares what it is given."""
    model = model_of(case, tiny_gpt2).train()
    objective = Objective(model.config)
    for name, window in WINDOWS.items():
        model.zero_grad(set_to_none=True)
        batch = batch_of(window, walk())
        x = batch.x.clone().requires_grad_()
        batch = batch._replace(x=x)
        objective(forecast_state(model, batch), batch, step=1).total.backward()
        assert x.grad is not None and torch.isfinite(x.grad).all(), name
        for weight, parameter in model.named_parameters():
            if parameter.grad is not None:
                assert torch.isfinite(parameter.grad.square()).all(), f"{name}: {weight}"


@pytest.mark.parametrize("case", CASES)
def test_an_ordinary_window_is_forecast_the_same_beside_a_hard_one(case: str, tiny_gpt2: Path) -> None:
    """A statistic over the batch would spread the damage."""
    model = model_of(case, tiny_gpt2).eval()
    with torch.no_grad():
        together = forecast_state(model, batch_of(walk(), *WINDOWS.values())).prediction[0]
        alone = forecast_state(model, batch_of(walk())).prediction[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key", ["raw", "learned", "hybrid"])
@pytest.mark.parametrize("window", ["zero", "constant huge", "huge", "outlier"])
def test_training_data_with_such_windows_inside_are_fitted(key: str, window: str, tiny_gpt2: Path) -> None:
    """Class cuts, memory and the scale of its distances are counted over all training windows."""
    values = torch.cat([walk(150, seed=3), WINDOWS[window], walk(150, seed=4)])
    case = {"raw": "both raw", "learned": "both learned", "hybrid": "both both"}[key]
    model = model_of(case, tiny_gpt2, source=source_of(values)).eval()
    assert all(torch.isfinite(v).all() for v in model.state_dict().values())
    assert_finite(forecast_state(model, batch_of(walk(), WINDOWS[window])))


def test_rows_that_are_all_too_far_away_weigh_the_same(tiny_gpt2: Path) -> None:
    """Rounding chose among them, and its gradient, times the distance, had an infinite square."""
    model = model_of("both both", tiny_gpt2, top_k=5, temperature=0.1).eval()
    found = forecast_state(model, batch_of(WINDOWS["huge"], walk())).retrieval
    assert found is not None
    present = found.rows >= 0
    far, near = (found.distance[part][present[part]] for part in (slice(0, N), slice(N, None)))
    assert (far > FARTHEST).all() and (near < FARTHEST).all()
    torch.testing.assert_close(found.weights[:N], torch.full_like(found.weights[:N], 1 / 5))
    assert (found.weights[N:].amax(dim=1) > 0.25).all()


# What holds exactly: level and scale pass through an instance norm.


@pytest.mark.parametrize("case", NORMALISED)
def test_forecasts_follow_level_and_scale(case: str, tiny_gpt2: Path) -> None:
    """A forecast of scale * (x + shift) is scale * (forecast of x + shift), far above the floor."""
    model = model_of(case, tiny_gpt2)
    x = 10 * walk(L)  # deviation far above sqrt(1e-5), at every scale here
    plain = forecast(model, x)
    for scale, shift in itertools.product((1e-1, 1e3, 1e8), (0.0, -3.0, 100.0)):
        found = forecast(model, scale * (x + shift)) / scale
        torch.testing.assert_close(found, plain + shift, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("fusion", ["feature", "prediction", "both"])
def test_with_raw_keys_retrieval_follows_the_level(fusion: str, tiny_gpt2: Path) -> None:
    """Keys and futures are relative to the window's last value; the scale stays the data set's own."""
    model = model_of("both raw", tiny_gpt2, retrieval_fusion=fusion)
    x = walk(L)
    torch.testing.assert_close(forecast(model, x + 50), forecast(model, x) + 50, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("scale", [0.25, 3.0, 1e8, 1e-8])
def test_dlinear_without_its_bias_is_linear(scale: float, tiny_gpt2: Path) -> None:
    """It has no instance norm: scales pass, levels do not."""
    model = model_of("DLinear", tiny_gpt2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
    x = walk(L)
    torch.testing.assert_close(forecast(model, scale * x) / scale, forecast(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", NORMALISED)
def test_a_constant_window_is_forecast_within_the_floor_of_its_level(case: str, tiny_gpt2: Path) -> None:
    """A mean off by one unit in its last place once made such a window look 1 deviation off."""
    model = model_of(case, tiny_gpt2)
    at_zero = forecast(model, torch.zeros(L, N))
    assert at_zero.abs().max() < 0.05, "the floor times what the model says of nothing"
    for level in (0.7, 1e3, 123456.7, 1e8, -3.3e8):
        found = forecast(model, torch.full((L, N), level))
        spacing = max(1e-6, 2**-22 * abs(level))
        torch.testing.assert_close(found, at_zero + level, rtol=0, atol=spacing)


@given(level=st.floats(0.125, 2.0**30, width=32), rows=st.integers(2, 600))
@settings(deadline=None)
def test_instance_norm_of_a_constant_is_zero_at_any_level(level: float, rows: int) -> None:
    normalised, statistics = InstanceNorm()(torch.full((1, rows, 1), level))
    assert torch.equal(normalised, torch.zeros(1, rows, 1))
    assert float(statistics.mean.squeeze()) == pytest.approx(level, rel=1e-7)


@pytest.mark.parametrize("window", WINDOWS)
def test_statistics_of_the_norm_are_those_of_float64(window: str) -> None:
    """Where the window's deviation is above the floor and the float32 spacing of its level."""
    x = WINDOWS[window][None, :L]
    normalised, statistics = InstanceNorm()(x)
    exact = x.double()
    std = (exact.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    spacing = 2**-23 * exact.abs().max()
    torch.testing.assert_close(
        statistics.std.double(), std, rtol=1e-3, atol=float(spacing), msg=lambda m: f"{window}: {m}"
    )
    assert normalised.abs().max() <= L**0.5 * 1.001


# What the language model reads.


@pytest.mark.parametrize("window", WINDOWS)
def test_prompts_are_short_and_name_no_long_numbers(window: str, tiny_llama: Path) -> None:
    """They tell of the normalised window, which lies within sqrt(L): 1e8 never reaches the tokenizer."""
    builder = PromptBuilder(
        AutoTokenizer.from_pretrained(tiny_llama), "A series.", seq_len=L, pred_len=H, digits=3
    )
    normalised, _ = InstanceNorm()(WINDOWS[window][None, :L])
    ordinary, _ = InstanceNorm()(walk()[None, :L])
    ids, mask = builder.tokens(torch.cat([per_series(normalised), per_series(ordinary)]))
    lengths = mask.sum(dim=1)
    assert lengths[:N].max() <= lengths[N:].max() + 12
    for text in builder.tokenizer.batch_decode(ids):
        numbers = [word.strip(",.") for word in text.split("Range")[1].split()]
        assert all(len(word) <= len("-6.928") + 1 for word in numbers if word[-1:].isdigit()), text
        assert "nan" not in text and "inf" not in text and "e+" not in text

"""The enhanced model: its switches, its gradients, its bounds, its checkpoints."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from models import TimeLLM, TimeLLM_Enhanced
from tests.models.test_timellm import SIZES as BASELINE_SIZES
from tests.models.test_timellm import H, L, N
from tests.pairwise import pairwise
from utils.config import Config
from utils.micro_step import MicroStep
from utils.training.objective import Objective
from utils.training.optim import build_optimizer
from utils.trend import direction_of, magnitude_of, trend_measure
from utils.types import Batch, FitSource, ForecastState, unsolved

SEASON = 12
TRAIN_END, TOTAL = 220, 320
SERIES = 11
BOTH: dict[str, Any] = {"use_tapr": True, "use_gram": True}
SIZES: dict[str, Any] = {
    **BASELINE_SIZES,
    "season": SEASON,
    "d_repr": 8,
    "memory_size": 200,
    "aux_warmup_steps": 2,
    "learning_rate": 0.003,
}


def _series() -> Tensor:
    """A standardised series [T, N] with a season, a wandering level and one spike."""
    generator = torch.Generator().manual_seed(3)
    wave = torch.sin(2 * torch.pi * torch.arange(TOTAL) / SEASON)[:, None]
    walk = torch.randn(TOTAL, N, generator=generator).cumsum(dim=0) * 0.3
    values = walk + wave
    values[150] += 40.0  # windows over it have prompts of another length
    return values / values.std(dim=0)


VALUES = _series()
SOURCE = TrainingWindows(VALUES, Split(0, TRAIN_END), seq_len=L, pred_len=H, series_id=SERIES)


def config_of(folder: Path, **settings: Any) -> Config:
    return Config.from_flat({**SIZES, "llm_model_path": str(folder), **settings})


def model_of(folder: Path, *, seed: int = 0, fit: bool = True, **settings: Any) -> TimeLLM_Enhanced.Model:
    torch.manual_seed(seed)
    model = TimeLLM_Enhanced.Model(config_of(folder, **settings))
    if fit:
        model.fit_statistics(FitSource(SOURCE, once=unsolved))
    return model


def batch_of(*starts: int, series_id: int = SERIES) -> Batch:
    x = torch.stack([VALUES[s : s + L] for s in starts])
    y = torch.stack([VALUES[s + L : s + L + H] for s in starts])
    nothing = torch.zeros(len(starts), 0)
    start = torch.tensor(starts)
    return Batch(
        x,
        y,
        nothing,
        nothing,
        start,
        torch.full_like(start, series_id),
        torch.arange(N).repeat(len(starts), 1),
    )


BATCH = batch_of(0, 100, 130)


def state_of(model: nn.Module, batch: Batch = BATCH, micro_step: MicroStep | None = None) -> ForecastState:
    return model(
        batch.x,
        start=batch.start,
        series_id=batch.series_id,
        variable=batch.variable,
        target=batch.y,
        micro_step=micro_step,
        return_state=True,
    )


def forecast(model: nn.Module, batch: Batch = BATCH) -> Tensor:
    with torch.no_grad():
        return state_of(model, batch).prediction


def shake(module: nn.Module, size: float = 0.5) -> None:
    """Trained-like weights: zero starts left behind."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def train(model: nn.Module, steps: int, batch: Batch = BATCH) -> list[float]:
    """The main losses of ``steps`` steps of the run's own optimizer and objective."""
    assert isinstance(model, TimeLLM.Model)
    objective, losses = Objective(model.config), []
    optimizer = build_optimizer(model, model.config.training)
    model.train()
    for step in range(steps):
        state = state_of(model, batch)
        loss = objective(state, batch, step=step)
        loss.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.main.item())
    return losses


# Shapes.


@pytest.mark.parametrize(
    ("n_scales", "seq_len", "padding", "patches"),
    [(1, 8, "none", 1), (2, 16, "none", 3), (3, 8, "none", 1), (4, 256, "end", 64), (5, 256, "none", 63)],
)
def test_any_number_of_scales_forecasts(
    tiny_gpt2: Path, n_scales: int, seq_len: int, padding: str, patches: int
) -> None:
    """The document varies n_scales from 2 to 4; a scale coarser than the sequence must not fail."""
    model = model_of(
        tiny_gpt2, fit=False, use_tapr=True, n_scales=n_scales, seq_len=seq_len, padding_patch=padding
    )
    assert model.config.patch_count == patches
    x = torch.randn(2, seq_len, N, generator=torch.Generator().manual_seed(0))
    out = model(x)
    out.square().mean().backward()
    assert out.shape == (2, H, N)
    assert out.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.tapr.decomposition.parameters())


# Modules off, and on.


def test_modules_off_is_the_baseline_bit_for_bit(tiny_gpt2: Path) -> None:
    """A part that is off, yet built, shifts every random number after it; dropout is on here."""
    config = config_of(tiny_gpt2, dropout=0.15)
    models: list[TimeLLM.Model] = []
    losses, states = [], []
    for kind in (TimeLLM.Model, TimeLLM_Enhanced.Model):
        torch.manual_seed(5)
        model = kind(config)
        model.fit_statistics(FitSource(SOURCE, once=unsolved))
        model.refresh(SOURCE)
        models.append(model)
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        losses.append(train(model, 20))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 20
    predictions = [forecast(model.eval()) for model in models]
    assert torch.equal(*predictions)
    for (name, a), b in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("modules", [{"use_tapr": True}, {"use_gram": True}, BOTH])
def test_shared_parts_start_equal_whatever_is_on(tiny_gpt2: Path, modules: dict[str, bool]) -> None:
    """An ablation compares modules, not initial weights."""
    torch.manual_seed(0)
    baseline = TimeLLM.Model(config_of(tiny_gpt2)).state_dict()
    enhanced = model_of(tiny_gpt2, **modules).state_dict()
    assert all(torch.equal(value, enhanced[name]) for name, value in baseline.items())
    roots = {name.split(".")[0] for name in enhanced} - {name.split(".")[0] for name in baseline}
    expected = {"tapr", "trend_fusion", "trend_gate"} if "use_tapr" in modules else set()
    assert roots == expected | ({"gram"} if "use_gram" in modules else set())


def test_gram_starts_equal_with_and_without_a_memory(tiny_gpt2: Path) -> None:
    """Building the memory must draw from its own generator, not from the training's."""
    model = model_of(tiny_gpt2, fit=False, **BOTH)
    before = torch.get_rng_state()
    model.fit_statistics(FitSource(SOURCE, once=unsolved))
    model.refresh(SOURCE)
    assert torch.equal(torch.get_rng_state(), before)


SWITCHES_OF: dict[str, list[Any]] = {
    "modules": [{}, {"use_tapr": True}, {"use_gram": True}, BOTH],
    "trend_fusion": ["always", "train", "off"],
    "trend_label": ["level", "relative"],
    "n_scales": [1, 2, 3],
    "scale_mixing": ["apart", "together"],
    "thresholds_in": ["forecast", "loss"],
    "retrieval_key": ["raw", "learned", "hybrid"],
    "retrieval_fusion": ["feature", "prediction", "both"],
    "retrieval_control": ["none", "random", "same_phase", "oracle"],
    "retrieval_scope": ["variable", "all"],
    "sizes": [{}, {"top_k": 1, "memory_size": 1}, {"top_k": 500, "memory_size": "all"}],
    "weights": [
        {},
        {"lambda_trend": 0.0, "lambda_retrieval": 0.0},
        {"lambda_dir": 0.0, "lambda_mag": 0.0, "lambda_hcl": 0.0, "lambda_ord": 0.0, "lambda_path": 0.0},
        {"lambda_ord": 0.0, "aux_warmup_steps": 0},
    ],
    "loss": [{}, {"loss": "MAE", "loss_scale": "std", "input_dropout": 0.3}, {"loss": "Huber"}],
}


def _label(switches: dict[str, Any]) -> str:
    return ",".join(f"{k.removeprefix('retrieval_')}={v}" for k, v in switches.items())


def flat(switches: dict[str, Any]) -> dict[str, Any]:
    """Settings of a row, some of whose choices are several settings."""
    together = [value if isinstance(value, dict) else {name: value} for name, value in switches.items()]
    return {name: value for one in together for name, value in one.items()}


def assert_every_gradient(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("switches", pairwise(SWITCHES_OF), ids=str)
def test_every_parameter_has_a_gradient_at_the_first_step(tiny_gpt2: Path, switches: dict[str, Any]) -> None:
    """DistributedDataParallel with find_unused_parameters=False stops at one that has none."""
    model = model_of(tiny_gpt2, llm_layers=1, **flat(switches))
    Objective(model.config)(state_of(model), BATCH, step=0).total.backward()
    assert_every_gradient(model)


@pytest.mark.parametrize("fusion", ["feature", "prediction", "both"])
@pytest.mark.parametrize("key", ["raw", "learned", "hybrid"])
def test_every_parameter_has_a_gradient_where_nothing_matches(tiny_gpt2: Path, key: str, fusion: str) -> None:
    """Few-shot: at percent 5 every training window is masked. No NaN, and still no unused parameter."""
    model = model_of(tiny_gpt2, llm_layers=1, retrieval_key=key, retrieval_fusion=fusion, **BOTH)
    short = TrainingWindows(VALUES, Split(100, 100 + L + H + 3), seq_len=L, pred_len=H, series_id=SERIES)
    model.rebuild_memory(short)
    batch = batch_of(100, 101, 103)
    state = state_of(model, batch)
    assert state.retrieval is not None
    assert not state.retrieval.matched.any()
    assert (state.retrieval.gate == 1).all()
    assert (state.retrieval.confidence == 0).all()
    assert state.prediction.isfinite().all()
    Objective(model.config)(state, batch, step=5).total.backward()
    assert_every_gradient(model)
    no_match = model.gram.gating.no_match.grad
    assert no_match is not None
    assert no_match.abs().sum() > 0


LEARNED_BY = (
    "trend_fusion",
    "trend_label",
    "scale_mixing",
    "thresholds_in",
    "retrieval_key",
    "retrieval_fusion",
)
LEARNING = pairwise(
    {name: SWITCHES_OF[name] for name in LEARNED_BY} | {"n_scales": [1, 2, 4], "start": ["none", "solved"]}
)


@pytest.mark.parametrize("switches", LEARNING, ids=_label)
def test_every_parameter_learns_by_the_fifth_step(tiny_gpt2: Path, switches: dict[str, Any]) -> None:
    """Zero starts and a warm-up delay some gradients; a part that never gets one is decoration."""
    model = model_of(tiny_gpt2, stride=2, llm_layers=1, **BOTH, **switches)  # 22 patches: two steps at 16x
    objective = Objective(model.config)
    optimizer = build_optimizer(model, model.config.training)
    for step in range(5):
        optimizer.zero_grad()
        objective(state_of(model), BATCH, step=step).total.backward()
        optimizer.step()
    silent = set()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        parts = {"": parameter.grad}
        if name.endswith("in_proj_bias"):  # query, key and value in one
            third = len(parameter) // 3
            parts = dict(zip(("[q]", "[k]", "[v]"), parameter.grad.split(third), strict=True))
        silent |= {name + part for part, grad in parts.items() if grad.abs().max() < 1e-12}
    expected = set()
    if model.config.tapr.n_scales == 1:
        expected.add("tapr.decomposition.scale_weights")  # one share of one
    # A vector added to all keys moves all scores of a query alike. Rounding may leave a trace of it.
    allowed = {name for name in silent if name.endswith(("key_projection.bias", "in_proj_bias[k]"))}
    if switches["n_scales"] == 4 and switches["scale_mixing"] == "together":
        # At 64x all patches are one step, stretched: all keys are equal and there is nothing to choose.
        allowed.add("tapr.decomposition.cross_scale_attn.2.in_proj_bias[q]")
    # All windows matched: where history helps, the gate is 0, and neither it nor the other token is heard.
    allowed |= {name for name in silent if name.startswith(("gram.gating.gate_net", "gram.gating.no_match"))}
    assert silent - allowed == expected


# Independence.


def test_batch_neighbours_do_not_change_a_forecast(folder: Path) -> None:
    """Padding between retrieval tokens and prompt, retrieval and gates: none may look sideways."""
    model = model_of(folder, retrieval_fusion="both", **BOTH).eval()
    shake(model, 0.05)
    model.refresh(SOURCE)
    mask = model.prompt.tokens(model.normalise(BATCH.x).lookback)[1]
    assert mask.min() == 0
    together = forecast(model)
    for i in range(len(BATCH.x)):
        one = Batch(*(field[i : i + 1] for field in BATCH))
        torch.testing.assert_close(forecast(model, one), together[i : i + 1], rtol=1e-4, atol=1e-4)


def test_one_variable_alone_equals_the_joint_window(tiny_gpt2: Path) -> None:
    """Single sampling: `variable` says which column the only one is, for mask and scope."""
    model = model_of(tiny_gpt2, **BOTH).eval()
    together = forecast(model)
    for v in range(N):
        single = BATCH._replace(
            x=BATCH.x[..., v : v + 1], y=BATCH.y[..., v : v + 1], variable=BATCH.variable[:, v : v + 1]
        )
        torch.testing.assert_close(forecast(model, single), together[..., v : v + 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("switches", [{}, {"trend_fusion": "off"}, {"retrieval_fusion": "both"}], ids=_label)
def test_train_and_eval_agree_without_dropout(folder: Path, switches: dict[str, Any]) -> None:
    """The original corrected its forecast in training only; GPT-2's own dropout was on."""
    model = model_of(folder, **BOTH, **switches)
    shake(model, 0.1)
    model.refresh(SOURCE)
    torch.testing.assert_close(forecast(model.train()), forecast(model.eval()), rtol=1e-4, atol=1e-4)


def test_target_does_not_reach_the_forecast(tiny_gpt2: Path) -> None:
    """The loop hands the target over at each step, for the oracle control alone."""
    model = model_of(tiny_gpt2, **BOTH).eval()
    assert torch.equal(forecast(model), forecast(model, BATCH._replace(y=BATCH.y + 9)))
    oracle = model_of(tiny_gpt2, retrieval_control="oracle", **BOTH).eval()
    assert not torch.equal(forecast(oracle), forecast(oracle, BATCH._replace(y=-BATCH.y)))


# Retrieval's place.


def test_no_overlapping_row_is_retrieved(tiny_gpt2: Path) -> None:
    """The leak that made training copy: windows, variables and starts in the model's own order."""
    model = model_of(tiny_gpt2, memory_size="all", top_k=40, retrieval_scope="all", **BOTH)
    batch = batch_of(0, 1, 59, 60, 61, 120, 160)
    record = state_of(model, batch).retrieval
    assert record is not None
    start = batch.start.repeat_interleave(N)
    found = record.rows >= 0
    gap = (model.gram.retriever.memory_start[record.rows.clamp(min=0)] - start[:, None]).abs()
    assert (gap[found] >= L + H).all()
    assert found.all()
    unknown = model(batch.x, return_state=True).retrieval  # no place given: nothing is masked
    assert (unknown.distance[:, 0] < 1e-6).all()


def test_scope_keeps_to_the_same_variable(tiny_gpt2: Path) -> None:
    """Series are folded window by window, variable by variable: the columns must match."""
    model = model_of(tiny_gpt2, memory_size="all", **BOTH)
    batch = batch_of(0, 31)
    swapped = batch._replace(x=batch.x.flip(2), variable=batch.variable.flip(1))
    for b in (batch, swapped):
        record = state_of(model, b).retrieval
        assert record is not None
        assert torch.equal(
            model.gram.retriever.memory_variable[record.rows],
            b.variable.reshape(-1, 1).expand_as(record.rows),
        )


@pytest.mark.parametrize("given", ["start", "series_id"])
def test_start_and_series_id_come_together(tiny_gpt2: Path, given: str) -> None:
    """A start without its series would mask nothing, silently."""
    model = model_of(tiny_gpt2, **BOTH)
    with pytest.raises(ValueError, match="start and series_id: give both"):
        model(BATCH.x, **{given: BATCH.start})


def test_memory_depends_on_the_seed_setting_alone(tiny_gpt2: Path) -> None:
    """Every process builds its own memory, and the hashes are compared."""
    first, second = model_of(tiny_gpt2, **BOTH), model_of(tiny_gpt2, fit=False, **BOTH)
    torch.manual_seed(99)
    second.fit_statistics(FitSource(SOURCE, once=unsolved))
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    other = TimeLLM_Enhanced.Model(first.config.replace(seed=4))
    other.rebuild_memory(SOURCE)
    assert not torch.equal(other.gram.retriever.memory_start, first.gram.retriever.memory_start)


@pytest.mark.parametrize("key", ["raw", "learned", "hybrid"])
def test_refresh_changes_keys_only_where_encoders_moved(tiny_gpt2: Path, key: str) -> None:
    """Keys are refreshed before each validation; twice must be as good as once."""
    model = model_of(tiny_gpt2, retrieval_key=key, **BOTH)
    memory = model.gram.retriever
    keys = memory.memory_keys.clone()
    model.refresh(SOURCE)
    assert torch.equal(memory.memory_keys, keys)
    train(model, 3)
    assert torch.equal(memory.memory_keys, keys)
    model.refresh(SOURCE)
    assert torch.equal(memory.memory_keys, keys) == (key == "raw")
    once = memory.memory_keys.clone()
    model.refresh(SOURCE)
    assert torch.equal(memory.memory_keys, once)


# Trend fusion.


def unfused(model: TimeLLM_Enhanced.Model) -> list[Tensor]:
    """Filled by each forward pass with the head's forecast [S, H], in normalised units."""
    heard: list[Tensor] = []
    model.output_projection.register_forward_hook(lambda m, a, out: heard.append(out.detach()))
    return heard


@pytest.mark.parametrize("size", [0.3, 3.0, 30.0])
def test_trend_correction_stays_within_its_bound(tiny_gpt2: Path, size: float) -> None:
    """|correction_h| <= 0.5 (h / H) gate trend_gate |yhat_h - x_last|, whatever was learned."""
    model = model_of(tiny_gpt2, use_tapr=True).eval()
    for part in (model.trend_fusion, model.trend_gate, model.tapr.coarse_to_fine):
        shake(part, size)
    heard, opened = unfused(model), []
    model.trend_gate.register_forward_hook(lambda m, a, out: opened.append(out.detach()))
    with torch.no_grad():
        state = state_of(model)
    series = model.normalise(BATCH.x)
    assert state.trend is not None
    mean, std = series.statistics
    fused = ((state.prediction - mean) / std).transpose(1, 2).reshape(-1, H).double()
    head = heard[0].double()
    ramp = torch.arange(1, H + 1).double() / H
    gates = state.trend.gate.double() * opened[0].double()
    bound = 0.5 * ramp * gates * (head - series.normalised[:, -1:].double()).abs()
    correction = (fused - head).abs()
    assert (correction <= bound + 1e-5).all()
    assert (correction > 0.05 * bound).any()  # it does something
    assert correction.max() > 1e-3


def test_untrained_trend_changes_no_forecast(tiny_gpt2: Path) -> None:
    """A random correction at the start is noise that has to be unlearned."""
    model = model_of(tiny_gpt2, use_tapr=True)
    head = unfused(model)
    prediction = forecast(model)
    series = model.normalise(BATCH.x)
    torch.testing.assert_close(prediction, model.denormalise(head[0], series.statistics), rtol=0, atol=0)


TREND_SETTINGS: list[dict[str, Any]] = [
    {},
    {"trend_label": "relative", "n_scales": 1},
    {"scale_mixing": "together", "n_scales": 5, "token_order": "prompt_first"},
    {"thresholds_in": "loss", "trend_fusion": "train", "dropout": 0.2},
    {"trend_fusion": "off", "loss_scale": "std"},
]


@pytest.mark.parametrize("settings", TREND_SETTINGS, ids=_label)
def test_beside_a_solved_start_tapr_begins_without_effect_to_the_bit(
    tiny_gpt2: Path, settings: dict[str, Any]
) -> None:
    """What a run begins from is a candidate: with TAPR it must be the one without."""
    models = [model_of(tiny_gpt2, start="solved", use_tapr=on, **settings) for on in (False, True)]
    coefficients = torch.randn(H, L, generator=torch.Generator().manual_seed(1)) / L
    for model in models:
        model.start.plain_map.copy_(coefficients.T)
    for mode in (False, True):  # dropout draws other numbers, and changes nothing
        assert torch.equal(*(forecast(model.train(mode)) for model in models))


def test_thresholds_reach_the_forecast(tiny_gpt2: Path) -> None:
    """They were in the ordinal loss alone: learned, and read by nothing."""
    model, loss_alone = (model_of(tiny_gpt2, use_tapr=True, thresholds_in=t) for t in ("forecast", "loss"))
    for one in (model, loss_alone):
        shake(one.trend_fusion)
    thresholds = model.tapr.coarse_to_fine.trend_thresholds
    (slope,) = torch.autograd.grad((state_of(model).prediction - BATCH.y).square().mean(), thresholds)
    assert (slope != 0).all()
    before = [forecast(one) for one in (model, loss_alone)]
    for one in (model, loss_alone):
        one.tapr.coarse_to_fine.set_thresholds(torch.tensor([-3.0, -2.0, -1.0, 0.0]))
    assert (forecast(model) - before[0]).abs().max() > 1e-3
    assert torch.equal(forecast(loss_alone), before[1])


def test_each_bin_of_the_forecasts_trend_has_a_correction(tiny_gpt2: Path) -> None:
    """Of the uncorrected forecast, its trend measured as the labels are, between the learned thresholds."""
    model = model_of(tiny_gpt2, use_tapr=True).eval()
    head = unfused(model)
    heard: list[Tensor] = []
    model.trend_fusion.register_forward_hook(lambda m, args, out: heard.append(args[2]))
    with torch.no_grad():
        record = state_of(model).trend
    assert record is not None
    cuts, thresholds = record.label_cuts.tolist(), record.thresholds.tolist()
    width = max((cuts[4] - cuts[0]) / (2 * math.log(3)), 0.1)
    series = BATCH.x.transpose(1, 2).reshape(-1, L).double()
    for s, x in enumerate(series):
        std = math.sqrt(x.var(unbiased=False).item() + 1e-5)
        own = (head[0][s].double().mean().item() * std + x.mean().item() - x[-SEASON:].mean().item()) / max(
            x.std(unbiased=False).item(), 0.1
        )
        ends = [0.0, *(1 / (1 + math.exp(-(t - own) / width)) for t in thresholds), 1.0]
        wanted = [high - low for low, high in itertools.pairwise(ends)]
        assert heard[0][s].tolist() == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("scale", [1.0, 24.0])
def test_confidence_token_begins_as_long_as_a_word(
    tiny_gpt2: Path, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drawn from U(-1, 1) it was five words long, and outweighed them in every attention."""
    monkeypatch.setattr(TimeLLM, "word_scale", lambda llm: scale)
    model = model_of(tiny_gpt2, fit=False, use_gram=True)
    words = model.llm_model.get_input_embeddings().weight.double()
    length = scale * words.norm(dim=1).mean().item()
    confidence = torch.tensor([[0.0], [0.5], [1.0]])
    tokens = model.gram.prompt.confidence_embed(confidence).double()
    assert tokens[1].norm().item() == pytest.approx(length, rel=1e-4)
    assert all(0.3 * length < token.norm() < 3 * length for token in tokens)


def test_trend_fusion_mode_train_is_off_in_eval(tiny_gpt2: Path) -> None:
    """`train` is the original's behaviour; `always` is ours; `off` builds nothing."""
    model = model_of(tiny_gpt2, use_tapr=True, trend_fusion="train")
    shake(model, 0.3)
    head = unfused(model)
    trained, evaluated = forecast(model.train()), forecast(model.eval())
    statistics = model.normalise(BATCH.x).statistics
    assert (trained - model.denormalise(head[0], statistics)).abs().max() > 1e-3
    torch.testing.assert_close(evaluated, model.denormalise(head[1], statistics), rtol=0, atol=0)
    off = model_of(tiny_gpt2, use_tapr=True, trend_fusion="off")
    assert not hasattr(off, "trend_fusion")
    assert not hasattr(off, "trend_gate")


# Retrieval fusion on the prediction.


@pytest.mark.parametrize("fusion", ["prediction", "both"])
def test_retrieved_forecast_is_mixed_in_by_share_and_gate(tiny_gpt2: Path, fusion: str) -> None:
    """yhat + tanh(share_h) (1 - gate) (retrieved - yhat), zero at the start, in normalised units."""
    model = model_of(tiny_gpt2, use_gram=True, retrieval_fusion=fusion).eval()
    head = unfused(model)
    series = model.normalise(BATCH.x)
    start = forecast(model)
    torch.testing.assert_close(start, model.denormalise(head[0], series.statistics), rtol=0, atol=0)
    shake(model.retrieval_fusion, 1.0)
    with torch.no_grad():
        state = state_of(model)
    record, memory = state.retrieval, model.gram.retriever
    assert record is not None
    std = series.lookback.std(dim=1, unbiased=False).clamp(min=0.1)
    futures = (record.weights[..., None] * memory.memory_values[record.rows]).sum(dim=1)
    retrieved = series.normalised[:, -1:] + futures / std[:, None]
    share = model.retrieval_fusion.share.detach().tanh() * (1 - record.gate)
    expected = model.denormalise(head[1] + share * (retrieved - head[1]), series.statistics)
    torch.testing.assert_close(state.prediction, expected, rtol=1e-4, atol=1e-4)


# Labels and thresholds in training.


@pytest.mark.parametrize("label", ["level", "relative"])
def test_thresholds_move_in_training_and_labels_do_not(tiny_gpt2: Path, label: Any) -> None:
    """Learnable thresholds that relabel can reach zero loss by calling everything flat."""
    model = model_of(tiny_gpt2, use_tapr=True, trend_label=label, learning_rate=0.02)

    def labels() -> list[Tensor]:
        record = state_of(model).trend
        assert record is not None
        future = BATCH.y.transpose(1, 2).reshape(-1, H)
        measure = trend_measure(future, reference=record.reference, scale=record.scale, kind=label)
        cuts = record.label_cuts
        return [cuts.clone(), direction_of(measure, cuts), magnitude_of(measure, cuts)]

    table = model.tapr.magnitude_given_direction.clone()
    before, thresholds = labels(), model.tapr.coarse_to_fine.thresholds().detach().clone()
    for _ in range(3):
        train(model, 5)
        assert (model.tapr.coarse_to_fine.thresholds().diff() > 0).all()
    after = labels()
    assert (model.tapr.coarse_to_fine.thresholds() - thresholds).abs().min() > 1e-4
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(model.tapr.magnitude_given_direction, table)


def test_cuts_are_those_of_all_training_rows(tiny_gpt2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures are made in blocks: the last, shorter one must count too."""
    whole = model_of(tiny_gpt2, use_tapr=True).tapr
    monkeypatch.setattr(TimeLLM_Enhanced, "CALIBRATION_BLOCK", 37)
    parts = model_of(tiny_gpt2, use_tapr=True).tapr
    torch.testing.assert_close(whole.label_cuts, parts.label_cuts)
    torch.testing.assert_close(whole.magnitude_given_direction, parts.magnitude_given_direction)
    measures = []
    for v in range(N):
        for s in range(SOURCE.num_windows):
            x, y = VALUES[s : s + L, v].double(), VALUES[s + L : s + L + H, v].double()
            std = max(x.std(unbiased=False).item(), 0.1)
            measures.append((y.mean() - x[-SEASON:].mean()).item() / std)
    quantiles = torch.tensor([1 / 4, 1 / 3, 1 / 2, 2 / 3, 3 / 4]).double()
    expected = torch.tensor(measures).double().quantile(quantiles)
    torch.testing.assert_close(whole.label_cuts.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", ["level", "relative"])
def test_recalibration_keeps_thresholds_and_memory(tiny_gpt2: Path, label: str) -> None:
    """Weights loaded for another series need its cuts, and keep what they have learned."""
    model = model_of(tiny_gpt2, trend_label=label, **BOTH)
    train(model, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = TrainingWindows(VALUES * 2, Split(40, 180), seq_len=L, pred_len=H, series_id=SERIES + 1)
    model.fit_statistics(FitSource(other, weights_given=True, once=unsolved))
    fresh = model_of(tiny_gpt2, fit=False, trend_label=label, **BOTH)
    fresh.fit_statistics(FitSource(other, once=unsolved))
    counted = {"tapr.label_cuts", "tapr.magnitude_given_direction"}
    for name, value in model.state_dict().items():
        if name in counted:
            assert torch.equal(value, fresh.state_dict()[name]), name
        else:
            assert torch.equal(value, before[name]), name
    assert torch.equal(model.tapr.label_cuts, before["tapr.label_cuts"]) == (label == "relative")
    assert not torch.equal(model.tapr.magnitude_given_direction, before["tapr.magnitude_given_direction"])


@pytest.mark.parametrize("modules", [{}, {"use_gram": True}])
def test_recalibration_without_trends_changes_nothing(tiny_gpt2: Path, modules: dict[str, bool]) -> None:
    """A resumed run calls it for every model."""
    model = model_of(tiny_gpt2, **modules)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.fit_statistics(FitSource(SOURCE, weights_given=True, once=unsolved))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Checkpoints.


def trained(folder: Path, **settings: Any) -> TimeLLM_Enhanced.Model:
    model = model_of(folder, seed=1, **BOTH, **{"top_k": 5, **settings})
    train(model, 3)
    model.refresh(SOURCE)
    return model.eval()


@pytest.mark.parametrize("own", [None, 20, "all"])
@pytest.mark.parametrize("llm_inside", [True, False])
def test_checkpoint_brings_its_memory_into_any_model(
    tiny_gpt2: Path, own: int | str | None, llm_inside: bool
) -> None:
    """The best weights are only as good as the keys they were validated with."""
    saved = trained(tiny_gpt2)
    settings: dict[str, Any] = {"memory_size": own} if own else {}
    model = model_of(tiny_gpt2, fit=own is not None, top_k=5, **BOTH, **settings).eval()
    state: dict[str, Tensor] = dict(saved.state_dict())
    if llm_inside:
        state |= {f"llm_model.{k}": v * 0 for k, v in saved.llm_model.state_dict().items()}
    model.load_state_dict(state)
    assert torch.equal(forecast(model), forecast(saved))


def test_loaded_memory_can_be_refreshed_and_trained(tiny_gpt2: Path) -> None:
    """A resumed run goes on with its own rows: never another draw."""
    saved = trained(tiny_gpt2)
    model = model_of(tiny_gpt2, fit=False, **BOTH)
    model.load_state_dict(saved.state_dict())
    model.refresh(SOURCE)
    torch.testing.assert_close(
        model.gram.retriever.memory_keys, saved.gram.retriever.memory_keys, rtol=1e-5, atol=1e-5
    )
    assert torch.equal(model.gram.retriever.memory_start, saved.gram.retriever.memory_start)
    assert all(loss == loss for loss in train(model, 2))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_forecast_is_float32_whatever_the_llms_precision(tiny_gpt2: Path, precision: str) -> None:
    """Trend and retrieval tokens met a bf16 LLM in one concatenation."""
    model = model_of(tiny_gpt2, mixed_precision=precision, retrieval_fusion="both", **BOTH)
    device_type = "cpu"
    with torch.autocast(device_type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        state = state_of(model)
        loss = Objective(model.config)(state, BATCH, step=5)
    loss.total.backward()
    assert state.prediction.dtype == torch.float32
    assert state.prediction.isfinite().all()
    assert_every_gradient(model)

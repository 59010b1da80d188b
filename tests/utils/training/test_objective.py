"""The losses against plain float64 formulas, and the signs of the gate's two."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from utils.config import Config
from utils.training.objective import (
    Objective,
    document_gate_losses,
    forecast_loss,
    gate_errors,
    ordinal_loss,
    retrieval_losses,
    trend_losses,
    warmup_factor,
)
from utils.trend import magnitude_given_direction, ordinal_probabilities
from utils.types import Batch, ForecastState, RetrievalRecord, TrendRecord

B, L, H, N = 5, 10, 6, 2
S = B * N
CUTS = (-0.7, -0.4, 0.0, 0.4, 0.7)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(seed: int = 0) -> Batch:
    nothing = torch.zeros(B, 0)
    x, y = draw(B, L, N, seed=seed), draw(B, H, N, seed=seed + 1)
    x[0, :, 0] = 1.0 + 1e-4 * x[0, :, 0]  # a nearly constant window
    return Batch(x, y, nothing, nothing, torch.arange(B), torch.zeros(B).long(), torch.arange(N).repeat(B, 1))


def trend_of(size: int = S, seed: int = 3) -> TrendRecord:
    cuts = torch.tensor(CUTS)
    return TrendRecord(
        direction_logits=draw(size, 3, seed=seed).requires_grad_(),
        magnitude_logits=draw(size, 4, seed=seed + 1).requires_grad_(),
        path=draw(size, H, seed=seed + 2),
        measure=draw(size, seed=seed + 3).requires_grad_(),
        gate=torch.full((size, 1), 0.5),
        reference=draw(size, seed=seed + 4),
        scale=draw(size, seed=seed + 5).abs() + 0.1,
        mean=draw(size, 1, seed=seed + 6),
        std=draw(size, 1, seed=seed + 7).abs() + 0.1,
        label_cuts=cuts,
        magnitude_given_direction=magnitude_given_direction(draw(500), cuts),
        thresholds=torch.tensor([-0.8, -0.3, 0.5, 0.6], requires_grad=True),
        scale_weights=torch.ones(1),
    )


def retrieval_of(gate: Tensor, confidence: Tensor, *, matched: Any = None) -> Any:
    size = len(gate)
    return RetrievalRecord(
        gate=gate,
        confidence=confidence,
        weights=torch.full((size, 2), 0.5),
        rows=torch.zeros(size, 2).long(),
        distance=torch.ones(size, 2),
        matched=torch.ones(size, dtype=torch.bool) if matched is None else matched,
        plain=gate[:, :0],
        joint=gate[:, :0],
        advantage=gate[:, :0],
    )


def state_of(prediction: Tensor, trend: TrendRecord | None, retrieval: Any = None) -> ForecastState:
    return ForecastState(prediction, trend, retrieval)


# The main loss.


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("kind", ["MSE", "MAE", "Huber"])
def test_main_loss_is_its_formula(kind: str, scale: str) -> None:
    """Deviations without a floor let one nearly constant window outweigh all others."""
    batch, prediction = batch_of(), draw(B, H, N, seed=9)
    config = Config.from_flat({"loss": kind, "loss_scale": scale}).training
    total, values = 0.0, 0
    for b in range(B):
        for n in range(N):
            x = batch.x[b, :, n].double()
            std = max(float((x - x.mean()).square().mean().sqrt()), 0.1) if scale == "std" else 1.0
            for h in range(H):
                error = abs(prediction[b, h, n].item() - batch.y[b, h, n].item()) / std
                huber = 0.5 * error**2 if error <= 1 else error - 0.5
                total += {"MSE": error**2, "MAE": error, "Huber": huber}[kind]
                values += 1
    assert forecast_loss(prediction, batch, config).item() == pytest.approx(total / values, rel=1e-5)


@pytest.mark.parametrize(
    ("step", "steps", "factor"),
    [(0, 500, 0.0), (1, 500, 0.002), (250, 500, 0.5), (500, 500, 1.0), (9999, 500, 1.0), (0, 0, 1.0)],
)
def test_warmup_is_the_documents(step: int, steps: int, factor: float) -> None:
    """min(1, step / steps); the original never passed the step, so it stayed at 0."""
    assert warmup_factor(step, steps) == pytest.approx(factor)


# TAPR's losses.


def plain_trend_losses(record: TrendRecord, future: Tensor, smoothing: float) -> dict[str, float]:
    """The five losses, series by series, float64."""
    sums = dict.fromkeys(("direction", "magnitude", "consistency", "ordinal", "path"), 0.0)
    size = len(future)
    for s in range(size):
        t = (future[s].double().mean().item() - record.reference[s].item()) / record.scale[s].item()
        direction = 0 if t < CUTS[1] else 2 if t > CUTS[3] else 1
        magnitude = 0 if t < CUTS[0] else 1 if t < CUTS[2] else 3 if t > CUTS[4] else 2
        level = sum(t >= CUTS[i] for i in (0, 1, 3, 4))
        for name, logits, label in (
            ("direction", record.direction_logits[s], direction),
            ("magnitude", record.magnitude_logits[s], magnitude),
        ):
            z = logits.detach().double()
            log_p = z - z.exp().sum().log()
            classes = len(z)
            wanted = [(1 - smoothing) * (c == label) + smoothing / classes for c in range(classes)]
            sums[name] -= sum(w * log_p[c].item() for c, w in enumerate(wanted))
        p_direction = record.direction_logits[s].detach().double().exp()
        p_direction = p_direction / p_direction.sum()
        p_magnitude = record.magnitude_logits[s].detach().double().exp()
        p_magnitude = p_magnitude / p_magnitude.sum()
        for m in range(4):
            expected = sum(
                p_direction[d].item() * record.magnitude_given_direction[d, m].item() for d in range(3)
            )
            if expected > 0:
                sums["consistency"] += expected * (math.log(expected) - math.log(p_magnitude[m].item()))
        width = max((CUTS[4] - CUTS[0]) / (2 * math.log(3)), 0.1)
        at = record.measure[s].item()
        ends = [0.0, *(1 / (1 + math.exp(-(c - at) / width)) for c in record.thresholds.tolist()), 1.0]
        sums["ordinal"] -= math.log(ends[level + 1] - ends[level])
        path = record.path[s].double() * record.std[s].item() + record.mean[s].item()
        sums["path"] += (path - future[s].double()).abs().mean().item() / record.scale[s].item()
    return {name: value / size for name, value in sums.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_trend_losses_are_their_formulas(smoothing: float) -> None:
    """Labels of the wrong series (y folded in another order than x) still give a finite loss."""
    record, batch = trend_of(), batch_of()
    future = torch.stack([batch.y[b, :, n] for b in range(B) for n in range(N)])
    config = Config.from_flat({"label_smoothing": smoothing})
    found = trend_losses(record, future, config.tapr)
    expected = plain_trend_losses(record, future, smoothing)
    assert {k: v.item() for k, v in found.items()} == pytest.approx(expected, rel=1e-4)
    whole = Objective(config)(state_of(batch.y, record), batch, step=0)
    assert {k: v.item() for k, v in whole.terms.items()} == pytest.approx(expected, rel=1e-4)


def test_consistency_pulls_the_magnitude_and_not_the_direction() -> None:
    """The direction must not bend to please a wrong magnitude."""
    record = trend_of()
    loss = trend_losses(record, draw(S, H), Config().tapr)["consistency"]
    directions, magnitudes = torch.autograd.grad(
        loss, (record.direction_logits, record.magnitude_logits), allow_unused=True
    )
    assert directions is None or not directions.any()
    assert magnitudes.abs().sum() > 0
    agreed = record.direction_logits.detach().softmax(-1) @ record.magnitude_given_direction
    perfect = record._replace(magnitude_logits=agreed.clamp(min=1e-30).log())
    assert trend_losses(perfect, draw(S, H), Config().tapr)["consistency"].item() == pytest.approx(
        0, abs=1e-6
    )


def test_thresholds_get_their_gradient_from_the_ordinal_loss_alone() -> None:
    """Thresholds that take part in the labels are not differentiable; labels that move are no labels."""
    record = trend_of()
    terms = trend_losses(record, draw(S, H), Config().tapr)
    assert not terms.pop("path").requires_grad
    for name, loss in terms.items():
        (gradient,) = torch.autograd.grad(loss, record.thresholds, retain_graph=True, allow_unused=True)
        assert (gradient is not None and (gradient != 0).all()) == (name == "ordinal"), name


def test_ordinal_likelihoods_sum_to_one() -> None:
    """Five bins between four cuts, the outer ones open."""
    record = trend_of()
    total = torch.zeros(S, dtype=torch.float64)
    for level in range(5):
        bins = torch.full((1,), level)
        for s in range(S):
            one = record._replace(measure=record.measure[s : s + 1])
            likelihood = math.exp(-ordinal_loss(one, bins).item())
            total[s] += likelihood
            bins_of = ordinal_probabilities(record.measure, record.thresholds, record.label_cuts)
            assert bins_of[s, level].item() == pytest.approx(likelihood, abs=1e-6)
    torch.testing.assert_close(total, torch.ones(S, dtype=torch.float64), rtol=0, atol=1e-5)


def plain_ordinal(record: TrendRecord, level: int) -> tuple[Tensor, Tensor, Tensor]:
    """-log of the difference of two sigmoids, float64, and its gradients: measure, thresholds."""
    width = max((CUTS[4] - CUTS[0]) / (2 * math.log(3)), 0.1)
    measure = record.measure.detach().double().requires_grad_()
    thresholds = record.thresholds.detach().double().requires_grad_()
    below = torch.sigmoid((thresholds - measure[:, None]) / width)
    edge = below[:, :1]
    ends = torch.cat([torch.zeros_like(edge), below, torch.ones_like(edge)], dim=1)
    loss = -(ends[:, level + 1] - ends[:, level]).log().mean()
    slopes = torch.autograd.grad(loss, (measure, thresholds))
    return loss.detach(), slopes[0], slopes[1]


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("far", [0.0, 1.0, 5.0, 12.0])
@pytest.mark.parametrize("sign", [-1, 1])
def test_ordinal_loss_is_the_direct_formula_where_float64_holds_it(level: int, far: float, sign: int) -> None:
    """In logarithms, loss and slopes are those of the difference of sigmoids, without a clamp at 1e-6."""
    measure = (draw(S, seed=6) * 0.2 + sign * far).requires_grad_()
    record = trend_of()._replace(measure=measure)
    loss = ordinal_loss(record, torch.full((S,), level))
    slopes = torch.autograd.grad(loss, (measure, record.thresholds))
    expected = plain_ordinal(record, level)
    for found, wanted in zip((loss, *slopes), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)
    if far == 12.0 and (level < 3 if sign > 0 else level > 1):
        assert loss > -math.log(1e-6)  # where the clamp ended


def test_ordinal_loss_of_a_narrow_bin_is_the_direct_formula() -> None:
    """Learned thresholds may come close; a floor on their gap hides how unlikely the bin is."""
    measure = (draw(S, seed=6) * 0.2).requires_grad_()
    thresholds = torch.tensor([-0.8, -0.3, 0.5, 0.501], requires_grad=True)
    record = trend_of()._replace(measure=measure, thresholds=thresholds)
    loss = ordinal_loss(record, torch.full((S,), 3))
    slopes = torch.autograd.grad(loss, (measure, thresholds))
    for found, wanted in zip((loss, *slopes), plain_ordinal(record, 3), strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("level", range(5))
@pytest.mark.parametrize("scales", [-1e6, -1e4, -200.0, -50.0, 50.0, 200.0, 1e4, 1e6])
def test_ordinal_gradient_does_not_vanish_where_the_path_is_most_wrong(level: int, scales: float) -> None:
    """A clamped likelihood has no slope: the worst paths were the ones that never learned."""
    width = (CUTS[4] - CUTS[0]) / (2 * math.log(3))
    measure = torch.full((S,), scales * width, requires_grad=True)
    record = trend_of()._replace(measure=measure)
    loss = ordinal_loss(record, torch.full((S,), level))
    slope, thresholds = torch.autograd.grad(loss, (measure, record.thresholds))
    assert loss.isfinite()
    assert slope.isfinite().all()
    assert thresholds.isfinite().all()
    if level == (4 if scales > 0 else 0):  # the right bin, for certain
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert (slope.abs() < 1e-6).all()
        return
    # Far out log P falls by one per scale: the slope of a mean over S is 1 / (S * width).
    expected = torch.full((S,), math.copysign(1 / (S * width), scales))
    torch.testing.assert_close(slope, expected, rtol=1e-3, atol=0)
    assert loss.item() == pytest.approx(abs(scales), rel=0.1, abs=15)
    assert thresholds.abs().sum() > 0


# The document's losses on the gate.


def plain_retrieval_losses(gate: Tensor, confidence: Tensor, matched: Tensor) -> dict[str, float]:
    """The two, from what windows [B, M] decided, number by number in float64."""
    windows, variables = gate.shape
    consistency = diversity = 0.0
    for m in range(variables):
        decided = []
        for b in range(windows):
            g = gate[b, m].item()
            consistency += confidence[b, m].item() * 4 * g * (1 - g)
            decided += [g] if matched[b, m] else []
        if decided:
            p = sum(decided) / len(decided)
            diversity += math.log(2) + sum(q * math.log(q) for q in (p, 1 - p) if q > 0)
    return {
        "gate_consistency": consistency / windows / variables,
        "gate_entropy": diversity / variables,
    }


@given(windows=st.integers(1, 6), variables=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_retrieval_losses_are_their_formulas(windows: int, variables: int, seed: int) -> None:
    """Also where a variable, or all of them, found nothing; series stand window by window."""
    gate, confidence, found = (draw(windows, variables, seed=seed + i).sigmoid() for i in range(3))
    gate, matched = (3 * (gate - 0.5)).sigmoid() ** 2, found > 0.5
    gate[~matched] = 1.0  # by rule
    record = retrieval_of(gate.view(-1, 1), confidence.view(-1, 1), matched=matched.view(-1))
    losses = {name: value.item() for name, value in document_gate_losses(record, variables).items()}
    assert losses == pytest.approx(plain_retrieval_losses(gate, confidence, matched), abs=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.4, 0.6, 0.9])
def test_consistency_is_lower_when_the_gate_leaves_a_half(value: float) -> None:
    """The usual way pays for 0.5: a confident match would make the gate undecided."""
    gate = torch.full((S, 1), value, requires_grad=True)
    confidence = torch.full((S, 1), 0.9, requires_grad=True)
    loss = document_gate_losses(retrieval_of(gate, confidence), N)["gate_consistency"]
    slopes: Any = torch.autograd.grad(loss, (gate, confidence), allow_unused=True)
    slope, other = slopes
    assert other is None  # else the loss is lowest where nothing is trusted
    assert (slope.sign() == math.copysign(1, 0.5 - value)).all()  # descent moves away from 0.5
    at_half = document_gate_losses(retrieval_of(torch.full((S, 1), 0.5), confidence), N)["gate_consistency"]
    assert loss < at_half
    none = document_gate_losses(retrieval_of(gate, torch.zeros(S, 1)), N)["gate_consistency"]
    assert none.item() == 0


@pytest.mark.parametrize(("mean", "direction"), [(0.8, 1), (0.2, -1), (0.5, 0)])
def test_diversity_pushes_the_mean_towards_a_half(mean: float, direction: int) -> None:
    """A gate that says the same for every window is no gate; the wrong sign makes it so."""
    gate = torch.full((S, 1), mean, requires_grad=True)
    loss = document_gate_losses(retrieval_of(gate, torch.zeros(S, 1)), N)["gate_entropy"]
    (slope,) = torch.autograd.grad(loss, gate)
    # of a mean over the N variables of a function of a mean over B windows
    torch.testing.assert_close(slope, torch.full((S, 1), math.log(mean / (1 - mean)) / S), atol=1e-6, rtol=0)
    assert slope.sign().unique().tolist() == [direction]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_diversity_of_a_shut_gate_is_finite(value: float) -> None:
    """The slope of an entropy at 0 and 1 is infinite."""
    logit = torch.full((S, 1), -200.0 if value == 0 else 200.0, requires_grad=True)
    loss = document_gate_losses(retrieval_of(logit.sigmoid(), torch.ones(S, 1)), N)
    (slope,) = torch.autograd.grad(sum(loss.values(), start=torch.zeros(())), logit)
    assert all(v.isfinite() for v in loss.values())
    assert slope.isfinite().all()


def test_gate_losses_decompose_over_variables() -> None:
    """--max_channels_per_step must give the gradient of the whole batch."""
    windows, variables = 3, 12
    gate, confidence = torch.rand(windows, variables, requires_grad=True), torch.rand(windows, variables)
    matched = torch.rand(windows, variables) > 0.3

    def gradient(parts: int) -> Tensor:
        losses = []
        for part in torch.arange(variables).chunk(parts):
            columns = (one[:, part].reshape(-1, 1) for one in (gate, confidence))
            record = retrieval_of(*columns, matched=matched[:, part].reshape(-1))
            losses.append(
                sum(document_gate_losses(record, len(part)).values(), start=torch.zeros(())) / parts
            )
        (found,) = torch.autograd.grad(torch.stack(losses).sum(), gate)
        return found

    for parts in (2, 3, 4):
        torch.testing.assert_close(gradient(parts), gradient(1))


def test_series_without_a_match_do_not_count_as_decisions() -> None:
    """Their gate is 1 by rule; counted, they would push every other gate down."""
    gate = torch.tensor([[0.6], [0.6], [1.0], [1.0]], requires_grad=True)
    matched = torch.tensor([True, True, False, False])
    loss = document_gate_losses(retrieval_of(gate, torch.zeros(4, 1), matched=matched), 1)["gate_entropy"]
    alone = document_gate_losses(retrieval_of(gate[:2], torch.zeros(2, 1)), 1)["gate_entropy"]
    assert loss.item() == pytest.approx(alone.item(), abs=1e-6)
    (slope,) = torch.autograd.grad(loss, gate)
    assert (slope[~matched] == 0).all() and (slope[matched] > 0).all()


# The gate's loss.


@given(windows=st.integers(1, 5), seed=st.integers(0, 10**6), out_of_fold=st.booleans())
def test_gate_errors_are_their_formula(windows: int, seed: int, out_of_fold: bool) -> None:
    """Also where nothing was found, or where it is not known which forecast errs less."""
    x, y = draw(windows, 7, N, seed=seed), draw(windows, H, N, seed=seed + 1)
    x[0] *= 0.01  # a deviation below the floor
    batch = batch_of()._replace(x=x, y=y)
    size = windows * N
    gate = draw(size, 1, seed=seed + 2).clamp(0, 1)
    plain, joint = draw(size, H, seed=seed + 3), draw(size, H, seed=seed + 4)
    matched, known = draw(size, seed=seed + 5) > -1, draw(size, seed=seed + 6) > -1
    advantage = draw(size, 1, seed=seed + 7).masked_fill(~known[:, None], torch.nan)
    record = retrieval_of(gate, torch.zeros(size, 1), matched=matched)
    record = record._replace(plain=plain, joint=joint, advantage=advantage if out_of_fold else gate[:, :0])
    cost = 0.0
    for b in range(windows):
        for n in range(N):
            s, std = b * N + n, max(x[b, :, n].double().std(unbiased=False).item(), 0.1)
            errors = [
                ((made[s] - y[b, :, n]).double() ** 2).mean().item() / std**2 for made in (plain, joint)
            ]
            helps = advantage[s, 0].item() if out_of_fold else errors[0] - errors[1]
            if matched[s] and helps == helps:
                cost += std * abs(helps) * (gate[s, 0].item() if helps > 0 else 1 - gate[s, 0].item()) / size
    assert gate_errors(record, batch).item() == pytest.approx(cost, rel=1e-4, abs=1e-6)


def test_a_gate_without_two_forecasts_to_choose_from_has_no_loss() -> None:
    """Which of them errs less was made up where there is one."""
    config = Config().gram
    assert retrieval_losses(retrieval_of(torch.rand(S, 1), torch.rand(S, 1)), batch_of(), config) == {}


# All together.


def test_total_is_main_plus_warmup_times_the_weighted_terms() -> None:
    """Weights so small that the modules never learned, or applied twice."""
    weights = {
        "lambda_trend": 0.5,
        "lambda_dir": 0.31,
        "lambda_mag": 0.32,
        "lambda_hcl": 0.13,
        "lambda_ord": 0.14,
        "lambda_path": 0.15,
        "lambda_retrieval": 0.3,
        "aux_warmup_steps": 500,
        "gate_loss": "document",
    }
    batch, prediction = batch_of(), draw(B, H, N, seed=9).requires_grad_()
    state = state_of(prediction, trend_of(), retrieval_of(torch.rand(S, 1), torch.rand(S, 1)))
    loss = Objective(Config.from_flat(weights))(state, batch, step=100)
    t = {name: value.item() for name, value in loss.terms.items()}
    inner = 0.31 * t["direction"] + 0.32 * t["magnitude"] + 0.13 * t["consistency"] + 0.14 * t["ordinal"]
    inner += 0.15 * t["path"]
    auxiliary = 0.5 * inner + 0.3 * (t["gate_consistency"] + t["gate_entropy"])
    main = (prediction - batch.y).square().mean().item()
    assert loss.auxiliary.item() == pytest.approx(auxiliary, rel=1e-5)  # before the warm-up factor
    assert loss.warmup == pytest.approx(0.2)
    assert loss.main.item() == pytest.approx(main, rel=1e-6)
    assert loss.total.item() == pytest.approx(main + 0.2 * auxiliary, rel=1e-5)
    assert loss.total.requires_grad
    assert not any(v.requires_grad for v in (loss.main, loss.auxiliary, *loss.terms.values()))


def test_without_modules_the_loss_is_the_forecasts_alone() -> None:
    """The baseline's loss must not change in its last bit."""
    batch, prediction = batch_of(), draw(B, H, N, seed=9)
    loss = Objective(Config())(state_of(prediction, None), batch, step=7)
    assert torch.equal(loss.total, (prediction - batch.y).square().mean())
    assert loss.auxiliary.item() == 0
    assert loss.terms == {}

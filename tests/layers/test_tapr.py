"""TAPR: scales of any number at any length, ordered thresholds, labels that stay."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layers.decomposition import SeriesDecomposition
from layers.TAPR import TAPR, CoarseToFineHead, MultiScaleDecomposition
from utils.config import TAPRConfig
from utils.trend import CUT_QUANTILES, TrendLabel, trend_measure
from utils.types import InstanceStatistics, TrendRecord

D, D_LLM, P, H, L, SEASON = 8, 20, 9, 6, 40, 12


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def shake(module: torch.nn.Module, size: float = 0.5, seed: int = 7) -> None:
    """Weights far from their start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * size)


def tapr_of(*, trend_label: TrendLabel = "level", n_scales: int = 3, dropout: float = 0.0) -> TAPR:
    torch.manual_seed(0)
    return TAPR(
        TAPRConfig(use_tapr=True, n_scales=n_scales, trend_label=trend_label),
        d_model=D,
        d_llm=D_LLM,
        patch_count=P,
        horizon=H,
        season=SEASON,
        dropout=dropout,
    )


def statistics_of(lookback: Tensor, variables: int = 1) -> InstanceStatistics:
    """Mean and deviation [B, 1, N] of lookbacks [B * N, L]."""
    mean, variance = lookback.mean(1), lookback.var(1, unbiased=False)
    std = (variance + 1e-5).sqrt()
    return InstanceStatistics(*(v.reshape(-1, 1, variables) for v in (mean, std)))


def run(tapr: TAPR, lookback: Tensor, variables: int = 1) -> tuple[Tensor, Tensor, TrendRecord]:
    patches = draw(len(lookback), P, D, seed=5)
    return tapr(patches, lookback=lookback, statistics=statistics_of(lookback, variables))


# Multi-scale decomposition.


@given(n_scales=st.integers(1, 5), n_patches=st.integers(1, 70))
@settings(deadline=None, max_examples=20)
def test_any_number_of_scales_at_any_length(n_scales: int, n_patches: int) -> None:
    """A scale coarser than the sequence (256 patches wide at 3) has nothing left to pool."""
    module = MultiScaleDecomposition(d_model=D, n_scales=n_scales, dropout=0.0)
    shake(module)
    patches = draw(3, n_patches, D).requires_grad_()
    out = module(patches)
    assert out.multi_scale_out.shape == out.weighted_trend.shape == (3, n_patches, D)
    assert [t.shape for t in out.trend_features] == [(3, n_patches, D)] * n_scales
    assert module.kernel_sizes == [1, 4, 16, 64, 256][:n_scales]
    (out.multi_scale_out.square().sum() + out.weighted_trend.square().sum()).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert patches.grad is not None
    assert patches.grad.isfinite().all()


def plain_scale(module: MultiScaleDecomposition, patches: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """(seasonal, trend) of one scale, stretched back, by loops in float64."""
    sequence = patches.double()
    length, width = sequence.shape[1], min(4**scale, sequence.shape[1])
    pooled = torch.stack(
        [sequence[:, i : i + width].mean(dim=1) for i in range(0, length, width)], dim=1
    )  # the last one pools what is left
    weights = {n: p.detach().double() for n, p in module.scale_encoders[scale].named_parameters()}
    steps = pooled.shape[1]
    encoded = []
    for t in range(steps):
        around = [pooled[:, min(max(t + o, 0), steps - 1)] for o in (-1, 0, 1)]
        depth = sum(around[k] * weights["0.weight"][:, 0, k] for k in range(3)) + weights["0.bias"]
        active = 0.5 * depth * (1 + torch.erf(depth / math.sqrt(2)))
        encoded.append(active @ weights["2.weight"][:, :, 0].T + weights["2.bias"])
    season, trend = SeriesDecomposition(5)(torch.stack(encoded, dim=1))
    if steps == length:
        return season, trend

    def stretch(part: Tensor) -> Tensor:
        out = []
        for p in range(length):
            place = min(max((p + 0.5) * steps / length - 0.5, 0), steps - 1)
            low = int(place)
            high = min(low + 1, steps - 1)
            out.append(part[:, low] * (1 - (place - low)) + part[:, high] * (place - low))
        return torch.stack(out, dim=1)

    return stretch(season), stretch(trend)


def plain_attention(module: torch.nn.MultiheadAttention, query: Tensor, keys: Tensor) -> Tensor:
    """Multi-head attention with an explicit softmax, float64."""
    w = {n: p.detach().double() for n, p in module.named_parameters()}
    parts = zip(w["in_proj_weight"].chunk(3), w["in_proj_bias"].chunk(3), (query, keys, keys), strict=True)
    q, k, v = (x @ weight.T + bias for weight, bias, x in parts)
    width = D // module.num_heads
    heads = []
    for h in range(module.num_heads):
        part = slice(h * width, (h + 1) * width)
        score = torch.einsum("spe,sqe->spq", q[..., part], k[..., part]) / math.sqrt(width)
        heads.append(score.softmax(-1) @ v[..., part])
    return torch.cat(heads, dim=-1) @ w["out_proj.weight"].T + w["out_proj.bias"]


@pytest.mark.parametrize("n_patches", [1, 3, 18, 63])
def test_decomposition_is_its_formula_from_coarse_to_fine(n_patches: int) -> None:
    """The finer scale must query the coarser one, not the other way round."""
    module = MultiScaleDecomposition(d_model=D, n_scales=3, dropout=0.0)
    shake(module, 0.4)
    patches = draw(2, n_patches, D)
    seasons, trends = zip(*(plain_scale(module, patches, i) for i in range(3)), strict=True)
    weights = module.scale_weights.detach().double().softmax(0)
    fused = seasons[2] + trends[2]
    mixed = weights[2] * fused
    for scale in (1, 0):
        fine = seasons[scale] + trends[scale]
        attention = module.cross_scale_attn[scale]
        assert isinstance(attention, torch.nn.MultiheadAttention)
        fused = fine + plain_attention(attention, fine, fused)
        mixed = mixed + weights[scale] * fused
    projection = module.output_projection
    out = patches + mixed @ projection.weight.detach().double().T + projection.bias.detach().double()
    found = module(patches)
    torch.testing.assert_close(found.multi_scale_out.double(), out, rtol=0, atol=1e-4)
    weighted = sum(w * t for w, t in zip(weights, trends, strict=True))
    torch.testing.assert_close(found.weighted_trend.double(), weighted, rtol=0, atol=1e-4)


def test_untrained_decomposition_passes_patches_through() -> None:
    """It gained nothing in the prototype, so it starts where it cannot hurt."""
    patches = draw(3, 20, D)
    out = MultiScaleDecomposition(d_model=D, n_scales=3, dropout=0.3)(patches)
    assert torch.equal(out.multi_scale_out, patches)


def test_series_do_not_mix() -> None:
    """A forecast must not depend on its neighbours in the batch."""
    tapr = tapr_of()
    shake(tapr)
    lookback = draw(4, L)
    patches = draw(4, P, D, seed=5)
    whole = tapr(patches, lookback=lookback, statistics=statistics_of(lookback))
    for s in range(4):
        one = slice(s, s + 1)
        alone = tapr(patches[one], lookback=lookback[one], statistics=statistics_of(lookback[one]))
        torch.testing.assert_close(whole[0][one], alone[0])
        torch.testing.assert_close(whole[1][one], alone[1])
        torch.testing.assert_close(whole[2].path[one], alone[2].path)
        torch.testing.assert_close(whole[2].measure[one], alone[2].measure)


# The coarse-to-fine head.


def test_head_has_the_documented_sizes() -> None:
    """3 directions, 4 magnitudes, 4 thresholds, one path step per row of the horizon."""
    head = CoarseToFineHead(d_model=D, patch_count=P, horizon=H, dropout=0.0)
    out = head(draw(3, P, D), draw(3, P, D, seed=1))
    assert out.direction_logits.shape == (3, 3)
    assert out.magnitude_logits.shape == (3, 4)
    assert out.path.shape == (3, H)
    assert out.gate.shape == (3, 1)
    assert out.guidance.shape == (3, D)
    assert head.trend_embeddings.weight.shape == (4, D)
    assert head.trend_thresholds.shape == (4,)
    assert ((out.gate > 0) & (out.gate < 1)).all()


def test_magnitude_is_conditioned_on_the_direction() -> None:
    """Two heads side by side are no coarse-to-fine decision."""
    head = CoarseToFineHead(d_model=D, patch_count=P, horizon=H, dropout=0.0)
    patches, trend = draw(3, P, D), draw(3, P, D, seed=1)
    before = head(patches, trend)
    with torch.no_grad():
        head.direction_head.bias.add_(torch.tensor([3.0, 0.0, -3.0]))
    after = head(patches, trend)
    assert not torch.allclose(before.magnitude_logits, after.magnitude_logits, atol=1e-3)
    assert not torch.allclose(before.path, after.path, atol=1e-5)


def test_path_is_differentiable_through_all_levels() -> None:
    """An embedding looked up by argmax cuts the gradient to both classifiers."""
    head = CoarseToFineHead(d_model=D, patch_count=P, horizon=H, dropout=0.0)
    head(draw(3, P, D), draw(3, P, D, seed=1)).path.square().sum().backward()
    for part in (head.direction_head, head.magnitude_head, head.trend_embeddings, head.patch_summary):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


def test_thresholds_are_ordered_wherever_training_takes_them() -> None:
    """Cut points that cross give bins of negative probability."""
    head = CoarseToFineHead(d_model=D, patch_count=P, horizon=H, dropout=0.0)
    for seed in range(20):
        with torch.no_grad():
            head.trend_thresholds.copy_(draw(4, seed=seed) * 10)
        assert (head.thresholds().diff() >= 0).all()
    head.set_thresholds(torch.tensor([-0.5, -0.2, 0.1, 3.0]))
    assert (head.thresholds().diff() > 0).all()


@pytest.mark.parametrize(
    "cuts", [(-0.02, -0.005, 0.005, 0.02), (-1.0, -0.4, 0.4, 1.0), (-30.0, -1.0, 2.0, 80.0)]
)
def test_thresholds_are_set_where_asked(cuts: tuple[float, ...]) -> None:
    """The inverse of softplus overflows or loses the small gaps of the document's cuts."""
    head = CoarseToFineHead(d_model=D, patch_count=P, horizon=H, dropout=0.0)
    head.set_thresholds(torch.tensor(cuts))
    torch.testing.assert_close(head.thresholds(), torch.tensor(cuts), rtol=1e-5, atol=1e-6)


def test_equal_cuts_leave_finite_thresholds() -> None:
    """On a constant series all quantiles coincide and the logarithm of a gap is -inf."""
    tapr = tapr_of()
    tapr.calibrate(torch.zeros(100), place_thresholds=True)
    assert tapr.coarse_to_fine.trend_thresholds.isfinite().all()
    assert (tapr.coarse_to_fine.thresholds().diff() > 0).all()


# The whole module.


def test_calibration_fixes_cuts_and_starts_thresholds_there() -> None:
    """Thresholds start at the quantiles 1/4, 1/3, 2/3, 3/4; labels are cut at five."""
    tapr, measure = tapr_of(), draw(1000)
    tapr.calibrate(measure, place_thresholds=True)
    reference = np.quantile(measure.double().numpy(), CUT_QUANTILES)
    np.testing.assert_allclose(tapr.label_cuts.numpy(), reference, rtol=1e-5)
    np.testing.assert_allclose(
        tapr.coarse_to_fine.thresholds().detach().numpy(), reference[[0, 1, 3, 4]], rtol=1e-4
    )
    torch.testing.assert_close(tapr.magnitude_given_direction.sum(dim=1), torch.ones(3))


def test_calibration_can_leave_learned_thresholds_alone() -> None:
    """A run that goes on under loaded weights would lose what its thresholds have learned."""
    tapr, again = tapr_of(), tapr_of()
    tapr.calibrate(draw(1000), place_thresholds=True)
    learned = torch.tensor([-3.0, -0.1, 0.2, 4.0])
    tapr.coarse_to_fine.set_thresholds(learned)
    raw = tapr.coarse_to_fine.trend_thresholds.detach().clone()
    measure = draw(1000, seed=1) * 3 + 1
    tapr.calibrate(measure, place_thresholds=False)
    again.calibrate(measure, place_thresholds=True)
    assert torch.equal(tapr.coarse_to_fine.trend_thresholds, raw)
    assert not torch.equal(again.coarse_to_fine.trend_thresholds, raw)
    assert torch.equal(tapr.label_cuts, again.label_cuts)
    assert torch.equal(tapr.magnitude_given_direction, again.magnitude_given_direction)


def test_relative_labels_keep_the_documents_cuts() -> None:
    """`relative` exists for comparison with the document, so its cuts are not fitted."""
    tapr = tapr_of(trend_label="relative")
    tapr.calibrate(draw(1000), place_thresholds=True)
    assert tapr.label_cuts.tolist() == pytest.approx([-0.02, -0.005, 0.0, 0.005, 0.02])
    assert tapr.coarse_to_fine.thresholds().tolist() == pytest.approx([-0.02, -0.005, 0.005, 0.02])


def test_level_before_is_the_last_seasons_mean_and_a_floored_deviation() -> None:
    """Nearly constant windows divided by their deviation explode."""
    lookback = torch.cat([draw(2, L) * 3, torch.full((1, L), 2.0)])
    reference, scale = tapr_of().level_before(lookback)
    for s in range(3):
        values = lookback[s].double().tolist()
        mean = sum(values) / L
        std = math.sqrt(sum((v - mean) ** 2 for v in values) / L)
        assert reference[s].item() == pytest.approx(sum(values[-SEASON:]) / SEASON, abs=1e-5)
        assert scale[s].item() == pytest.approx(max(std, 0.1), abs=1e-5)


@pytest.mark.parametrize("variables", [1, 2, 3])
@pytest.mark.parametrize("kind", ["level", "relative"])
def test_record_holds_the_paths_trend_measured_as_the_labels(kind: TrendLabel, variables: int) -> None:
    """The ordinal loss reads the path in the units of the labels, whichever label that is."""
    tapr, lookback = tapr_of(trend_label=kind), draw(6, L) * 3 + 1
    lookback[0] = 2.0 + 0.01 * lookback[0]  # a floored deviation, far from the instance's
    lookback[1] += 50.0
    shake(tapr)
    _, token, record = run(tapr, lookback, variables)
    for s in range(6):
        x = lookback[s].double().tolist()
        mean = sum(x) / L
        variance = sum((v - mean) ** 2 for v in x) / L
        path = [v * math.sqrt(variance + 1e-5) + mean for v in record.path[s].tolist()]
        expected = (path[-1] - path[0]) / abs(path[0])
        if kind == "level":
            before = sum(x[-SEASON:]) / SEASON
            expected = (sum(path) / H - before) / max(math.sqrt(variance), 0.1)
        assert record.measure[s].item() == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert token.shape == (6, 1, D_LLM)


@pytest.mark.parametrize("kind", ["level", "relative"])
def test_a_path_that_is_the_future_has_the_futures_measure(kind: TrendLabel) -> None:
    """Else the ordinal loss pulls a perfect path away from the truth."""
    tapr, lookback, future = tapr_of(trend_label=kind), draw(4, L) * 3 + 1, draw(4, H, seed=2) * 3 + 1
    std, mean = (v.reshape(-1, 1) for v in reversed(statistics_of(lookback)))
    head = tapr.coarse_to_fine.regression_head
    head.register_forward_hook(lambda m, a, out: (future - mean) / std)
    _, _, record = run(tapr, lookback)
    expected = trend_measure(future, reference=record.reference, scale=record.scale, kind=kind)
    torch.testing.assert_close(record.measure, expected, rtol=1e-4, atol=1e-4)


def test_measure_is_differentiable_down_to_the_classifiers() -> None:
    """The ordinal loss trains the path; a detached measure moves the thresholds alone."""
    tapr, lookback = tapr_of(), draw(3, L)
    run(tapr, lookback)[2].measure.square().sum().backward()
    for part in (tapr.coarse_to_fine.direction_head, tapr.coarse_to_fine.regression_head):
        for parameter in part.parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().sum() > 0


def test_train_and_eval_agree_without_dropout() -> None:
    """The original fused its trend in training only."""
    tapr, lookback = tapr_of(), draw(3, L)
    shake(tapr)
    trained = run(tapr.train(), lookback)
    evaluated = run(tapr.eval(), lookback)
    for a, b in zip((*trained[:2], *trained[2]), (*evaluated[:2], *evaluated[2]), strict=True):
        torch.testing.assert_close(a, b)

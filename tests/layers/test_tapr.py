"""TAPR: scales of any number at any length, ordered thresholds, labels that stay."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layers.decomposition import SeriesDecomposition, pool, pool_places, read_at
from layers.TAPR import TAPR, CoarseToFineHead, MultiScaleDecomposition
from utils.config import TAPRConfig
from utils.training.objective import trend_losses
from utils.trend import CUT_QUANTILES, TrendLabel, trend_measure
from utils.types import InstanceStatistics, TrendRecord

D, D_LLM, P, H, L, SEASON = 8, 20, 9, 6, 40, 12
Mixing = Literal["apart", "together"]


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
    """(season, trend) of one scale at its own steps, by loops in float64."""
    sequence, width = patches.double(), width_of(module, patches.shape[1], scale)
    pooled = torch.stack(  # the last one pools what is left
        [sequence[:, i : i + width].mean(dim=1) for i in range(0, sequence.shape[1], width)], dim=1
    )
    weights = {n: p.detach().double() for n, p in module.scale_encoders[scale].named_parameters()}
    steps = pooled.shape[1]
    encoded = []
    for t in range(steps):
        around = [pooled[:, min(max(t + o, 0), steps - 1)] for o in (-1, 0, 1)]
        depth = sum(around[k] * weights["0.weight"][:, 0, k] for k in range(3)) + weights["0.bias"]
        encoded.append(gelu(depth) @ weights["2.weight"][:, :, 0].T + weights["2.bias"])
    season, trend = SeriesDecomposition(5)(torch.stack(encoded, dim=1))
    return season, trend


def width_of(module: MultiScaleDecomposition, length: int, scale: int) -> int:
    """Two pools at least, but in the original design's mixing."""
    return min(4**scale, length if module.mixing == "together" else math.ceil(length / 2))


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


def pools_of(length: int, width: int) -> list[range]:
    return [range(i, min(i + width, length)) for i in range(0, length, width)]


def plain_read(part: Tensor, length: int, width: int, places: list[float]) -> Tensor:
    """The line through the two nearest pool centres, place by place."""
    centres = [sum(pool) / len(pool) for pool in pools_of(length, width)]
    found = []
    for place in places:
        high = min(max(sum(c < place for c in centres), 1), len(centres) - 1)
        low = max(high - 1, 0)
        share = (place - centres[low]) / (centres[high] - centres[low]) if high > low else 0.0
        found.append(part[:, low] + share * (part[:, high] - part[:, low]))
    return torch.stack(found, dim=1)


def plain_stretch(part: Tensor, length: int) -> Tensor:
    """Linear interpolation that knows nothing of pools, as the original design has it."""
    steps, out = part.shape[1], []
    for p in range(length):
        place = min(max((p + 0.5) * steps / length - 0.5, 0), steps - 1)
        low = int(place)
        high = min(low + 1, steps - 1)
        out.append(part[:, low] * (1 - (place - low)) + part[:, high] * (place - low))
    return torch.stack(out, dim=1)


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


def plain_attending(module: MultiScaleDecomposition, scale: int, fine: Tensor, coarse: Tensor) -> Tensor:
    attention = module.cross_scale_attn[scale]
    assert isinstance(attention, torch.nn.MultiheadAttention)
    return plain_attention(attention, fine, coarse)


def plain_together(module: MultiScaleDecomposition, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The scales' weighted sum, and their trends, by the original design."""
    weights, length = module.scale_weights.detach().double().softmax(0), patches.shape[1]
    parts = [plain_scale(module, patches, i) for i in range(len(weights))]
    seasons, trends = zip(*([plain_stretch(part, length) for part in pair] for pair in parts), strict=True)
    fused = seasons[-1] + trends[-1]
    mixed = weights[-1] * fused
    for scale in range(len(weights) - 2, -1, -1):
        fine = seasons[scale] + trends[scale]
        fused = fine + plain_attending(module, scale, fine, fused)
        mixed = mixed + weights[scale] * fused
    return mixed, list(trends)


def plain_apart(module: MultiScaleDecomposition, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
    """The same, seasons from fine to coarse and trends from coarse to fine."""
    weights, length = module.scale_weights.detach().double().softmax(0), patches.shape[1]
    seasons, trends = (
        list(parts)
        for parts in zip(*(plain_scale(module, patches, i) for i in range(len(weights))), strict=True)
    )
    widths = [width_of(module, length, i) for i in range(len(weights))]
    for scale, mixing in enumerate(module.season_mixing):
        w = {n: p.detach().double() for n, p in mixing.named_parameters()}
        pools = pools_of(length, widths[scale + 1])
        places = [pool[0] - 0.5 + (q + 0.5) / 4 * len(pool) for pool in pools for q in range(4)]
        finer = plain_read(seasons[scale], length, widths[scale], places)
        taken = [
            sum(finer[:, 4 * k + q] * w["places.weight"][:, 0, q] for q in range(4)) + w["places.bias"]
            for k in range(len(pools))
        ]
        added = gelu(torch.stack(taken, dim=1)) @ w["width.weight"].T + w["width.bias"]
        seasons[scale + 1] = seasons[scale + 1] + added
    for scale in range(len(weights) - 2, -1, -1):
        trends[scale] = trends[scale] + plain_attending(module, scale, trends[scale], trends[scale + 1])
    every = [float(p) for p in range(length)]
    seasons, trends = (
        [plain_read(part, length, width, every) for part, width in zip(parts, widths, strict=True)]
        for parts in (seasons, trends)
    )
    return sum(w * (s + t) for w, s, t in zip(weights, seasons, trends, strict=True)), trends


@pytest.mark.parametrize("mixing", ["apart", "together"])
@pytest.mark.parametrize("n_patches", [1, 3, 18, 63])
def test_decomposition_is_its_formula(n_patches: int, mixing: Mixing) -> None:
    """Season and trend were added again before they were mixed: the split was undone."""
    module = MultiScaleDecomposition(d_model=D, n_scales=3, dropout=0.0, mixing=mixing)
    shake(module, 0.4)
    patches = draw(2, n_patches, D)
    mixed, trends = (plain_apart if mixing == "apart" else plain_together)(module, patches)
    projection = module.output_projection
    out = patches + mixed @ projection.weight.detach().double().T + projection.bias.detach().double()
    found = module(patches)
    torch.testing.assert_close(found.multi_scale_out.double(), out, rtol=1e-4, atol=1e-4)
    for one, wanted in zip(found.trend_features, trends, strict=True):
        torch.testing.assert_close(one.double(), wanted, rtol=1e-4, atol=1e-4)
    weights = module.scale_weights.detach().double().softmax(0)
    weighted = sum(w * t for w, t in zip(weights, trends, strict=True))
    torch.testing.assert_close(found.weighted_trend.double(), weighted, rtol=1e-4, atol=1e-4)


@given(n_patches=st.integers(1, 80), n_scales=st.integers(1, 5), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_a_ramp_comes_back_as_that_ramp_at_every_scale(n_patches: int, n_scales: int, seed: int) -> None:
    """Where 4^i does not divide P it came back up to 3.75 patches away, and flat at both ends."""
    module = MultiScaleDecomposition(d_model=D, n_scales=n_scales, dropout=0.0).double()
    module.scale_encoders = torch.nn.ModuleList(torch.nn.Identity() for _ in range(n_scales))
    for part in (*module.season_mixing, *module.cross_scale_attn):  # what scales give each other: nothing
        for parameter in part.parameters():
            torch.nn.init.zeros_(parameter)
    torch.nn.init.eye_(module.output_projection.weight)
    level, slope = draw(2, 2, 1, D, seed=seed).double()
    ramp = level + slope * torch.arange(n_patches)[:, None]
    torch.testing.assert_close(module(ramp).multi_scale_out, 2 * ramp, rtol=1e-5, atol=1e-5)
    for width in {min(kernel, math.ceil(n_patches / 2)) for kernel in module.kernel_sizes}:
        places = pool_places(n_patches, width, parts=4)
        finer = read_at(pool(ramp, width), pool_places(n_patches, width), places)
        expected = level + slope * places[:, None] if n_patches > 1 else ramp.expand(-1, 4, -1)
        torch.testing.assert_close(finer, expected.double(), rtol=1e-5, atol=1e-5)


def test_seasons_go_from_fine_to_coarse_and_trends_from_coarse_to_fine() -> None:
    """TimeMixer's section 3.2: the other way round, fine noise would bend the coarse trend."""
    module = MultiScaleDecomposition(d_model=D, n_scales=3, dropout=0.0)
    shake(module)
    given = [encoder[0].weight for encoder in module.scale_encoders]  # type: ignore[index]
    for scale, trend in enumerate(module(draw(2, 32, D)).trend_features):
        reached = torch.autograd.grad(trend.square().sum(), given, retain_graph=True, allow_unused=True)
        assert [one is not None for one in reached] == [other >= scale for other in range(3)]
    heard: list[tuple[Tensor, ...]] = []
    for mixing in module.season_mixing:
        mixing.register_forward_hook(lambda m, a, out: heard.append((*a, out)))
    module(draw(2, 32, D))
    for scale, (finer, added) in enumerate(heard):
        assert (finer.shape[1], added.shape[1]) == ((32, 8), (8, 2))[scale]
        reached = torch.autograd.grad(added.square().sum(), given, retain_graph=True, allow_unused=True)
        assert [one is not None for one in reached] == [other <= scale for other in range(3)]


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


def test_path_loss_is_the_error_in_normalised_units() -> None:
    """The level-3 path had no regression loss: nothing asked it to be the future."""
    tapr, lookback, future = tapr_of(), draw(4, L) * 3 + 1, draw(4, H, seed=2) * 3
    lookback[3] = 2.0 + 0.001 * lookback[3]  # nearly constant: in its own deviations it would outweigh all
    _, _, record = run(tapr, lookback)
    errors = []
    for s in range(4):
        x, y = lookback[s].double().numpy(), future[s].double().numpy()
        std = np.sqrt(x.var() + 1e-5)
        error = np.abs(record.path[s].detach().double().numpy() - (y - x.mean()) / std)
        errors.append(error.mean() * (std / max(x.std(), 0.1)))
    found = trend_losses(record, future, TAPRConfig())["path"]
    assert found.item() == pytest.approx(np.mean(errors), rel=1e-4)
    found.backward()
    assert all(p.grad is not None and p.grad.any() for p in tapr.coarse_to_fine.regression_head.parameters())


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
    assert trend_losses(record, future, TAPRConfig(trend_label=kind))["path"].item() < 1e-5


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

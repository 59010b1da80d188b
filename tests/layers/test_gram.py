"""GRA-M: what may be found, what is found, and what becomes of it."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import layers.retrieval.search as search
from data_provider.dataset import TrainingWindows
from data_provider.splits import Split
from layers.GRAM import (
    GRAM,
    AdaptiveKnowledgeGating,
    Neighbours,
    PatternEncoder,
    PatternValueDualRetriever,
    RetrievalAugmentedPrompt,
    within_bounds,
)
from layers.retrieval import compare as retrieval_compare
from layers.retrieval import keys as retrieval_keys
from layers.retrieval import memory as retrieval_memory
from layers.retrieval.keys import WindowKeys, raw_key, value_statistics
from layers.retrieval.search import Rows
from tests.pairwise import each_pair
from utils.config import LEARNED_TEMPERATURE, GRAMConfig

L, H, N, T = 20, 6, 2, 130
SPAN = L + H
BEGIN = 17
"""First row of the training part: positions in the series and in the part must not be confused."""
SERIES, OTHER = 11, 12
SEASON = 4
KEYS = ("raw", "learned", "hybrid")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


SERIES_VALUES = draw(T + 60, N).cumsum(dim=0) * 0.3
SOURCE = TrainingWindows(SERIES_VALUES, Split(BEGIN, T), seq_len=L, pred_len=H, series_id=SERIES)


def retriever_of(
    seed: int = 0, build: bool = True, season: int = SEASON, **settings: Any
) -> PatternValueDualRetriever:
    torch.manual_seed(seed)
    config = GRAMConfig(use_gram=True, **{"d_repr": 8, "memory_size": "all", **settings})
    retriever = PatternValueDualRetriever(config, seq_len=L, horizon=H, patch_len=8, season=season)
    if build:
        retriever.build(SOURCE, generator=torch.Generator().manual_seed(1))
    return retriever


def queries(series: int = SERIES) -> tuple[Tensor, Rows, Tensor]:
    """Lookbacks [S, L], where they come from, and futures [S, H]: inside the memory's part and after."""
    starts = [BEGIN, BEGIN + 1, 40, 57, T - SPAN - 1, T - SPAN, T - L, T - 1, T + 10, T + 60 - SPAN]
    places = [(v, s) for s in starts for v in range(N)]
    x = torch.stack([SERIES_VALUES[s : s + L, v] for v, s in places])
    y = torch.stack([SERIES_VALUES[s + L : s + SPAN, v] for v, s in places])
    variable = torch.tensor([v for v, _ in places])
    start = torch.tensor([s for _, s in places])
    return x, Rows(torch.full_like(start, series), variable, start), y


def share_rows(a: int, b: int) -> bool:
    """Whether two windows (lookback and future) that begin at rows a and b have a row in common."""
    return bool(set(range(a, a + SPAN)) & set(range(b, b + SPAN)))


def may_see(
    memory: PatternValueDualRetriever, query: Rows, s: int, *, any_variable: bool = False
) -> list[int]:
    """Memory rows that query ``s`` may see, by a loop over rows."""
    allowed = []
    for m in range(len(memory.memory_start)):
        same_series = memory.memory_series[m].item() == query.series_id[s].item()
        if same_series and share_rows(int(query.start[s]), int(memory.memory_start[m])):
            continue
        if not any_variable and memory.memory_variable[m].item() != query.variable[s].item():
            continue
        allowed.append(m)
    return allowed


def plain_distances(memory: PatternValueDualRetriever, lookback: Tensor) -> Tensor:
    """Distances [S, M] in float64 from lookbacks that are read again, part by part."""
    rows = SOURCE.lookbacks(
        series_id=memory.memory_series, variable=memory.memory_variable, start=memory.memory_start
    ).double()
    queried = lookback.double()
    kind = memory.keys.kind
    parts: list[tuple[Tensor, Tensor]] = []
    if kind != "learned":
        latest = slice(-min(7 * memory.season, L), None)
        parts.append(((queried - queried[:, -1:])[:, latest], (rows - rows[:, -1:])[:, latest]))
    if kind != "raw":
        encoder = copy.deepcopy(memory.keys.pattern_encoder).double().eval()
        values = copy.deepcopy(memory.keys.value_encoder).double()

        def normal(x: Tensor) -> Tensor:
            return (x - x.mean(1, keepdim=True)) / x.std(1, unbiased=False, keepdim=True).clamp(min=0.1)

        with torch.no_grad():
            parts.append((encoder(normal(queried)), encoder(normal(rows))))
            parts.append((values(value_statistics(queried)), values(value_statistics(rows))))
    scaled = []
    for q, m in parts:
        among = ((m[:, None] - m[None]) ** 2).sum(-1).mean()
        scaled.append(((q[:, None] - m[None]) ** 2).sum(-1) / among)
    if kind == "raw":
        return scaled[0]
    shape = torch.sigmoid(memory.keys.shape_weight.detach().double())
    *shapes, value = scaled
    return shape * sum(shapes) / len(shapes) + (1 - shape) * value


def found_rows(found: Neighbours, s: int) -> list[int]:
    return [r for r in found.rows[s].tolist() if r >= 0]


# What may be found.


@each_pair(
    scope=["variable", "all"], control=["none", "random", "same_phase", "oracle"], series=[SERIES, OTHER]
)
def test_everything_admissible_and_nothing_else_is_found(scope: str, control: str, series: int) -> None:
    """A training window that finds itself, or one overlapping it, learns to copy what no test offers."""
    retriever = retriever_of(
        retrieval_scope=scope, retrieval_control=control, top_k=N * T, retrieval_key="raw"
    )
    lookback, query, future = queries(series)
    found = retriever(lookback, query, target=future)
    for s in range(len(lookback)):
        allowed = may_see(retriever, query, s, any_variable=scope == "all")
        if control == "same_phase":
            starts = retriever.memory_start.tolist()
            allowed = [m for m in allowed if (starts[m] - int(query.start[s])) % SEASON == 0]
        assert sorted(found_rows(found, s)) == allowed
    if series == OTHER and scope == "all" and control == "none":
        assert (found.rows >= 0).sum() == len(lookback) * SOURCE.num_rows  # nothing masked at all


def test_border_of_the_mask_is_exactly_lookback_plus_horizon() -> None:
    """One row too few leaks the last future value; one too many wastes memory."""
    retriever = retriever_of(top_k=N * T, retrieval_key="raw")
    lookback, query, _ = queries()
    found = retriever(lookback, query)
    gaps = set()
    for s in range(len(lookback)):
        starts = retriever.memory_start[torch.tensor(found_rows(found, s), dtype=torch.int64)]
        gaps |= set((starts - query.start[s]).abs().tolist())
    assert min(gaps) == SPAN
    everything = {abs(int(a) - int(b)) for a in query.start for b in retriever.memory_start}
    assert {SPAN - 1, SPAN} <= everything  # so the border was tried


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("training", [True, False])
def test_identical_window_of_another_series_is_at_distance_zero(key: str, training: bool) -> None:
    """A key from another mode, or a stale one, is worse than random: the same window was never found."""
    retriever = retriever_of(retrieval_key=key).train(training)
    rows = SOURCE.rows(torch.arange(0, SOURCE.num_rows, 7))
    found = retriever(rows.lookback, Rows(torch.full_like(rows.start, OTHER), rows.variable, rows.start))
    assert (found.distance[:, 0] < 1e-6).all()
    assert torch.equal(retriever.memory_start[found.rows[:, 0]], rows.start)
    assert torch.equal(retriever.memory_variable[found.rows[:, 0]], rows.variable)
    torch.testing.assert_close(found.values[:, 0], rows.future - rows.lookback[:, -1:])


# What is found.


@each_pair(key=KEYS, series=[SERIES, OTHER], season=[SEASON, 2])  # 7 seasons longer, and shorter, than L
def test_neighbours_weights_and_distances_equal_brute_force(key: str, series: int, season: int) -> None:
    """The search leaves out the query's norm and works by matrix products: the order must not change."""
    retriever = retriever_of(retrieval_key=key, top_k=4, season=season)
    lookback, query, _ = queries(series)
    found = retriever(lookback, query)
    reference = plain_distances(retriever, lookback)
    for s in range(len(lookback)):
        allowed = may_see(retriever, query, s)
        best = sorted(allowed, key=lambda m: reference[s, m].item())[:4]
        assert found.rows[s].tolist() == best
        distance = reference[s, best]
        torch.testing.assert_close(found.distance[s].double(), distance, rtol=1e-3, atol=1e-5)
        weight = torch.exp(-(distance - distance.min()) / retriever.config.softmax_temperature)
        torch.testing.assert_close(found.weights[s].double(), weight / weight.sum(), rtol=5e-3, atol=1e-3)
        for j, m in enumerate(best):
            v, start = int(retriever.memory_variable[m]), int(retriever.memory_start[m])
            value = SERIES_VALUES[start + L : start + SPAN, v] - SERIES_VALUES[start + L - 1, v]
            torch.testing.assert_close(found.values[s, j], value)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("block", [1, 3, 50])
def test_search_in_blocks_equals_search_at_once(
    key: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A memory larger than one block lost neighbours, or counted their rows from the block's start."""
    retriever = retriever_of(retrieval_key=key, top_k=7)
    lookback, query, _ = queries()
    whole = retriever(lookback, query)
    monkeypatch.setattr(search, "SEARCH_BLOCK", block)
    parts = retriever(lookback, query)
    assert torch.equal(whole.rows, parts.rows)
    torch.testing.assert_close(whole.distance, parts.distance)


@pytest.mark.parametrize("block", [50, 32768])
def test_search_is_exact_where_keys_differ_little(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings that share most of their length: |k|^2 - 2 q k is rounding noise in float32."""
    monkeypatch.setattr(search, "SEARCH_BLOCK", block)
    retriever = retriever_of(retrieval_key="learned", top_k=4)
    with torch.no_grad():
        retriever.keys.pattern_encoder.output_norm.weight.mul_(1e-3)
        retriever.keys.pattern_encoder.output_norm.bias.add_(draw(8))
        retriever.keys.value_encoder.weight.mul_(1e-3)
    retriever.refresh(SOURCE)
    lookback, query, _ = queries()
    with torch.no_grad():
        keys = retriever.keys(lookback).double()
    weights = retriever.keys.column_weights(retriever.distance_scale).detach().double()
    reference = ((keys[:, None] - retriever.memory_keys.double()) ** 2 * weights).sum(-1)
    found = retriever(lookback, query)
    for s in range(len(lookback)):
        allowed = may_see(retriever, query, s)
        nearest = sorted(reference[s, m].item() for m in allowed)[:4]
        assert reference[s, found.rows[s]].tolist() == pytest.approx(nearest, rel=1e-3)


def test_keys_are_their_formulas() -> None:
    """phi = (x[-w:] - x_last) / sqrt(w), w seven seasons, not divided by the window's deviation."""
    x = draw(3, 200) * 4
    for width in (168, 20, 1):
        latest = x[:, -width:].double()
        expected = (latest - latest[:, -1:]) / math.sqrt(width)
        torch.testing.assert_close(raw_key(x, width).double(), expected, rtol=0, atol=1e-6)
    statistics = value_statistics(x).double()
    for row, found in zip(x.double(), statistics, strict=True):
        v = row.tolist()
        mean = sum(v) / 200
        std = math.sqrt(sum((a - mean) ** 2 for a in v) / 200)
        slope = sum(v[100:]) / 100 - sum(v[:100]) / 100
        assert found.tolist() == pytest.approx([mean, std, min(v), max(v), v[-1], slope], abs=1e-5)
    assert value_statistics(draw(2, 1)).isfinite().all()


@pytest.mark.parametrize(
    ("season", "seq_len", "width"), [(24, 200, 168), (24, 96, 96), (4, 29, 28), (4, 28, 28)]
)
@pytest.mark.parametrize("key", ["raw", "hybrid"])
def test_raw_part_spans_seven_seasons_or_the_lookback(
    key: Any, season: int, seq_len: int, width: int
) -> None:
    """168 rows are a week of hours, and under two days of quarters of an hour."""
    config = GRAMConfig(retrieval_key=key, d_repr=8)
    keys = WindowKeys(config, seq_len=seq_len, patch_len=8, season=season)
    assert keys.widths[0] == width
    x = draw(3, seq_len)
    torch.testing.assert_close(keys(x)[:, :width], (x[:, -width:] - x[:, -1:]) / math.sqrt(width))
    assert keys(x).shape == (3, sum(keys.widths))


@pytest.mark.parametrize("key", KEYS)
def test_parts_are_divided_by_their_mean_distance_in_the_memory(key: Any) -> None:
    """Undivided, the part with the largest units decides alone."""
    keys = WindowKeys(GRAMConfig(retrieval_key=key, d_repr=8), seq_len=L, patch_len=8, season=SEASON)
    with torch.no_grad():
        values = keys(draw(30, L) * 5)
    found = keys.mean_distances(values)
    for part, scale in zip(values.double().split(keys.widths, dim=1), found, strict=True):
        pairs = [((a - b) ** 2).sum().item() for a in part for b in part]
        assert scale.item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-5)
    weights = keys.column_weights(found).detach().split(keys.widths)
    mix = [(w * scale).unique().tolist() for w, scale in zip(weights, found, strict=True)]
    s = 1 / (1 + math.exp(-1.4))
    expected = {"raw": [1.0], "learned": [s, 1 - s], "hybrid": [s / 2, s / 2, 1 - s]}[key]
    assert [m[0] for m in mix] == pytest.approx(expected, abs=1e-5)
    assert all(max(m) - min(m) < 1e-6 for m in mix)


def test_shape_key_ignores_level_and_size_of_a_window() -> None:
    """The encoder sees normalised windows; level and size are the statistics' part."""
    keys = WindowKeys(GRAMConfig(retrieval_key="learned", d_repr=8), seq_len=L, patch_len=8, season=SEASON)
    x = draw(3, L)
    first, second = keys(x), keys(5 * x + 3)
    torch.testing.assert_close(first[:, :8], second[:, :8], rtol=0, atol=1e-4)
    assert (first[:, 8:] - second[:, 8:]).abs().max() > 0.1


@pytest.mark.parametrize(("seq_len", "patch_len"), [(20, 8), (20, 20), (21, 4), (6, 16), (1, 16)])
def test_pattern_encoder_takes_any_length(seq_len: int, patch_len: int) -> None:
    """A lookback that no patch length divides, or one shorter than a patch."""
    encoder = PatternEncoder(seq_len=seq_len, patch_len=patch_len, d_repr=8)
    assert encoder(draw(3, seq_len)).shape == (3, 8)


@pytest.mark.parametrize("key", ["learned", "hybrid"])
def test_gradient_reaches_the_key_through_the_weights(key: str) -> None:
    """The search has no gradient; without one through the distances the encoders never learn."""
    retriever = retriever_of(retrieval_key=key)
    lookback, query, future = queries()
    found = retriever(lookback, query)
    forecast = (found.weights[..., None] * found.values).sum(1)
    (forecast - (future - lookback[:, -1:])).square().mean().backward()
    for name, parameter in retriever.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


# Fewer than k, and none.


def few(rows: int, **settings: Any) -> PatternValueDualRetriever:
    """A memory of the first variable's first ``rows`` rows only."""
    retriever = retriever_of(**settings)
    for name in ("memory_keys", "memory_values", "memory_series", "memory_variable", "memory_start"):
        setattr(retriever, name, getattr(retriever, name)[:rows])
    return retriever


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("control", ["none", "random", "same_phase"])
def test_missing_neighbours_have_no_weight(key: str, control: str) -> None:
    """Few-shot memories hold fewer admissible rows than k; padding must not be averaged in."""
    retriever = few(3, retrieval_key=key, top_k=5, retrieval_control=control)
    lookback, query, _ = queries(OTHER)
    found = retriever(lookback, query)
    missing = found.rows < 0
    assert missing.any()
    assert (~missing).any()
    assert (found.weights[missing] == 0).all()
    assert (found.values[missing] == 0).all()
    assert torch.isinf(found.distance[missing]).all()
    torch.testing.assert_close(found.weights.sum(1), (~missing).any(1).float())
    assert (missing.long().diff(dim=1) >= 0).all()  # the missing ones come last
    for s in range(len(lookback)):
        allowed = may_see(retriever, query, s)
        if control == "none":
            assert sorted(found_rows(found, s)) == allowed


def gram_of(**settings: Any) -> GRAM:
    torch.manual_seed(0)
    config = GRAMConfig(use_gram=True, **{"d_repr": 8, "memory_size": "all", **settings})
    gram = GRAM(config, seq_len=L, horizon=H, patch_len=8, season=SEASON, d_model=8, d_llm=24, dropout=0.0)
    gram.retriever.build(SOURCE, generator=torch.Generator().manual_seed(1))
    return gram


def run(gram: GRAM, lookback: Tensor, query: Rows, patches: Tensor, target: Tensor | None = None) -> Any:
    normalised = (lookback - lookback.mean(1, keepdim=True)) / lookback.std(1, keepdim=True, unbiased=False)
    return gram(patches, lookback=lookback, normalised=normalised, query=query, target=target)


@each_pair(fusion=["feature", "prediction", "both"], key=KEYS, rows=[0, 2])
def test_no_match_passes_patches_and_has_finite_gradients(fusion: str, key: str, rows: int) -> None:
    """Attention over an all-masked row is NaN, forward or backward; with some rows matched and some not."""
    gram = gram_of(retrieval_fusion=fusion, retrieval_key=key)
    retriever = gram.retriever
    for name in ("memory_keys", "memory_values", "memory_series", "memory_variable", "memory_start"):
        setattr(retriever, name, getattr(retriever, name)[:2])
    lookback, query, _ = queries(SERIES)
    kept = torch.tensor([0, 1, 2, 3] if rows == 0 else [0, 1, 4, 8, 12])
    lookback, query = lookback[kept], Rows(*(c[kept] for c in query))
    patches = draw(len(kept), 5, 8).requires_grad_()
    out, tokens, retrieved, record = run(gram, lookback, query, patches)
    expected = [bool(may_see(retriever, query, s)) for s in range(len(kept))]
    assert record.matched.tolist() == expected
    assert any(expected) == (rows > 0)
    none = ~record.matched
    assert torch.equal(out[none], patches[none])
    assert (record.gate[none] == 1).all()
    assert (record.confidence[none] == 0).all()
    torch.testing.assert_close(
        tokens[none, 0], gram.prompt.context_to_llm(gram.gating.no_match).expand(int(none.sum()), -1)
    )
    torch.testing.assert_close(tokens[none, 1], gram.prompt.confidence_embed.bias.expand(int(none.sum()), -1))
    last = (lookback[:, -1] - lookback.mean(1)) / lookback.std(1, unbiased=False)
    torch.testing.assert_close(retrieved[none], last[none, None].expand(-1, H))
    outputs = (out, tokens, retrieved, record.gate, record.confidence)
    sum((o.square().sum() for o in outputs), start=torch.zeros(())).backward()
    for name, parameter in gram.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert patches.grad is not None
    assert patches.grad.isfinite().all()


def test_empty_memory_is_an_error() -> None:
    """A silently empty memory is a model that retrieves nothing, trained for hours."""
    lookback, query, _ = queries()
    with pytest.raises(RuntimeError, match="memory is empty"):
        retriever_of(build=False)(lookback, query)


# Controls.


@each_pair(key=["learned", "hybrid"], control=["random", "same_phase", "oracle"], rows=[6, N * T])
def test_controls_weigh_what_they_found_equally(key: str, control: str, rows: int) -> None:
    """Weighed by distance, a control is half a retrieval; cut from the graph, it stops DDP."""
    retriever = few(rows, retrieval_key=key, retrieval_control=control, top_k=5)
    lookback, query, future = queries(OTHER)
    found = retriever(lookback, query, target=future)
    present = found.rows >= 0
    assert present.all() == (rows > 6)
    counts = present.sum(1, keepdim=True)
    expected = torch.where(present, 1 / counts.clamp(min=1), 0.0)
    torch.testing.assert_close(found.weights, expected)
    far = found.distance[present].max() - found.distance[present].min()
    assert far > LEARNED_TEMPERATURE  # weighing by distance would have shown
    (found.weights[..., None] * found.values).square().sum().backward()
    for name, parameter in retriever.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_random_control_is_repeatable_spread_and_different_per_query() -> None:
    """The control must not touch the random state, nor give all windows the same rows."""
    retriever = retriever_of(retrieval_control="random", retrieval_key="raw", top_k=5)
    x = SERIES_VALUES.unfold(0, L, 1)[:100].reshape(-1, L)
    start = torch.arange(100).repeat_interleave(N)
    query = Rows(torch.full_like(start, OTHER), torch.arange(N).repeat(100), start)
    before = torch.get_rng_state()
    first = retriever(x, query).rows
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, retriever(x, query).rows)
    alone = torch.cat([retriever(x[s : s + 1], Rows(*(c[s : s + 1] for c in query))).rows for s in range(9)])
    assert torch.equal(alone, first[:9])
    sets = {tuple(sorted(r)) for r in first.tolist()}
    assert len(sets) > 0.95 * len(first)
    counts = torch.bincount(first.flatten(), minlength=SOURCE.num_rows).float()
    assert (counts > 0).float().mean() > 0.9  # 1000 draws of 210 rows: 99% were drawn if even
    assert counts.max() < 5 * counts.mean()
    place = retriever.memory_start[first].float()
    assert abs((place.mean() - retriever.memory_start.float().mean()).item()) < 3


def test_oracle_finds_the_nearest_futures_and_needs_the_target() -> None:
    """An upper bound that is not one says retrieval cannot help."""
    retriever = retriever_of(retrieval_control="oracle", top_k=3)
    lookback, query, future = queries()
    found = retriever(lookback, query, target=future)
    wanted = (future - lookback[:, -1:]).double()
    for s in range(len(lookback)):
        allowed = may_see(retriever, query, s)
        error = {m: ((retriever.memory_values[m].double() - wanted[s]) ** 2).sum().item() for m in allowed}
        assert found.rows[s].tolist() == sorted(allowed, key=error.__getitem__)[:3]
    with pytest.raises(ValueError, match="oracle needs the target"):
        retriever(lookback, query)


def test_target_is_read_by_the_oracle_alone() -> None:
    """The trainer passes the target always: any other use of it is a leak."""
    for control in ("none", "random", "same_phase"):
        retriever = retriever_of(retrieval_control=control)
        lookback, query, future = queries()
        for a, b in zip(
            retriever(lookback, query), retriever(lookback, query, target=future + 100), strict=True
        ):
            assert torch.equal(a, b)


# The memory itself.


@pytest.mark.parametrize("key", KEYS)
def test_memory_of_another_series_is_not_refreshed(key: str) -> None:
    """Keys of one series beside futures of another: every neighbour would be wrong, without a word."""
    retriever = retriever_of(retrieval_key=key)
    before = retriever.memory_keys.clone()
    other = TrainingWindows(SERIES_VALUES.flip(0), Split(BEGIN, T), seq_len=L, pred_len=H, series_id=OTHER)
    with pytest.raises(ValueError, match="built from another series; --build_memory"):
        retriever.refresh(other)
    assert torch.equal(retriever.memory_keys, before)
    retriever.memory_series[-1] = OTHER  # one row is enough
    with pytest.raises(ValueError, match="built from another series"):
        retriever.refresh(SOURCE)
    retriever.build(other, generator=torch.Generator().manual_seed(1))
    retriever.refresh(other)
    assert (retriever.memory_series == OTHER).all()


@each_pair(scope=["variable", "all"], size=[1, 2, 3, 8, "all"], windows=[1, SPAN, SPAN + 1, 2 * SPAN, 80])
def test_unmatched_share_equals_brute_force(scope: str, size: int | str, windows: int) -> None:
    """The warning about few-shot memories must count what the search would not find."""
    source = TrainingWindows(
        SERIES_VALUES, Split(BEGIN, BEGIN + SPAN - 1 + windows), seq_len=L, pred_len=H, series_id=SERIES
    )
    assert source.num_windows == windows
    retriever = retriever_of(build=False, retrieval_key="raw", retrieval_scope=scope, memory_size=size)
    retriever.build(source, generator=torch.Generator().manual_seed(1))
    rows = source.rows(torch.arange(source.num_rows))
    query = Rows(rows.series_id, rows.variable, rows.start)
    alone = [not may_see(retriever, query, s, any_variable=scope == "all") for s in range(source.num_rows)]
    assert retriever.unmatched_share(source) == pytest.approx(sum(alone) / source.num_rows)
    found = retriever(rows.lookback, query).rows
    assert (found < 0).all(1).tolist() == alone


@pytest.mark.parametrize("size", [1, 37, "all", 10000])
def test_memory_holds_distinct_rows_of_the_training_part(size: int | str) -> None:
    """Both limits count rows; a row that is there twice takes two of the k places."""
    retriever = retriever_of(memory_size=size)
    wanted = SOURCE.num_rows if size == "all" else min(int(size), SOURCE.num_rows)
    places = list(zip(retriever.memory_variable.tolist(), retriever.memory_start.tolist(), strict=True))
    assert len(places) == len(set(places)) == wanted
    assert all(BEGIN <= start <= T - SPAN for _, start in places)
    assert (retriever.memory_series == SERIES).all()
    for (v, start), value in zip(places, retriever.memory_values, strict=True):
        expected = SERIES_VALUES[start + L : start + SPAN, v] - SERIES_VALUES[start + L - 1, v]
        assert torch.equal(value, expected)


def test_memory_is_a_random_spread_that_the_seed_alone_decides() -> None:
    """The first rows only, or a stride that shares a factor with the season, ruined retrieval."""
    torch.manual_seed(5)
    first = retriever_of(memory_size=60)
    torch.rand(10)
    second = retriever_of(memory_size=30)
    second.config = first.config
    second.build(SOURCE, generator=torch.Generator().manual_seed(1))  # in place of a smaller one
    for a, b in zip(first.state_dict().items(), second.state_dict().items(), strict=True):
        assert a[0] == b[0]
        assert torch.equal(a[1], b[1]), a[0]
    assert set((first.memory_start % SEASON).tolist()) == set(range(SEASON))
    assert set(first.memory_variable.tolist()) == set(range(N))
    assert first.memory_start.max() - first.memory_start.min() > 0.8 * SOURCE.num_windows
    second.build(SOURCE, generator=torch.Generator().manual_seed(2))
    assert not torch.equal(first.memory_start, second.memory_start)


@pytest.mark.parametrize("key", KEYS)
def test_refresh_is_idempotent_and_follows_the_encoders(key: str) -> None:
    """Stale keys are worse than random; keys that change by themselves make runs differ."""
    retriever = retriever_of(retrieval_key=key)
    before = {name: value.clone() for name, value in retriever.named_buffers()}
    retriever.refresh(SOURCE)
    for name, value in retriever.named_buffers():
        assert torch.equal(value, before[name]), name
    with torch.no_grad():
        for parameter in retriever.parameters():
            parameter.add_(0.1 * draw(*parameter.shape))
    for name, value in retriever.named_buffers():
        assert torch.equal(value, before[name]), name  # not before it is asked to
    retriever.refresh(SOURCE)
    changed = {name for name, value in retriever.named_buffers() if not torch.equal(value, before[name])}
    assert changed == (set() if key == "raw" else {"memory_keys", "distance_scale", "key_centre"})


@each_pair(key=["learned", "hybrid"], scope=["variable", "all"], windows=[5, 512])
def test_learned_keys_are_held_against_raw_ones(
    key: str, scope: str, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training can make a key worse, which no score of the forecast shows."""
    monkeypatch.setattr(retrieval_compare, "WINDOWS_ASKED", windows)
    monkeypatch.setattr(retrieval_compare, "ROWS_READ", 37)
    retriever, raw = (
        retriever_of(retrieval_key=kind, top_k=4, retrieval_scope=scope, memory_size=90)
        for kind in (key, "raw")
    )
    count = min(windows, SOURCE.num_rows)
    asked = SOURCE.rows(torch.tensor([i * SOURCE.num_rows // count for i in range(count)]))
    by_key = [r(asked.lookback, Rows(asked.series_id, asked.variable, asked.start)) for r in (retriever, raw)]
    errors, common, present = [], 0, 0
    for found in by_key:
        wrong = [
            (asked.lookback[s, -1] + found.weights[s].detach() @ found.values[s] - asked.future[s])
            .square()
            .mean()
            for s in range(count)
            if found_rows(found, s)
        ]
        errors.append(torch.stack(wrong).mean().item())
    for s in range(count):
        own, other = (set(found_rows(found, s)) for found in by_key)
        common, present = common + len(own & other), present + len(own)
    compared = retriever.compared_with_raw(SOURCE)
    assert compared == pytest.approx((*errors, common / present), rel=1e-4)
    assert 0 < compared.common < 1 and compared.learned != compared.raw


def test_keys_carry_no_gradient_after_refresh() -> None:
    """A graph through the whole memory is kept until the memory runs out."""
    retriever = retriever_of()
    assert not any(buffer.requires_grad for buffer in retriever.buffers())


@pytest.mark.parametrize(("saved", "own"), [(40, None), (40, 10), (10, 40), (None, 10)])
def test_memory_of_any_size_loads(saved: int | None, own: int | None) -> None:
    """A checkpoint's memory has as many rows as its training had: never those of a fresh model."""
    source = retriever_of(seed=3, memory_size=saved) if saved else retriever_of(seed=3, build=False)
    target = retriever_of(memory_size=own) if own else retriever_of(build=False)
    state = source.state_dict()
    target.load_state_dict(state)
    for name, value in target.state_dict().items():
        assert torch.equal(value, state[name]), name
    if saved:
        lookback, query, _ = queries()
        for a, b in zip(source(lookback, query), target(lookback, query), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("layout", ["other width", "copied to the model's width", "both"])
def test_values_of_an_old_layout_load(layout: str) -> None:
    """Old memories failed with "mat1 and mat2 shapes cannot be multiplied (Nx1 and 64x64)"."""
    source, target = retriever_of(memory_size=30), retriever_of(build=False)
    state = source.state_dict()
    values = state["memory_values"].clone()
    if layout != "copied to the model's width":
        # A straight line survives linear resampling exactly.
        values = torch.linspace(0, 1, 9)[None] * torch.arange(30)[:, None]
    state["memory_values"] = values if layout == "other width" else values[..., None].expand(-1, -1, 5)
    kept = state["memory_values"]
    target.load_state_dict(state)
    assert state["memory_values"] is kept  # the caller's own is left as it was
    assert target.memory_values.shape == (30, H)
    expected = (
        torch.linspace(0, 1, H)[None] * torch.arange(30)[:, None]
        if layout != "copied to the model's width"
        else source.memory_values
    )
    torch.testing.assert_close(target.memory_values, expected)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 4, 7)])
@pytest.mark.parametrize("width", [1, 2, 7, 20])
def test_resize_last_dim_resamples_linearly(shape: tuple[int, ...], width: int) -> None:
    """It keeps the dimensions in front and the type, whatever the number of them."""
    tensor = draw(*shape)
    found = PatternValueDualRetriever._resize_last_dim(tensor, width)
    assert found.shape == (*shape[:-1], width)
    for out, row in zip(found.reshape(-1, width).tolist(), tensor.reshape(-1, 7).tolist(), strict=True):
        for i, value in enumerate(out):
            place = i * 6 / (width - 1) if width > 1 else 0.0
            low = min(int(place), 5)
            assert value == pytest.approx(row[low] + (row[low + 1] - row[low]) * (place - low), abs=1e-5)
    assert PatternValueDualRetriever._resize_last_dim(tensor.half(), width).dtype == torch.float16


def test_resize_last_dim_leaves_what_fits() -> None:
    """Resampling to the same width must not round."""
    tensor = draw(3, 7)
    assert PatternValueDualRetriever._resize_last_dim(tensor, 7) is tensor


# What becomes of it.


def test_values_are_divided_by_the_querys_floored_deviation() -> None:
    """v = y - x_last in units of the query's window, not of the neighbour's."""
    gram = gram_of(top_k=3)
    lookback, query, _ = queries()
    lookback = lookback.clone()
    lookback[0] = lookback[0, -1] + 1e-3 * draw(L)  # nearly constant
    _, _, retrieved, record = run(gram, lookback, query, draw(len(lookback), 5, 8))
    x = lookback.double()
    std = x.std(1, unbiased=False)
    last = (x[:, -1] - x.mean(1)) / std
    values = gram.retriever.memory_values[record.rows].double()
    mean = (record.weights.double()[..., None] * values).sum(1)
    expected = last[:, None] + mean / std.clamp(min=0.1)[:, None]
    torch.testing.assert_close(retrieved.double(), expected, rtol=1e-3, atol=1e-3)


def plain_gate(gating: AdaptiveKnowledgeGating, patches: Tensor, retrieved: Tensor, weights: Tensor) -> Any:
    """What the gating gives by its steps, neighbour by neighbour, float64."""
    gating = copy.deepcopy(gating).double()
    patches, retrieved, weights = patches.double(), retrieved.double(), weights.double()
    current = gating.current_encoder(torch.cat([patches.mean(1), patches[:, -1]], -1))
    history = gating.retrieved_encoder(retrieved)
    confidence, context = torch.zeros(len(patches), 1).double(), torch.zeros_like(current)
    for j in range(retrieved.shape[1]):
        pair = torch.cat([current, history[:, j], current * history[:, j]], -1)
        confidence += weights[:, j : j + 1] * torch.sigmoid(gating.match_scorer(pair))
        context += weights[:, j : j + 1] * history[:, j]
    opinion = gating.gate_network(torch.cat([current, context, confidence], -1))
    attended, _ = gating.cross_attention(patches, history, history)
    if gating.document_gate:
        gate = torch.sigmoid(opinion)
        return patches + (1 - gate)[..., None] * attended, context, gate, confidence, confidence
    gate = opinion.clamp(0, 1)
    told = gate * gating.no_match + (1 - gate) * context
    return patches + (1 - gate)[..., None] * attended, told, gate, confidence, (1 - gate) * confidence


def decision_of(gating: AdaptiveKnowledgeGating) -> torch.nn.Linear:
    decision = gating.gate_network[2]
    assert isinstance(decision, torch.nn.Linear)
    return decision


def gating_of(*, fuse: bool = True, document: bool = False, spread: float = 0.0) -> AdaptiveKnowledgeGating:
    """``spread`` of the gate's opinions about 0.5."""
    torch.manual_seed(0)
    gating = AdaptiveKnowledgeGating(8, dropout=0.0, fuse_features=fuse, document_gate=document)
    if spread:
        with torch.no_grad():
            decision_of(gating).weight.copy_(spread * torch.tensor([1.0, -1.0] * 4))
            decision_of(gating).bias.fill_(0.5)
    return gating


@pytest.mark.parametrize("document", [True, False])
def test_gating_is_its_formula(document: bool) -> None:
    """gate 1 keeps the patches, gate 0 adds all of history; the document's tokens pass whatever it is."""
    gating = gating_of(document=document, spread=20.0)
    patches, retrieved = draw(40, 5, 8), draw(40, 3, 8, seed=1)
    weights = draw(40, 3, seed=2).softmax(-1)
    found = gating(patches, retrieved, weights=weights, found=torch.ones(40, 3, dtype=torch.bool))
    ends = (found.gate == 0).any(), (found.gate == 1).any(), ((found.gate > 0) & (found.gate < 1)).any()
    assert ends == (not document, not document, True)
    for a, b in zip(found, plain_gate(gating, patches, retrieved, weights), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)


# The gate.


@given(
    value=st.floats(-3, 3, width=32) | st.sampled_from([0.0, 1.0]),
    gradient=st.floats(-2, 2, width=32),
)
def test_bounds_pass_every_gradient_but_that_which_leads_further_out(value: float, gradient: float) -> None:
    """Clamped, a gate past its end never came back; straight through, it went out without an end."""
    asked = torch.tensor(value, requires_grad=True)
    bounded = within_bounds(asked)
    assert bounded.item() == min(max(value, 0.0), 1.0)
    bounded.backward(torch.tensor(gradient))
    further_out = (value < 0 and -gradient < 0) or (value > 1 and -gradient > 0)
    assert asked.grad is not None and asked.grad.item() == (0.0 if further_out else gradient)


def test_the_gate_begins_at_nothing_but_history_and_can_move_at_once() -> None:
    """An untrained gate must not choose; at 0 exactly, and yet with a slope."""
    gating = gating_of()
    patches, retrieved = draw(6, 5, 8).requires_grad_(), draw(6, 3, 8, seed=1)
    found = torch.ones(6, 3, dtype=torch.bool)
    decided = gating(patches, retrieved, weights=torch.full((6, 3), 1 / 3), found=found)
    assert (decided.gate == 0).all()
    (-decided.gate).sum().backward()  # history misleads: the gate is to rise
    for parameter in gating.gate_network[2].parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("fuse", [True, False])
def test_at_gate_one_nothing_depends_on_the_neighbours_to_the_bit(fuse: bool) -> None:
    """The retrieval tokens passed ungated: "without history" was not without it."""
    gating = gating_of(fuse=fuse)
    with torch.no_grad():
        decision_of(gating).bias.fill_(1.5)
    patches, found = draw(6, 5, 8), torch.ones(6, 3, dtype=torch.bool)
    weights = draw(6, 3, seed=3).softmax(-1)
    one, other = (
        gating(patches, scale * draw(6, 3, 8, seed=seed), weights=weights, found=found)
        for seed, scale in ((1, 1.0), (2, 50.0))
    )
    for name in ("patches", "context", "gate", "told_confidence"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    nothing = gating(patches, draw(6, 3, 8), weights=0 * weights, found=~found)
    assert torch.equal(one.patches, nothing.patches) and torch.equal(one.context, nothing.context)
    assert torch.equal(one.told_confidence, nothing.told_confidence)


def test_the_gate_goes_to_the_ends_that_its_loss_names_and_back() -> None:
    """A coin flipped by its own losses; or one that sticks where it first went."""
    gating = gating_of(fuse=False)
    optimizer = torch.optim.Adam(gating.parameters(), lr=0.02)
    patches = draw(32, 5, 8)
    misleads = torch.arange(32) % 2 == 0
    patches[misleads] += 2  # the window shows it
    retrieved, found = draw(32, 3, 8, seed=1), torch.ones(32, 3, dtype=torch.bool)

    def train(wrong: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            gate = gating(patches, retrieved, weights=torch.full((32, 3), 1 / 3), found=found).gate[:, 0]
            optimizer.zero_grad()
            torch.where(wrong, 1 - gate, gate).mean().backward()
            optimizer.step()
        decided: Tensor = gating(patches, retrieved, weights=torch.full((32, 3), 1 / 3), found=found).gate[
            :, 0
        ]
        return decided.detach()

    assert (train(torch.zeros(32, dtype=torch.bool), 20) == 0).all()  # history helps: it stays
    assert torch.equal(train(misleads, 100), misleads.float())
    assert torch.equal(train(~misleads, 150), (~misleads).float())


@pytest.mark.parametrize("key", ["learned", "hybrid"])
def test_what_teaches_the_gate_does_not_teach_the_keys(key: str) -> None:
    """Training made the learned key worse: it was bent to please the gate's losses."""
    gram = gram_of(retrieval_key=key)
    with torch.no_grad():
        decision_of(gram.gating).weight.copy_(0.1 * draw(1, 8))
        decision_of(gram.gating).bias.fill_(0.5)
    lookback, query, _ = queries()
    _, tokens, _, record = run(gram, lookback, query, draw(len(lookback), 5, 8))
    record.gate.sum().backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in gram.retriever.parameters())
    assert gram.value_lift.weight.grad is not None and gram.value_lift.weight.grad.any()
    tokens.square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in gram.retriever.parameters())


def test_missing_neighbours_change_nothing_in_the_gate() -> None:
    """Padding up to k must be invisible: its lifted value is a bias, not zero."""
    gating = gating_of(spread=1.0)
    patches, retrieved = draw(4, 5, 8), draw(4, 3, 8, seed=1)
    weights = draw(4, 2, seed=2).softmax(-1)
    present = torch.ones(4, 2, dtype=torch.bool)
    alone = gating(patches, retrieved[:, :2], weights=weights, found=present)
    padded = torch.nn.functional.pad(weights, (0, 1)), torch.nn.functional.pad(present, (0, 1))
    beside = gating(patches, retrieved * 1.0, weights=padded[0], found=padded[1])
    for a, b in zip(alone, beside, strict=True):
        torch.testing.assert_close(a, b)


def test_prompt_is_two_tokens_context_then_confidence() -> None:
    """The document's LLM input has 2 retrieval tokens."""
    prompt = RetrievalAugmentedPrompt(d_model=8, d_llm=24)
    context, confidence = draw(3, 8), torch.rand(3, 1)
    tokens = prompt(context, confidence)
    assert tokens.shape == (3, 2, 24)
    torch.testing.assert_close(tokens[:, 0], prompt.context_to_llm(context))
    torch.testing.assert_close(tokens[:, 1], prompt.confidence_embed(confidence))


@pytest.mark.parametrize("control", ["none", "random"])
def test_train_and_eval_agree_without_dropout(control: str) -> None:
    """The confidence token must mean the same in training and in test."""
    gram = gram_of(retrieval_control=control)
    lookback, query, _ = queries()
    patches = draw(len(lookback), 5, 8)
    trained = run(gram.train(), lookback, query, patches)
    evaluated = run(gram.eval(), lookback, query, patches)
    for a, b in zip((*trained[:3], *trained[3]), (*evaluated[:3], *evaluated[3]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_queries_do_not_mix() -> None:
    """A forecast must not depend on its neighbours in the batch."""
    gram = gram_of()
    lookback, query, _ = queries()
    patches = draw(len(lookback), 5, 8)
    whole = run(gram, lookback, query, patches)
    for s in range(len(lookback)):
        one = slice(s, s + 1)
        alone = run(gram, lookback[one], Rows(*(c[one] for c in query)), patches[one])
        assert torch.equal(whole[3].rows[one], alone[3].rows)
        for a, b in zip(whole[:3], alone[:3], strict=True):
            torch.testing.assert_close(a[one], b, rtol=1e-4, atol=1e-5)


def test_weights_that_have_the_gates_running_mean_beside_them_load_as_they_are() -> None:
    """Earlier versions saved one: strict loading refused their checkpoints."""
    gram, other = gram_of(), gram_of()
    state = {name: 2 * tensor for name, tensor in gram.state_dict().items()}
    other.load_state_dict({**state, "gate_history": torch.tensor(0.3)})
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in other.state_dict().items())


# Large memories.


@pytest.mark.parametrize("key", KEYS)
def test_the_scale_of_distances_is_the_same_in_blocks(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = retriever_of(retrieval_key=key)
    whole = keys.keys.mean_distances(keys.memory_keys)
    variances = keys.memory_keys.double().var(dim=0, unbiased=False).split(keys.keys.widths)
    torch.testing.assert_close(whole, torch.stack([2 * v.sum() for v in variances]).float())
    monkeypatch.setattr(retrieval_keys, "BLOCK", 7)
    torch.testing.assert_close(keys.keys.mean_distances(keys.memory_keys), whole)


@pytest.mark.parametrize("kind", ["fp32", "fp16"])
def test_a_memory_is_the_same_whatever_the_blocks_it_is_built_in(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retriever_of(retrieval_key="hybrid", memory_dtype=kind).state_dict()
    monkeypatch.setattr(retrieval_memory, "BUILD_BLOCK", 9)
    parts = retriever_of(retrieval_key="hybrid", memory_dtype=kind).state_dict()
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=2e-3 if kind == "fp16" else 1e-6)


@pytest.mark.parametrize("key", KEYS)
def test_half_numbers_take_half_the_memory_and_find_nearly_the_same(key: str) -> None:
    whole, half = (retriever_of(retrieval_key=key, memory_dtype=kind, top_k=5) for kind in ("fp32", "fp16"))
    assert half.memory_keys.dtype == half.memory_values.dtype == torch.float16
    for name in ("memory_keys", "memory_values"):
        assert getattr(half, name).nbytes * 2 == getattr(whole, name).nbytes
    lookback, query, _ = queries()
    exact, found = whole(lookback, query), half(lookback, query)
    common = [len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)]
    assert sum(common) >= 0.95 * exact.rows.numel()
    assert found.distance.dtype == found.values.dtype == torch.float32
    same = (exact.rows == found.rows) & (exact.rows >= 0)
    torch.testing.assert_close(found.distance[same], exact.distance[same], rtol=0.02, atol=1e-3)
    torch.testing.assert_close(found.values[same], exact.values[same], rtol=1e-3, atol=1e-3)


def test_half_numbers_stay_finite_where_a_series_is_wild() -> None:
    """65504 is the largest of them: a spike must not become an infinite distance to everything."""
    wild = TrainingWindows(SERIES_VALUES * 1e6, Split(BEGIN, T), seq_len=L, pred_len=H, series_id=SERIES)
    retriever = retriever_of(build=False, retrieval_key="raw", memory_dtype="fp16")
    retriever.build(wild, generator=torch.Generator().manual_seed(0))
    assert retriever.memory_keys.isfinite().all() and retriever.memory_values.isfinite().all()


def test_a_memory_in_whole_numbers_is_loaded_into_half_ones() -> None:
    whole, half = (retriever_of(retrieval_key="raw", memory_dtype=kind) for kind in ("fp32", "fp16"))
    fresh = retriever_of(build=False, retrieval_key="raw", memory_dtype="fp16")
    fresh.load_state_dict(whole.state_dict())
    assert torch.equal(fresh.memory_keys, half.memory_keys)
    assert torch.equal(fresh.memory_values, half.memory_values)

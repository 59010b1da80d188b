"""GRA-M, the global retrieval-augmented memory: search, adaptive gate, and tokens for the LLM.

Shape legend: S series (windows x variables), P patches, D model width, L lookback, H horizon,
M memory rows, K width of a key, k neighbours.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.retrieval.compare import (
    KeyComparison,
    asked_windows,
    error_alone,
    raw_neighbours,
    shared,
)
from layers.retrieval.futures import RetrievedFutures
from layers.retrieval.keys import PatternEncoder as PatternEncoder
from layers.retrieval.keys import raw_key
from layers.retrieval.memory import RetrievalMemory
from layers.retrieval.search import Candidates, Queries, Rows, SearchRule, nearest_rows
from utils.config import GRAMConfig
from utils.config_checks import ATTENTION_HEADS
from utils.errors import UserError
from utils.types import RetrievalRecord, WindowSource
from utils.windows import floored_std

log = getLogger(__name__)
FARTHEST = 1e6
"""Squared distances beyond this, in mean ones of the memory, weigh the same.

There float32's spacing (0.06) nears the temperature: rounding would choose among such neighbours, and
its gradient, times the distance, would be without bounds.
"""


class Neighbours(NamedTuple):
    """What a search found; missing neighbours have row -1, weight 0, distance inf, value 0."""

    rows: Tensor
    """[S, k] int64."""
    distance: Tensor
    """[S, k]."""
    weights: Tensor
    """[S, k]."""
    values: Tensor
    """[S, k, H]: each neighbour's future less its last value, standardised units."""


def neighbours_from(
    memory: RetrievedFutures, rows: Tensor, lookback: Tensor, *, config: GRAMConfig
) -> Neighbours:
    """What there is to say of rows [S, n] that a start found for lookbacks [S, L]: its first kind's.

    So one search and one memory serve the start and GRA-M. Distances are over their mean in the memory.
    """
    rows = rows[:, : config.neighbours]
    rows = F.pad(rows, (0, config.neighbours - rows.shape[1]), value=-1)  # a start without retrieval has none
    present, at = rows >= 0, rows.clamp(min=0)
    if not len(memory.keys):
        distance = torch.full_like(rows, torch.inf, dtype=torch.float32)
        values = memory.futures.new_zeros(*rows.shape, memory.futures.shape[1])
        return Neighbours(rows, distance, present.float(), values)
    apart = raw_key(lookback, memory.width)[:, None] - memory.keys[at]
    distance = (apart.square().sum(-1) / memory.mean_distance).masked_fill(~present, torch.inf)
    share = _shares(distance, present, temperature=config.softmax_temperature)
    return Neighbours(rows, distance, share, memory.futures[at].masked_fill(~present[..., None], 0))


def _shares(distance: Tensor, found: Tensor, *, temperature: float) -> Tensor:
    """Weights [S, k] of neighbours at these distances, 0 of those that were not found."""
    # Over infinity where all weigh the same, which keeps the encoders in the graph.
    closeness = -distance.clamp(max=FARTHEST) / temperature
    logits = closeness.masked_fill(~found & found.any(1, keepdim=True), -torch.inf)
    return logits.softmax(dim=1).masked_fill(~found, 0.0)


class PatternValueDualRetriever(RetrievalMemory):
    """The memory, and the search in it by shape and by value.

    Rows of the query's own window, or overlapping it, are never found.
    """

    def forward(self, lookback: Tensor, query: Rows, *, target: Tensor | None = None) -> Neighbours:
        """The ``top_k`` nearest admissible rows of each lookback [S, L].

        The search itself carries no gradient; the distances to the rows it found do, into the
        query's key and the weight of shape against value. ``target`` [S, H] is read by the oracle
        control alone.

        Raises:
            RuntimeError: the memory is empty.
        """
        key = self.keys(lookback)
        weights = self.keys.column_weights(self.distance_scale)
        candidates = self._search(key, query, lookback, target, weights=weights)
        index, values = candidates.rows, candidates.futures
        found = index >= 0
        distance = ((key[:, None, :] - candidates.keys).square() * weights).sum(-1)  # [S, k]
        distance = distance.masked_fill(~found, torch.inf)
        if self.config.retrieval_control == "none":
            order = distance.argsort(dim=1, stable=True)
            index, found, distance = (t.gather(1, order) for t in (index, found, distance))
            values = values.take_along_dim(order[..., None], dim=1)  # [S, k, H]
        share = _shares(distance, found, temperature=self.config.softmax_temperature)
        return Neighbours(index, distance, share, values)

    @torch.no_grad()
    def refresh(self, source: WindowSource) -> None:
        """Compute keys that are learned anew, and say how they do beside raw ones; see `RetrievalMemory`."""
        super().refresh(source)
        if self.config.retrieval_key != "raw" and self.config.retrieval_control == "none":
            log.info("memory: %s", self.compared_with_raw(source).text)

    @torch.no_grad()
    def compared_with_raw(self, source: WindowSource) -> KeyComparison:
        """What learned keys retrieve for training windows, beside what raw ones would."""
        asked = asked_windows(source)
        device = self.memory_values.device
        places = Rows(*(column.to(device) for column in (asked.series_id, asked.variable, asked.start)))
        with torch.autocast(device.type, enabled=False):
            found = self(asked.lookback.to(device), places)
        raw = raw_neighbours(self.contents, asked, source, self._rule, width=self.keys.raw_width)
        same = (raw.rows >= 0).to(raw.futures)
        return KeyComparison(
            learned=error_alone(found.values, found.weights, asked),
            raw=error_alone(raw.futures, same / same.sum(dim=1, keepdim=True).clamp(min=1), asked),
            common=shared(found.rows, raw.rows),
        )

    @property
    def _rule(self) -> SearchRule:
        return SearchRule(
            top_k=self.config.neighbours,
            control=self.config.retrieval_control,
            same_variable=self.config.retrieval_scope == "variable",
            same_series=self.config.retrieval_scope == "series",
            apart=self.apart,
            span=self.span,
            season=self.season,
        )

    @torch.no_grad()
    def _search(
        self, key: Tensor, query: Rows, lookback: Tensor, target: Tensor | None, *, weights: Tensor
    ) -> Candidates:
        """The ``top_k`` best-scored admissible rows of each query; ``weights`` [K] of a key's columns."""
        if not len(self.memory_start):
            raise RuntimeError("the retrieval memory is empty: build it, or load a checkpoint that has one")
        future = lookback[:, :0]
        if self.config.retrieval_control == "oracle":
            if target is None:
                raise UserError("--retrieval_control oracle needs the target; it exists for studies only")
            future = target - lookback[:, -1:]
        queries = Queries(key, query, future)
        return nearest_rows(self.contents, queries, self._rule, centre=self.key_centre, weights=weights)


class _WithinBounds(torch.autograd.Function):
    """Numbers cut to [0, 1]; beyond a bound the gradient passes that leads back to it, and no other."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        ctx.save_for_backward(value)
        return value.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (value,) = ctx.saved_tensors
        outward = ((value < 0) & (gradient > 0)) | ((value > 1) & (gradient < 0))
        return gradient.masked_fill(outward, 0)


def within_bounds(value: Tensor) -> Tensor:
    """``value`` cut to [0, 1], which it reaches and leaves again: the projected gradient of a box.

    Plain clamping has no gradient outside: a gate that went past its end would stay there for good. A
    sigmoid has none at its ends, and never is 0 or 1.
    """
    bounded: Tensor = _WithinBounds.apply(value)
    return bounded


class GatingOutput(NamedTuple):
    """What the gate decided."""

    patches: Tensor
    """[S, P, D]."""
    context: Tensor
    """[S, D], what the LLM is told of the neighbours; the no-match token where that is nothing."""
    gate: Tensor
    """[S, 1]: 1 = the current window alone, 0 = history alone."""
    confidence: Tensor
    """[S, 1], how well the neighbours match."""
    told_confidence: Tensor
    """[S, 1], what the LLM is told of it."""


class AdaptiveKnowledgeGating(nn.Module):
    """Decides how far to trust the neighbours, and blends them into the patches.

    The gate g is 1 where the current window alone decides, and then nothing that is given depends on the
    neighbours: patches gain (1 - g) of what they find in them, the LLM is told (1 - g) of the context and of
    the confidence, and g of the learned no-match token. Where nothing was found g is 1. It begins at 0
    everywhere, and can reach both ends.

    The document's gate is a sigmoid, and the LLM is told of the neighbours whatever it is.
    """

    def __init__(
        self, d_model: int, *, dropout: float, fuse_features: bool, document_gate: bool = False
    ) -> None:
        """Without ``fuse_features`` the patches pass unchanged and no cross-attention is built."""
        super().__init__()
        self.current_encoder = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.GELU())
        self.retrieved_encoder = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU())
        self.match_scorer = nn.Sequential(nn.Linear(3 * d_model, d_model), nn.GELU(), nn.Linear(d_model, 1))
        self.gate_network = nn.Sequential(
            nn.Linear(2 * d_model + 1, d_model), nn.GELU(), decision := nn.Linear(d_model, 1)
        )
        self.no_match = nn.Parameter(torch.randn(d_model) * 0.02)
        if fuse_features:
            self.cross_attention = nn.MultiheadAttention(
                d_model, ATTENTION_HEADS, dropout=dropout, batch_first=True
            )
            self.dropout = nn.Dropout(dropout)
        self.fuse_features, self.document_gate = fuse_features, document_gate
        if not document_gate:
            nn.init.zeros_(decision.weight)
            nn.init.zeros_(decision.bias)

    def forward(self, patches: Tensor, retrieved: Tensor, *, weights: Tensor, found: Tensor) -> GatingOutput:
        """Patches [S, P, D], lifted neighbours [S, k, D], their weights and presence [S, k]."""
        matched = found.any(dim=1, keepdim=True)  # [S, 1]
        current = self.current_encoder(torch.cat([patches.mean(dim=1), patches[:, -1]], dim=-1))  # [S, D]
        history = self.retrieved_encoder(retrieved)  # [S, k, D]
        beside = current[:, None].expand_as(history)
        score = self.match_scorer(torch.cat([beside, history, beside * history], dim=-1))
        match = torch.sigmoid(score.squeeze(-1))  # [S, k]
        context, confidence = seen = _summary(history, weights, match=match)
        if not self.document_gate:  # what teaches the gate must not teach the keys, through the weights
            seen = _summary(history, weights.detach(), match=match)
        context = torch.where(matched, context, self.no_match)
        seen_context = torch.where(matched, seen[0], self.no_match)
        opinion = self.gate_network(torch.cat([current, seen_context, seen[1]], dim=-1))
        gate = torch.sigmoid(opinion) if self.document_gate else within_bounds(opinion.float())
        gate = torch.where(matched, gate, torch.ones_like(gate))
        told = confidence
        if not self.document_gate:
            context = gate * self.no_match + (1 - gate) * context
            told = (1 - gate) * confidence
        if self.fuse_features:
            # Where nothing was found, attention over an all-masked row would be NaN: look at all, add none.
            attended, _ = self.cross_attention(
                patches, history, history, key_padding_mask=~(found | ~matched), need_weights=False
            )
            patches = patches + (1 - gate)[..., None] * self.dropout(attended)
        return GatingOutput(patches, context, gate, confidence, told)


def _summary(history: Tensor, weights: Tensor, *, match: Tensor) -> tuple[Tensor, Tensor]:
    """Context [S, D] and confidence [S, 1] of neighbours [S, k, D], by how they weigh and match, [S, k]."""
    return (weights[..., None] * history).sum(dim=1), (weights * match).sum(dim=1, keepdim=True)


class RetrievalAugmentedPrompt(nn.Module):
    """Context [S, D] and confidence [S, 1] to two tokens for the LLM, [S, 2, d_llm]."""

    def __init__(self, *, d_model: int, d_llm: int) -> None:
        """One linear map each."""
        super().__init__()
        self.context_to_llm = nn.Linear(d_model, d_llm)
        self.confidence_embed = nn.Linear(1, d_llm)

    def forward(self, context: Tensor, confidence: Tensor) -> Tensor:
        """The context's token, then the confidence's."""
        return torch.stack([self.context_to_llm(context), self.confidence_embed(confidence)], dim=1)


class GRAM(nn.Module):
    """Patches [S, P, D] to patches, retrieval tokens [S, 2, d_llm], a forecast and a record."""

    def __init__(
        self,
        config: GRAMConfig,
        *,
        seq_len: int,
        horizon: int,
        patch_len: int,
        season: int,
        d_model: int,
        d_llm: int,
        dropout: float,
        apart: int = 0,
    ) -> None:
        """An empty memory; `PatternValueDualRetriever.build` fills it."""
        super().__init__()
        self.retriever = PatternValueDualRetriever(
            config, seq_len=seq_len, horizon=horizon, patch_len=patch_len, season=season, apart=apart
        )
        # A neighbour's future lifted step by step to [H, D] and summed over H is this linear map;
        # the [S, k, H, D] in between is never stored.
        self.value_lift = nn.Linear(horizon, d_model)
        self.gating = AdaptiveKnowledgeGating(
            d_model,
            dropout=dropout,
            fuse_features=config.retrieval_fusion != "prediction",
            document_gate=config.gate_loss == "document",
        )
        self.prompt = RetrievalAugmentedPrompt(d_model=d_model, d_llm=d_llm)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Weights of earlier versions have a running mean of the gate beside them: nothing reads it."""
        state_dict.pop(prefix + "gate_history", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(
        self,
        patches: Tensor,
        *,
        lookback: Tensor,
        normalised: Tensor,
        query: Rows,
        target: Tensor | None = None,
        found: Neighbours | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, RetrievalRecord]:
        """Augment patches of lookbacks [S, L], given in standardised and in normalised units.

        ``found`` are neighbours that were searched for already. Returns the patches [S, P, D], the tokens
        [S, 2, d_llm], the retrieved forecast [S, H] in normalised units, and the record.
        """
        with torch.autocast(patches.device.type, enabled=False):
            if found is None:
                found = self.retriever(lookback.float(), query, target=target)
            std = floored_std(lookback)
            values = found.values / std[:, None, None]
            retrieved = normalised[:, -1:] + (found.weights[..., None] * values).sum(dim=1)  # [S, H]
        present = found.rows >= 0
        decided = self.gating(patches, self.value_lift(values), weights=found.weights, found=present)
        tokens = self.prompt(decided.context, decided.told_confidence)
        record = RetrievalRecord(
            gate=decided.gate,
            confidence=decided.confidence,
            weights=found.weights,
            rows=found.rows,
            distance=found.distance,
            matched=present.any(dim=1),
            plain=retrieved[:, :0],
            joint=retrieved[:, :0],
            advantage=retrieved[:, :0],
        )
        return decided.patches, tokens, retrieved, record

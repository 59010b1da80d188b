"""GRA-M, the global retrieval-augmented memory: search, adaptive gate, and tokens for the LLM.

Shape legend: S series (windows x variables), P patches, D model width, L lookback, H horizon,
M memory rows, K width of a key, k neighbours.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from layers.retrieval_keys import PatternEncoder as PatternEncoder
from layers.retrieval_keys import WindowKeys
from layers.retrieval_search import (
    Rows,
    admissible,
    euclidean_scores,
    random_scores,
    smallest_in_blocks,
)
from utils.config import ATTENTION_HEADS, GRAMConfig
from utils.types import RetrievalRecord, WindowSource
from utils.windows import floored_deviation

log = logging.getLogger(__name__)
BUILD_BLOCK = 1024
"""Training rows encoded at once while the memory is built or refreshed."""
MANY_ROWS = 50_000
"""More take seconds, for which there is a bar."""
FARTHEST = 1e6
"""Squared distances beyond this, in mean ones of the memory, weigh the same.

There float32's spacing (0.06) nears the temperature: rounding would choose among such neighbours, and
its gradient, times the distance, would be without bounds.
"""
GATE_HISTORY_DECAY = 0.9
"""Weight of the past in the running mean of the gate, per optimizer step."""


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


class PatternValueDualRetriever(nn.Module):
    """The memory, and the search in it by shape and by value.

    A row is one variable of one training window: its key [K], its future less its last value [H],
    and where it came from. Rows of the query's own window, or overlapping it, are never found.
    """

    memory_keys: Tensor
    memory_values: Tensor
    memory_series: Tensor
    memory_variable: Tensor
    memory_start: Tensor
    distance_scale: Tensor

    def __init__(
        self, config: GRAMConfig, *, seq_len: int, horizon: int, patch_len: int, season: int
    ) -> None:
        """An empty memory; `build` fills it."""
        super().__init__()
        self.config = config
        self.span = seq_len + horizon
        self.horizon = horizon
        self.season = season
        self.keys = WindowKeys(config, seq_len=seq_len, patch_len=patch_len, season=season)
        kind = torch.float16 if config.memory_dtype == "fp16" else torch.float32
        self.register_buffer("memory_keys", torch.empty(0, sum(self.keys.widths), dtype=kind))
        self.register_buffer("memory_values", torch.empty(0, horizon, dtype=kind))
        for name in ("memory_series", "memory_variable", "memory_start"):
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        self.register_buffer("distance_scale", torch.ones(len(self.keys.widths)))

    @torch.no_grad()
    def build(self, source: WindowSource, *, generator: torch.Generator) -> None:
        """Fill the memory with rows drawn at random, without repetition, from the training windows."""
        wanted = self.config.memory_size
        count = source.num_rows if wanted == "all" else min(int(wanted), source.num_rows)
        chosen = torch.randperm(source.num_rows, generator=generator)[:count].sort().values
        device = self.memory_keys.device
        self.memory_keys = self.memory_keys[:0]
        self.memory_values = self.memory_values.new_empty((count, self.horizon))
        places = torch.empty(3, count, dtype=torch.int64, device=device)
        for rows in _in_blocks(count, "retrieval memory: futures"):
            block = source.rows(chosen[rows])
            self.memory_values[rows] = _stored(block.future - block.lookback[:, -1:], self.memory_values)
            places[:, rows] = torch.stack([block.series_id, block.variable, block.start]).to(device)
        self.memory_series, self.memory_variable, self.memory_start = places.unbind()
        self.refresh(source)

    @torch.no_grad()
    def unmatched_share(self, source: WindowSource) -> float:
        """Share of the training rows for which the memory holds no admissible row."""
        if len(self.memory_series.unique()) > 1:  # every row may see those of another series
            return 0.0
        starts = self.memory_start.cpu()
        variable = self.memory_variable.cpu()
        unmatched = 0
        for wanted in range(source.num_variables):
            first_row = torch.tensor([wanted * source.num_windows])
            first = int(source.rows(first_row).start)
            own = starts if self.config.retrieval_scope == "all" else starts[variable == wanted]
            if not len(own):
                unmatched += source.num_windows
                continue
            windows = torch.arange(first, first + source.num_windows)
            apart = (windows - own.min() >= self.span) | (own.max() - windows >= self.span)
            unmatched += int((~apart).sum())
        return unmatched / source.num_rows

    @torch.no_grad()
    def refresh(self, source: WindowSource) -> None:
        """Compute every key anew, where encoders that learn made them; lookbacks are read again.

        Raises:
            ValueError: the memory was built from another series than ``source`` reads.
        """
        if not source.holds(self.memory_series):
            raise ValueError(
                "the retrieval memory was built from another series; --build_memory builds it from this one"
            )
        if self.config.retrieval_key == "raw" and len(self.memory_keys):
            return
        device, count = self.memory_keys.device, len(self.memory_start)
        self.memory_keys = self.memory_keys.new_empty((count, self.memory_keys.shape[1]))
        with torch.autocast(device.type, enabled=False):
            for rows in _in_blocks(count, "retrieval memory: keys"):
                lookback = source.lookbacks(
                    series_id=self.memory_series[rows].cpu(),
                    variable=self.memory_variable[rows].cpu(),
                    start=self.memory_start[rows].cpu(),
                )
                self.memory_keys[rows] = _stored(self.keys(lookback.to(device)), self.memory_keys)
        self.distance_scale = self.keys.mean_distances(self.memory_keys)

    def forward(self, lookback: Tensor, query: Rows, *, target: Tensor | None = None) -> Neighbours:
        """The ``top_k`` nearest admissible rows of each lookback [S, L].

        The search itself carries no gradient; the distances to the rows it found do, into the
        query's key and the weight of shape against value. ``target`` [S, H] is read by the oracle
        control alone.

        Raises:
            RuntimeError: the memory is empty.
        """
        if not len(self.memory_start):
            raise RuntimeError("the retrieval memory is empty: build it, or load a checkpoint that has one")
        key = self.keys(lookback)
        weights = self.keys.column_weights(self.distance_scale)
        index = self._search(key, weights, query, lookback, target)
        found = index >= 0
        safe = index.clamp(min=0)
        nearest = self.memory_keys[safe].float()
        distance = ((key[:, None, :] - nearest).square() * weights).sum(-1)  # [S, k]
        distance = distance.masked_fill(~found, torch.inf)
        if self.config.retrieval_control == "none":
            order = distance.argsort(dim=1)
            index, safe, found = (t.gather(1, order) for t in (index, safe, found))
            distance = distance.gather(1, order)
        closeness = -distance.clamp(max=FARTHEST) / self.config.temperature
        closeness = closeness.masked_fill(~found, -torch.inf)
        if self.config.retrieval_control != "none":
            # A control's rows weigh the same: weighing them by distance would be half a retrieval.
            # Times 0 keeps the encoders in the graph, as every process expects.
            closeness = (0 * closeness.masked_fill(~found, 0.0)).masked_fill(~found, -torch.inf)
        logits = closeness.masked_fill(~found.any(1, keepdim=True), 0.0)
        share = logits.softmax(dim=1).masked_fill(~found, 0.0)
        values = self.memory_values[safe].float().masked_fill(~found[..., None], 0.0)  # [S, k, H]
        return Neighbours(index, distance, share, values)

    @torch.no_grad()
    def _search(
        self, key: Tensor, weights: Tensor, query: Rows, lookback: Tensor, target: Tensor | None
    ) -> Tensor:
        """Rows [S, top_k] of the best-scored admissible rows, -1 where there are too few."""
        control = self.config.retrieval_control
        if control == "oracle" and target is None:
            raise ValueError("--retrieval_control oracle needs the target; it exists for studies only")
        memory = Rows(self.memory_series, self.memory_variable, self.memory_start)
        wanted = None if target is None else target - lookback[:, -1:]
        # What all keys have in common would drown their differences in float32's rounding.
        centre = self.memory_keys.mean(dim=0, dtype=torch.float32)

        def score_block(begin: int, end: int) -> Tensor:
            part = Rows(*(column[begin:end] for column in memory))
            if control == "none":
                scores = euclidean_scores(key - centre, self.memory_keys[begin:end] - centre, weights)
            elif control == "oracle" and wanted is not None:
                ones = wanted.new_ones(self.horizon)
                scores = euclidean_scores(wanted, self.memory_values[begin:end].float(), ones)
            else:
                scores = random_scores(query, torch.arange(begin, end, device=key.device))
            allowed = admissible(
                query, part, span=self.span, same_variable=self.config.retrieval_scope == "variable"
            )
            if control == "same_phase":
                allowed &= (query.start[:, None] - part.start[None, :]) % self.season == 0
            return scores.masked_fill_(allowed.logical_not_(), torch.inf)

        scores, rows = smallest_in_blocks(score_block, len(self.memory_start), self.config.top_k)
        rows = rows.masked_fill(torch.isinf(scores), -1)
        return F.pad(rows, (0, self.config.top_k - rows.shape[1]), value=-1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Take a memory of any size, and values of another width (`_resize_last_dim`)."""
        values = state_dict.get(prefix + "memory_values")
        if values is not None:
            if values.dim() == 3:  # [M, H, D]: each future copied to the model's width
                values = values.mean(dim=-1)
            state_dict[prefix + "memory_values"] = self._resize_last_dim(values, self.horizon)
        for name in ("memory_keys", "memory_values", "memory_series", "memory_variable", "memory_start"):
            stored = state_dict.get(prefix + name)
            if stored is not None:
                current = getattr(self, name)
                setattr(self, name, current.new_empty((len(stored), *current.shape[1:])))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @staticmethod
    def _resize_last_dim(tensor: Tensor, target_dim: int) -> Tensor:
        """The tensor [..., D] with its last dimension resampled linearly to ``target_dim``."""
        if tensor.shape[-1] == target_dim:
            return tensor
        flat = tensor.reshape(-1, 1, tensor.shape[-1]).float()
        resized = F.interpolate(flat, size=target_dim, mode="linear", align_corners=True)
        return resized.reshape(*tensor.shape[:-1], target_dim).to(tensor.dtype)


def _stored(rows: Tensor, like: Tensor) -> Tensor:
    """``rows`` in the memory's numbers; what they can not hold becomes the largest that they can."""
    largest = torch.finfo(like.dtype).max
    return rows.clamp(-largest, largest).to(like)


def _in_blocks(count: int, what: str) -> Iterator[slice]:
    """``count`` rows in blocks; many with a bar, on the process that speaks."""
    hidden = None if count > MANY_ROWS and log.isEnabledFor(logging.INFO) else True
    for begin in tqdm(range(0, count, BUILD_BLOCK), desc=what, unit="block", leave=False, disable=hidden):
        yield slice(begin, min(begin + BUILD_BLOCK, count))


class GatingOutput(NamedTuple):
    """What the gate decided."""

    patches: Tensor
    """[S, P, D]."""
    context: Tensor
    """[S, D], summary of the neighbours, or the no-match token."""
    gate: Tensor
    """[S, 1]: 1 = the current window alone, 0 = history alone."""
    confidence: Tensor
    """[S, 1]."""


class AdaptiveKnowledgeGating(nn.Module):
    """Decides how far to trust the neighbours, and blends them into the patches.

    The gate is 1 where the current window alone decides and 0 where history alone does. Where
    nothing was found the gate is 1, the confidence 0, the context a learned token.
    """

    def __init__(self, d_model: int, *, dropout: float, fuse_features: bool) -> None:
        """Without ``fuse_features`` the patches pass unchanged and no cross-attention is built."""
        super().__init__()
        self.current_encoder = nn.Sequential(nn.Linear(2 * d_model, d_model), nn.GELU())
        self.retrieved_encoder = nn.Sequential(nn.Linear(d_model, d_model), nn.GELU())
        self.match_scorer = nn.Sequential(nn.Linear(3 * d_model, d_model), nn.GELU(), nn.Linear(d_model, 1))
        self.gate_network = nn.Sequential(
            nn.Linear(2 * d_model + 1, d_model), nn.GELU(), nn.Linear(d_model, 1)
        )
        self.no_match = nn.Parameter(torch.randn(d_model) * 0.02)
        if fuse_features:
            self.cross_attention = nn.MultiheadAttention(
                d_model, ATTENTION_HEADS, dropout=dropout, batch_first=True
            )
            self.dropout = nn.Dropout(dropout)
        self.fuse_features = fuse_features

    def forward(self, patches: Tensor, retrieved: Tensor, *, weights: Tensor, found: Tensor) -> GatingOutput:
        """Patches [S, P, D], lifted neighbours [S, k, D], their weights and presence [S, k]."""
        matched = found.any(dim=1, keepdim=True)  # [S, 1]
        current = self.current_encoder(torch.cat([patches.mean(dim=1), patches[:, -1]], dim=-1))  # [S, D]
        history = self.retrieved_encoder(retrieved)  # [S, k, D]
        beside = current[:, None].expand_as(history)
        score = self.match_scorer(torch.cat([beside, history, beside * history], dim=-1))
        match = torch.sigmoid(score.squeeze(-1))  # [S, k]
        confidence = (weights * match).sum(dim=1, keepdim=True)
        context = (weights[..., None] * history).sum(dim=1)  # [S, D]
        context = torch.where(matched, context, self.no_match)
        gate = torch.sigmoid(self.gate_network(torch.cat([current, context, confidence], dim=-1)))
        gate = torch.where(matched, gate, torch.ones_like(gate))
        if self.fuse_features:
            # Where nothing was found, attention over an all-masked row would be NaN: look at all, add none.
            attended, _ = self.cross_attention(
                patches, history, history, key_padding_mask=~(found | ~matched), need_weights=False
            )
            patches = patches + (1 - gate)[..., None] * self.dropout(attended)
        return GatingOutput(patches, context, gate, confidence)


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

    gate_history: Tensor

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
    ) -> None:
        """An empty memory; `PatternValueDualRetriever.build` fills it."""
        super().__init__()
        self.retriever = PatternValueDualRetriever(
            config, seq_len=seq_len, horizon=horizon, patch_len=patch_len, season=season
        )
        # A neighbour's future lifted step by step to [H, D] and summed over H is this linear map;
        # the [S, k, H, D] in between is never stored.
        self.value_lift = nn.Linear(horizon, d_model)
        self.gating = AdaptiveKnowledgeGating(
            d_model, dropout=dropout, fuse_features=config.retrieval_fusion != "prediction"
        )
        self.prompt = RetrievalAugmentedPrompt(d_model=d_model, d_llm=d_llm)
        self.register_buffer("gate_history", torch.tensor(0.5))

    def forward(
        self,
        patches: Tensor,
        *,
        lookback: Tensor,
        normalised: Tensor,
        query: Rows,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, RetrievalRecord]:
        """Augment patches of lookbacks [S, L], given in standardised and in normalised units.

        Returns the patches [S, P, D], the tokens [S, 2, d_llm], the retrieved forecast [S, H] in
        normalised units, and the record.
        """
        with torch.autocast(patches.device.type, enabled=False):
            found = self.retriever(lookback.float(), query, target=target)
            deviation = floored_deviation(lookback)
            values = found.values / deviation[:, None, None]
            retrieved = normalised[:, -1:] + (found.weights[..., None] * values).sum(dim=1)  # [S, H]
        present = found.rows >= 0
        decided = self.gating(patches, self.value_lift(values), weights=found.weights, found=present)
        tokens = self.prompt(decided.context, decided.confidence)
        record = RetrievalRecord(
            gate=decided.gate,
            confidence=decided.confidence,
            weights=found.weights,
            rows=found.rows,
            distance=found.distance,
            matched=present.any(dim=1),
            gate_history=self.gate_history.clone(),
        )
        return decided.patches, tokens, retrieved, record

    @torch.no_grad()
    def remember_gate(self, mean: Tensor) -> None:
        """Move the running mean of the gate towards one optimizer step's mean (a scalar)."""
        self.gate_history.lerp_(mean.to(self.gate_history), 1 - GATE_HISTORY_DECAY)

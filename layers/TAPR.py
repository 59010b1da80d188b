"""TAPR, the trend-aware patch router: multi-scale decomposition and a coarse-to-fine head.

Shape legend: S series (windows x variables), P patches, D model width, H horizon, L lookback rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.decomposition import SeriesDecomposition
from utils.config import SCALE_BASE, TAPRConfig
from utils.config_checks import ATTENTION_HEADS
from utils.trend import DIRECTIONS, MAGNITUDES, RELATIVE_CUTS, THRESHOLD_CUTS, fit_cuts, trend_measure
from utils.trend import magnitude_given_direction as count_magnitude_given_direction
from utils.types import InstanceStatistics, TrendRecord
from utils.windows import floored_std, per_series

TREND_KERNEL = 5
"""Width of the moving average, in steps of a scale: 5 patches at stride 8 span about two days."""
SUMMARY_WIDTH = 16
"""Features kept of each patch in the coarse-to-fine head's summary of the window."""


class MultiScaleOutput(NamedTuple):
    """What the decomposition gives."""

    multi_scale_out: Tensor
    """[S, P, D], the patches with what the scales add."""
    weighted_trend: Tensor
    """[S, P, D], the scales' trends, weighted."""
    trend_features: list[Tensor]
    """One [S, P, D] per scale, finest first."""


class MultiScaleDecomposition(nn.Module):
    """Patches [S, P, D] seen at several scales, each split into trend and season.

    Pool to each scale, encode by a depthwise separable convolution, decompose, stretch back to P,
    let each scale look at the next coarser one (coarse to fine), and mix by learned weights. The
    output projection starts at zero: an untrained decomposition passes the patches through.
    A scale coarser than the sequence pools it to one step.
    """

    def __init__(self, *, d_model: int, n_scales: int, dropout: float) -> None:
        """Scales 1, 4, ..., 4**(n_scales - 1) patches wide."""
        super().__init__()
        self.kernel_sizes = [SCALE_BASE**i for i in range(n_scales)]
        self.scale_encoders = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(d_model, d_model, 3, padding=1, padding_mode="replicate", groups=d_model),
                nn.GELU(),
                nn.Conv1d(d_model, d_model, 1),
                nn.Dropout(dropout),
            )
            for _ in self.kernel_sizes
        )
        self.decomp_layers = nn.ModuleList(SeriesDecomposition(TREND_KERNEL) for _ in self.kernel_sizes)
        self.cross_scale_attn = nn.ModuleList(
            nn.MultiheadAttention(d_model, ATTENTION_HEADS, dropout=dropout, batch_first=True)
            for _ in self.kernel_sizes[1:]
        )
        self.scale_weights = nn.Parameter(torch.zeros(n_scales))
        self.output_projection = nn.Linear(d_model, d_model)
        nn.init.zeros_(self.output_projection.weight)
        nn.init.zeros_(self.output_projection.bias)

    def weights(self) -> Tensor:
        """How the scales are mixed, [n_scales], positive, sum 1."""
        return self.scale_weights.softmax(dim=0)

    def forward(self, patches: Tensor) -> MultiScaleOutput:
        """[S, P, D] to `MultiScaleOutput`."""
        seasonal, trends = [], []
        for scale in range(len(self.kernel_sizes)):
            season, trend = self._one_scale(patches, scale)
            seasonal.append(season)
            trends.append(trend)
        fused = seasonal[-1] + trends[-1]
        mixed = self.weights()[-1] * fused
        for scale in range(len(self.kernel_sizes) - 2, -1, -1):  # coarse to fine
            fine = seasonal[scale] + trends[scale]
            looked_up, _ = self.cross_scale_attn[scale](fine, fused, fused, need_weights=False)
            fused = fine + looked_up
            mixed = mixed + self.weights()[scale] * fused
        weighted_trend = torch.einsum("k,kspd->spd", self.weights(), torch.stack(trends))
        return MultiScaleOutput(patches + self.output_projection(mixed), weighted_trend, trends)

    def _one_scale(self, patches: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """(seasonal, trend) of one scale, stretched back to [S, P, D]."""
        length = patches.shape[1]
        width = min(self.kernel_sizes[scale], length)
        sequence = patches.transpose(1, 2)  # [S, D, P]
        if width > 1:
            sequence = F.avg_pool1d(sequence, width, ceil_mode=True, count_include_pad=False)
        encoded = self.scale_encoders[scale](sequence).transpose(1, 2)  # [S, P / width, D]
        parts = self.decomp_layers[scale](encoded)
        if encoded.shape[1] == length:
            return parts
        seasonal, trend = (
            F.interpolate(p.transpose(1, 2), size=length, mode="linear").transpose(1, 2) for p in parts
        )
        return seasonal, trend


class CoarseToFineOutput(NamedTuple):
    """What the head concludes."""

    direction_logits: Tensor
    """[S, 3]."""
    magnitude_logits: Tensor
    """[S, 4]."""
    path: Tensor
    """[S, H], instance-normalised units."""
    gate: Tensor
    """[S, 1]."""
    guidance: Tensor
    """[S, D], window summary plus gated class embedding: what the LLM is told."""


class CoarseToFineHead(nn.Module):
    """First the direction, then the magnitude given it, then the path given both.

    The class embedding is taken in expectation over the magnitude's probabilities, so the path is
    differentiable through all three levels. ``trend_thresholds`` holds the first of four ordered
    cut points and the raw gaps to the others (softplus makes them positive).
    """

    def __init__(self, *, d_model: int, patch_count: int, horizon: int, dropout: float) -> None:
        """``patch_count`` P and ``horizon`` H fix the sizes of the summary and of the path."""
        super().__init__()
        n_directions, n_magnitudes = len(DIRECTIONS), len(MAGNITUDES)
        self.patch_summary = nn.Linear(2 * d_model, SUMMARY_WIDTH)
        self.window_summary = nn.Sequential(
            nn.Flatten(), nn.Linear(SUMMARY_WIDTH * patch_count, d_model), nn.GELU(), nn.Dropout(dropout)
        )
        self.direction_head = nn.Linear(d_model, n_directions)
        self.magnitude_head = nn.Sequential(
            nn.Linear(d_model + n_directions, d_model), nn.GELU(), nn.Linear(d_model, n_magnitudes)
        )
        self.trend_embeddings = nn.Embedding(n_magnitudes, d_model)
        self.regression_head = nn.Sequential(
            nn.Linear(2 * d_model, d_model), nn.GELU(), nn.Linear(d_model, horizon)
        )
        self.gate = nn.Linear(2 * d_model, 1)
        self.trend_thresholds = nn.Parameter(torch.zeros(len(THRESHOLD_CUTS)))
        self.set_thresholds(torch.tensor(RELATIVE_CUTS)[list(THRESHOLD_CUTS)])

    def thresholds(self) -> Tensor:
        """The four ordered cut points [4]."""
        first, gaps = self.trend_thresholds[:1], F.softplus(self.trend_thresholds[1:])
        return torch.cat([first, first + gaps.cumsum(dim=0)])

    @torch.no_grad()
    def set_thresholds(self, cuts: Tensor) -> None:
        """Place the four cut points at ``cuts`` [4], ascending."""
        gaps = (cuts[1:] - cuts[:-1]).double().clamp(min=1e-4)
        raw = gaps + torch.log(-torch.expm1(-gaps))  # the inverse of softplus
        self.trend_thresholds.copy_(torch.cat([cuts[:1].double(), raw]))

    def forward(self, patches: Tensor, trend: Tensor) -> CoarseToFineOutput:
        """Patches and trend, each [S, P, D], to `CoarseToFineOutput`."""
        summary = self.window_summary(self.patch_summary(torch.cat([patches, trend], dim=-1)))  # [S, D]
        direction_logits = self.direction_head(summary)
        direction = direction_logits.softmax(dim=-1)
        magnitude_logits = self.magnitude_head(torch.cat([summary, direction], dim=-1))
        expected = magnitude_logits.softmax(dim=-1) @ self.trend_embeddings.weight  # [S, D]
        conditioned = torch.cat([summary, expected], dim=-1)
        gate = torch.sigmoid(self.gate(conditioned))
        return CoarseToFineOutput(
            direction_logits,
            magnitude_logits,
            path=self.regression_head(conditioned),
            gate=gate,
            guidance=summary + gate * expected,
        )


class TAPR(nn.Module):
    """Patches [S, P, D] to patches, a trend token [S, 1, d_llm] and a `TrendRecord`."""

    label_cuts: Tensor
    magnitude_given_direction: Tensor

    def __init__(
        self,
        config: TAPRConfig,
        *,
        d_model: int,
        d_llm: int,
        patch_count: int,
        horizon: int,
        season: int,
        dropout: float,
    ) -> None:
        """``season`` in rows: the level before the forecast is the mean of the last one."""
        super().__init__()
        self.kind = config.trend_label
        self.season = season
        self.decomposition = MultiScaleDecomposition(
            d_model=d_model, n_scales=config.n_scales, dropout=dropout
        )
        self.coarse_to_fine = CoarseToFineHead(
            d_model=d_model, patch_count=patch_count, horizon=horizon, dropout=dropout
        )
        self.trend_to_llm = nn.Linear(d_model, d_llm)
        self.register_buffer("label_cuts", torch.tensor(RELATIVE_CUTS))
        self.register_buffer(
            "magnitude_given_direction", torch.full((len(DIRECTIONS), len(MAGNITUDES)), 1 / len(MAGNITUDES))
        )

    def calibrate(self, measure: Tensor, *, place_thresholds: bool) -> None:
        """Fix the class cuts from the training windows' trend measures [R], for good.

        ``place_thresholds`` starts the learnable thresholds there too; without it they stay as learned.
        """
        cuts = fit_cuts(measure, self.kind)
        self.label_cuts.copy_(cuts)
        self.magnitude_given_direction.copy_(count_magnitude_given_direction(measure, cuts))
        if place_thresholds:
            self.coarse_to_fine.set_thresholds(cuts[list(THRESHOLD_CUTS)])

    def level_before(self, lookback: Tensor) -> tuple[Tensor, Tensor]:
        """(mean of the last season [S], floored deviation [S]) of lookbacks [S, L]."""
        reference = lookback[:, -self.season :].mean(dim=-1)
        return reference, floored_std(lookback)

    def forward(
        self, patches: Tensor, *, lookback: Tensor, statistics: InstanceStatistics
    ) -> tuple[Tensor, Tensor, TrendRecord]:
        """Route patches [S, P, D] of lookbacks [S, L] in standardised units.

        ``statistics`` [B, 1, N] turn the head's path back into standardised units, where its trend is
        measured as the label's is.
        """
        scales = self.decomposition(patches)
        head = self.coarse_to_fine(scales.multi_scale_out, scales.weighted_trend)
        token = self.trend_to_llm(head.guidance).unsqueeze(1)  # [S, 1, d_llm]
        reference, scale = self.level_before(lookback)
        std, mean = (per_series(value) for value in (statistics.std, statistics.mean))  # [S, 1]
        own = trend_measure(head.path.float() * std + mean, reference=reference, scale=scale, kind=self.kind)
        record = TrendRecord(
            direction_logits=head.direction_logits,
            magnitude_logits=head.magnitude_logits,
            path=head.path,
            measure=own,
            gate=head.gate,
            reference=reference,
            scale=scale,
            label_cuts=self.label_cuts,
            magnitude_given_direction=self.magnitude_given_direction,
            thresholds=self.coarse_to_fine.thresholds(),
            scale_weights=self.decomposition.weights(),
        )
        return scales.multi_scale_out, token, record

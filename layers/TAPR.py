"""TAPR, the trend-aware patch router: multi-scale decomposition and a coarse-to-fine head.

Shape legend: S series (windows x variables), P patches, D model width, H horizon, L lookback rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.decomposition import SeriesDecomposition, pool, pool_places, read_at
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


class SeasonMixing(nn.Module):
    """What a finer season [S, 4 K, D], four places a step of the next coarser scale, adds there: [S, K, D].

    The four are weighed by where they lie, as a mean of them would cancel what repeats within the step.
    """

    def __init__(self, d_model: int) -> None:
        """A depthwise convolution over the places, and a map of the width."""
        super().__init__()
        self.places = nn.Conv1d(d_model, d_model, SCALE_BASE, stride=SCALE_BASE, groups=d_model)
        self.width = nn.Linear(d_model, d_model)

    def forward(self, finer: Tensor) -> Tensor:
        """[S, 4 K, D] to [S, K, D]."""
        return self.width(F.gelu(self.places(finer.transpose(1, 2)).transpose(1, 2)))


class MultiScaleDecomposition(nn.Module):
    """Patches [S, P, D] seen at several scales, each split into trend and season.

    Pool to each scale, encode by a depthwise separable convolution, and split. The seasons are then mixed
    from fine to coarse, since large seasons are made of small ones, and the trends from coarse to fine, by
    attention, since what is coarse is the steadier trend. Each scale is put back at the places of its pools,
    and their sums are mixed by learned weights. The output projection starts at zero: an untrained
    decomposition passes the patches through. No scale is coarser than two halves of the sequence.

    Source: Wang et al., TimeMixer, ICLR 2024 (arXiv 2405.14616), section 3.2. There both ways are linear maps
    over the whole length; here a convolution and the original design's attention, which fit any length.

    With ``mixing`` "together", as the original design and earlier versions have it, season and trend are
    added again before one attention from coarse to fine, scales are stretched to P with no regard to where
    their pools lie, and a scale coarser than the sequence pools it to one step.
    """

    def __init__(
        self, *, d_model: int, n_scales: int, dropout: float, mixing: Literal["apart", "together"] = "apart"
    ) -> None:
        """Scales 1, 4, ..., 4**(n_scales - 1) patches wide."""
        super().__init__()
        self.mixing = mixing
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
        if mixing == "apart":
            self.season_mixing = nn.ModuleList(SeasonMixing(d_model) for _ in self.kernel_sizes[1:])

    def weights(self) -> Tensor:
        """How the scales are mixed, [n_scales], positive, sum 1."""
        return self.scale_weights.softmax(dim=0)

    def forward(self, patches: Tensor) -> MultiScaleOutput:
        """[S, P, D] to `MultiScaleOutput`."""
        mixed, trends = (self._apart if self.mixing == "apart" else self._together)(patches)
        weighted_trend = torch.einsum("k,kspd->spd", self.weights(), torch.stack(trends))
        return MultiScaleOutput(patches + self.output_projection(mixed), weighted_trend, trends)

    def _apart(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The scales' weighted sum [S, P, D] and their trends, each [S, P, D]."""
        length, device = patches.shape[1], patches.device
        widths = [min(kernel, -(-length // 2)) for kernel in self.kernel_sizes]
        centres = [pool_places(length, width, device=device) for width in widths]
        seasons, trends = self._split(patches, widths)
        for scale, mix in enumerate(self.season_mixing):  # fine to coarse
            quarters = pool_places(length, widths[scale + 1], parts=SCALE_BASE, device=device)
            finer = read_at(seasons[scale], centres[scale], quarters)
            seasons[scale + 1] = seasons[scale + 1] + mix(finer)
        for scale in range(len(trends) - 2, -1, -1):  # coarse to fine
            trends[scale] = trends[scale] + self._look_up(trends[scale], trends[scale + 1], scale)
        patch_places = pool_places(length, 1, device=device)
        seasons, trends = (
            [read_at(part, own, patch_places) for part, own in zip(parts, centres, strict=True)]
            for parts in (seasons, trends)
        )
        sums = [season + trend for season, trend in zip(seasons, trends, strict=True)]
        return torch.einsum("k,kspd->spd", self.weights(), torch.stack(sums)), trends

    def _together(self, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
        """As `_apart`, by the original design."""
        length = patches.shape[1]
        seasons, trends = (
            [
                part
                if part.shape[1] == length
                else F.interpolate(part.transpose(1, 2), size=length, mode="linear").transpose(1, 2)
                for part in parts
            ]
            for parts in self._split(patches, [min(kernel, length) for kernel in self.kernel_sizes])
        )
        fused = seasons[-1] + trends[-1]
        mixed = self.weights()[-1] * fused
        for scale in range(len(trends) - 2, -1, -1):  # coarse to fine
            fine = seasons[scale] + trends[scale]
            fused = fine + self._look_up(fine, fused, scale)
            mixed = mixed + self.weights()[scale] * fused
        return mixed, trends

    def _split(self, patches: Tensor, widths: list[int]) -> tuple[list[Tensor], list[Tensor]]:
        """Seasons and trends, each [S, P / width, D], of every scale."""
        seasons, trends = [], []
        for width, encode, split in zip(widths, self.scale_encoders, self.decomp_layers, strict=True):
            season, trend = split(encode(pool(patches, width).transpose(1, 2)).transpose(1, 2))
            seasons.append(season)
            trends.append(trend)
        return seasons, trends

    def _look_up(self, fine: Tensor, coarse: Tensor, scale: int) -> Tensor:
        """What a scale's steps [S, K, D] find in the next coarser one."""
        found, _ = self.cross_scale_attn[scale](fine, coarse, coarse, need_weights=False)
        return found


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
            d_model=d_model, n_scales=config.n_scales, dropout=dropout, mixing=config.scale_mixing
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
        path = head.path.float() * std + mean
        record = TrendRecord(
            direction_logits=head.direction_logits,
            magnitude_logits=head.magnitude_logits,
            path=head.path,
            measure=trend_measure(path, reference=reference, scale=scale, kind=self.kind),
            gate=head.gate,
            reference=reference,
            scale=scale,
            mean=mean,
            std=std,
            label_cuts=self.label_cuts,
            magnitude_given_direction=self.magnitude_given_direction,
            thresholds=self.coarse_to_fine.thresholds(),
            scale_weights=self.decomposition.weights(),
        )
        return scales.multi_scale_out, token, record

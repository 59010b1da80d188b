"""What is known beside the windows, for patches and forecast: numbers by row, and codes of whole series.

All ways in begin at zero, so an untrained model forecasts what it would without them.

Shape legend: B windows, M variables, S = B * M series, L lookback, H horizon, P patches, C covariates,
D patch width, W columns of coded statics, E width of embedded covariates.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from layers.heads import follow
from layers.patching import Cut, patches_of
from utils.types import Covariates


class CovariateInput(nn.Module):
    """Adds what covariates say to patches [S, P, D] and to forecasts [S, H]."""

    def __init__(
        self,
        *,
        known: int,
        past: int,
        static: int,
        d_model: int,
        n_features: int,
        patch_len: int,
        stride: int,
        pad_end: bool,
    ) -> None:
        """Zeros out, until trained.

        Args:
            known: covariates that are known for the horizon too.
            past: those of the lookback alone.
            static: W.
            d_model: D, and E.
            n_features: width of the LLM's states that are read.
            patch_len: as `layers.patching.PatchEmbedding` cuts patches.
            stride: as there.
            pad_end: as there.
        """
        super().__init__()
        self.cut: Cut = {"patch_len": patch_len, "stride": stride, "pad_end": pad_end}
        self.static_embedding = nn.Linear(static, d_model, bias=False) if static else None
        self.to_patches = self.to_share = None
        if known + past:
            self.of_lookback = nn.Sequential(nn.Linear(known + past, d_model), nn.GELU())
            self.to_patches = nn.Linear(d_model, d_model, bias=False)
        if known:
            self.of_horizon = nn.Sequential(nn.Linear(known, d_model), nn.GELU())
            self.to_share = nn.Linear(n_features, d_model)
        for part in (self.static_embedding, self.to_patches, self.to_share):
            if part is not None:
                for weight in part.parameters():
                    nn.init.zeros_(weight)

    def of_patches(self, covariates: Covariates) -> Tensor:
        """What to add to patches: [S, P, D], or [S, 1, D] where there are statics alone."""
        variables, length = covariates.static.shape[1], covariates.past.shape[1]
        found: list[Tensor] = []
        if self.to_patches is not None:
            rows = torch.cat([covariates.known[:, :length], covariates.past], dim=-1)
            embedded = self.of_lookback(rows).transpose(1, 2)  # [B, E, L]
            patches = patches_of(embedded, **self.cut).mean(dim=-1)  # [B, E, P]
            found.append(self.to_patches(patches.transpose(1, 2)).repeat_interleave(variables, dim=0))
        if self.static_embedding is not None:
            found.append(self.static_embedding(covariates.static.flatten(0, 1))[:, None])
        return found[0] if len(found) == 1 else found[0] + found[1]

    def of_future(self, covariates: Covariates, states: Tensor) -> Tensor | None:
        """What to add to the forecasts of series with ``states`` [S, P, d]: [S, H]; None of no known ones.

        A series' states decide how much of each embedded covariate it follows.
        """
        if self.to_share is None:
            return None
        ahead = self.of_horizon(covariates.known[:, covariates.past.shape[1] :])  # [B, H, E]
        return follow(ahead, states, self.to_share)

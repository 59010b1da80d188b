"""Known time marks of lookback and future, for patches and forecast (``--use_time_marks``).

Time-LLM leaves them out. Both ways in begin at zero, so an untrained model forecasts what it would
without them.

Shape legend: B windows, M variables, S = B * M series, L lookback, H horizon, P patches, F marks,
D patch width, W width of an embedded mark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from layers.heads import follow
from layers.patching import Cut, patches_of

HARMONICS = 4
"""Sines and cosines of a mark: an hour, or a weekday, is told from its neighbours at once."""
OFTEN = frozenset({"second", "minute", "hour", "day_of_week"})
"""Marks that take each value many times in any series. Only these get `HARMONICS`, where there are any:
most days of the year are seen once or never in training, and what was learned of them as finely misleads."""


class TimeMarks(nn.Module):
    """Embeds time marks, and adds what they say to patches [S, P, D] and to forecasts [S, H]."""

    sharp: Tensor

    def __init__(
        self,
        *,
        names: Sequence[str],
        width: int,
        d_model: int,
        n_features: int,
        patch_len: int,
        stride: int,
        pad_end: bool,
    ) -> None:
        """Zeros in, zeros out, until trained.

        Args:
            names: the F marks, as `utils.frequency.mark_names` has them.
            width: W.
            d_model: D.
            n_features: width of the LLM's states that are read.
            patch_len: as `layers.patching.PatchEmbedding` cuts patches.
            stride: as there.
            pad_end: as there.
        """
        super().__init__()
        self.cut: Cut = {"patch_len": patch_len, "stride": stride, "pad_end": pad_end}
        often = [place for place, name in enumerate(names) if name in OFTEN]
        sharp = torch.tensor(often or list(range(len(names))))
        self.register_buffer("sharp", sharp, persistent=False)
        self.embedding = nn.Sequential(
            nn.Linear(len(names) + 2 * HARMONICS * len(sharp), width), nn.GELU(), nn.Linear(width, width)
        )
        self.to_patches = nn.Linear(width, d_model, bias=False)
        self.to_share = nn.Linear(n_features, width)
        for weight in (self.to_patches.weight, self.to_share.weight, self.to_share.bias):
            nn.init.zeros_(weight)

    def embed(self, marks: Tensor) -> Tensor:
        """Marks [B, T, F] in [-0.5, 0.5] to [B, T, W]."""
        count = torch.arange(1, HARMONICS + 1, device=marks.device)
        angles = (2 * math.pi * marks[..., self.sharp, None] * count).flatten(-2)
        return self.embedding(torch.cat([marks, angles.sin(), angles.cos()], dim=-1))

    def of_patches(self, marks: Tensor, variables: int) -> Tensor:
        """What to add to the patches of M ``variables`` a window, from marks [B, L, F]: [S, P, D]."""
        embedded = self.embed(marks).transpose(1, 2)  # [B, W, L]
        patches = patches_of(embedded, **self.cut).mean(dim=-1)  # [B, W, P]
        return self.to_patches(patches.transpose(1, 2)).repeat_interleave(variables, dim=0)

    def of_future(self, marks: Tensor, states: Tensor) -> Tensor:
        """What to add to the forecasts of series with ``states`` [S, P, d], from marks [B, H, F]: [S, H].

        A series' states decide how much of each feature of the calendar it follows.
        """
        return follow(self.embed(marks), states, self.to_share)

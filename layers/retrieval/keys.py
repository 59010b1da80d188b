"""What a window is remembered by: the parts of a retrieval key, and how they are weighed.

Shape legend: R rows (one variable of one window each), L lookback, K width of a whole key.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.config import KEY_SEASONS, GRAMConfig
from utils.config_checks import ATTENTION_HEADS
from utils.windows import floored_std

ENCODER_LAYERS = 2
STATISTICS = 6
"""Mean, deviation, minimum, maximum, last value, slope."""
BLOCK = 65536
"""Keys taken to float64 at once."""
INITIAL_SHAPE_LOGIT = 1.4
"""sigmoid of it is 0.8: the shape decides at first, the statistics break ties."""


class PatternEncoder(nn.Module):
    """Normalised lookbacks [R, L] to shape embeddings [R, d_repr]: a transformer with a CLS token.

    It has no dropout, so training and evaluation are the same function and a window that is in the
    memory is at distance 0 from itself.
    """

    def __init__(self, *, seq_len: int, patch_len: int, d_repr: int) -> None:
        """Patches do not overlap here; rows at the start that fill no patch are left out."""
        super().__init__()
        self.patch_len = min(patch_len, seq_len)
        n_patches = seq_len // self.patch_len
        self.rows = n_patches * self.patch_len
        self.patch_projection = nn.Linear(self.patch_len, d_repr)
        self.cls_token = nn.Parameter(torch.randn(1, 1, d_repr) * 0.02)
        self.position = nn.Parameter(torch.randn(1, n_patches + 1, d_repr) * 0.02)
        layer = nn.TransformerEncoderLayer(
            d_repr,
            ATTENTION_HEADS,
            dim_feedforward=2 * d_repr,
            dropout=0.0,
            batch_first=True,
            norm_first=True,
        )
        self.encoder = nn.TransformerEncoder(layer, ENCODER_LAYERS, enable_nested_tensor=False)
        self.output_norm = nn.LayerNorm(d_repr)

    def forward(self, normalised: Tensor) -> Tensor:
        """[R, L] to [R, d_repr]."""
        patches = normalised[:, -self.rows :].unflatten(-1, (-1, self.patch_len))  # [R, n, patch_len]
        tokens = self.patch_projection(patches)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.position
        return self.output_norm(self.encoder(tokens)[:, 0])


def value_statistics(lookback: Tensor) -> Tensor:
    """Mean, deviation, minimum, maximum, last value and slope of lookbacks [R, L], as [R, 6].

    Standardised units; the slope is the second half's mean minus the first half's.
    """
    half = lookback.shape[-1] // 2
    slope = lookback[:, half:].mean(-1) - lookback[:, : max(half, 1)].mean(-1)
    columns = [
        lookback.mean(-1),
        lookback.std(-1, unbiased=False),
        lookback.amin(-1),
        lookback.amax(-1),
        lookback[:, -1],
        slope,
    ]
    return torch.stack(columns, dim=-1)


def raw_width(season: int, seq_len: int) -> int:
    """Rows of the raw key: seven seasons, or the lookback where that is shorter."""
    return min(KEY_SEASONS * season, seq_len)


def raw_key(lookback: Tensor, width: int) -> Tensor:
    """(x[-width:] - x_last) / sqrt(width) of lookbacks [R, L]: the latest shape, undivided.

    Its squared Euclidean distance is a mean squared difference per row.
    """
    latest = lookback[:, -width:]
    return (latest - latest[:, -1:]) / width**0.5


def mean_key(keys: Tensor) -> Tensor:
    """Mean of the rows of ``keys`` [R, K], in float64: [K]; zeros where there is none."""
    sums = torch.stack([block.sum(dim=0, dtype=torch.float64) for block in keys.split(BLOCK)])
    return sums.sum(dim=0) / max(len(keys), 1)


class WindowKeys(nn.Module):
    """Lookbacks [R, L] to keys [R, K], and the weight of each of the key's parts.

    The squared distance of two windows is the weighted sum over parts of the parts' squared
    distances, each divided by its mean over the memory. ``raw``: the last week's shape alone.
    ``learned``: the encoder's shape and the encoded statistics. ``hybrid``: all three, the two
    shapes sharing the weight sigmoid(``shape_weight``) equally.
    """

    def __init__(self, config: GRAMConfig, *, seq_len: int, patch_len: int, season: int) -> None:
        """The raw part spans seven seasons. Parts that ``retrieval_key`` does not use are not built."""
        super().__init__()
        self.kind = config.retrieval_key
        self.raw_width = raw_width(season, seq_len)
        self.widths = [self.raw_width] if self.kind != "learned" else []
        if self.kind != "raw":
            value_width = max(config.d_repr // 4, 1)
            self.pattern_encoder = PatternEncoder(seq_len=seq_len, patch_len=patch_len, d_repr=config.d_repr)
            self.value_encoder = nn.Linear(STATISTICS, value_width)
            self.shape_weight = nn.Parameter(torch.tensor(INITIAL_SHAPE_LOGIT))
            self.widths += [config.d_repr, value_width]

    def forward(self, lookback: Tensor) -> Tensor:
        """[R, L] in standardised units to [R, K]; the same function for queries and memory."""
        parts = [raw_key(lookback, self.raw_width)] if self.kind != "learned" else []
        if self.kind != "raw":
            mean = lookback.mean(-1, keepdim=True)
            std = floored_std(lookback)[:, None]
            parts += [
                self.pattern_encoder((lookback - mean) / std),
                self.value_encoder(value_statistics(lookback)),
            ]
        return torch.cat(parts, dim=-1)

    def mean_distances(self, keys: Tensor) -> Tensor:
        """Mean squared distance between two rows of ``keys`` [R, K], part by part: [parts].

        Over all ordered pairs it is twice the sum of the variances, so no pair is formed.
        """
        mean = mean_key(keys)
        squares = [(block - mean).square().sum(dim=0) for block in keys.split(BLOCK)]
        variances = torch.stack(squares).sum(dim=0) / max(len(keys), 1)
        return torch.stack([2 * v.sum() for v in variances.split(self.widths)]).float().clamp(min=1e-12)

    def column_weights(self, scale: Tensor) -> Tensor:
        """Weight of each column of a key, [K]; ``scale`` [parts] from `mean_distances`."""
        if self.kind == "raw":
            mix = scale.new_ones(1)
        else:
            shape = torch.sigmoid(self.shape_weight)
            shapes = [shape] if self.kind == "learned" else [shape / 2, shape / 2]
            mix = torch.stack([*shapes, 1 - shape])
        weights = (mix / scale).unbind()
        return torch.cat([w.expand(width) for w, width in zip(weights, self.widths, strict=True)])

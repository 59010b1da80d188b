"""PatchTST: a transformer over the patches of each variable.

Source: Nie et al., "A Time Series is Worth 64 Words", ICLR 2023. Deviation: layer norm in place of
batch norm, so that batch neighbours do not change a forecast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.heads import FlattenHead
from layers.normalization import InstanceNorm
from models.base import ForecastModel
from utils.config import Config

ENCODER_LAYERS = 3
"""``--e_layers`` of the paper."""


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N]."""

    name = "PatchTST"
    channel_independent = True
    splits_width = True
    own_settings = frozenset("e_layers d_model d_ff n_heads patch_len stride padding_patch dropout".split())

    def __init__(self, args: Config | Any) -> None:
        """Sizes from ``--e_layers`` and, as Time-LLM's, ``--d_model`` to ``--dropout``."""
        super().__init__(args)
        b = self.config.backbone
        patches = self.config.patch_count
        self.normalize_layers = InstanceNorm()
        self.padding = nn.ReplicationPad1d((0, b.stride if b.padding_patch == "end" else 0))
        self.patch_projection = nn.Linear(b.patch_len, b.d_model)
        self.position = nn.Parameter(torch.empty(patches, b.d_model).uniform_(-0.02, 0.02))
        layer = nn.TransformerEncoderLayer(
            b.d_model, b.n_heads, b.d_ff, b.dropout, activation="gelu", batch_first=True
        )
        self.encoder = nn.TransformerEncoder(
            layer, self.config.baseline.e_layers or ENCODER_LAYERS, enable_nested_tensor=False
        )
        self.dropout = nn.Dropout(b.dropout)
        self.head = FlattenHead(
            n_features=patches * b.d_model, horizon=self.config.data.pred_len, dropout=b.dropout
        )

    def forward(self, x_enc: Tensor, x_mark_enc: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N]."""
        b = self.config.backbone
        normalised, statistics = self.normalize_layers(x_enc, self.insample_mask(x_mark_enc))
        series = self.padding(normalised.transpose(1, 2))  # [B, N, L + padding]
        patches = series.unfold(-1, b.patch_len, b.stride).flatten(0, 1)  # [B * N, P, patch_len]
        states = self.encoder(self.dropout(self.patch_projection(patches) + self.position))
        forecast = self.head(states).unflatten(0, (-1, x_enc.shape[-1])).transpose(1, 2)  # [B, H, N]
        return self.normalize_layers.denormalize(forecast.float(), statistics)

"""Autoformer: series decomposition inside an encoder-decoder that attends to delays.

Source: Wu et al., "Autoformer: Decomposition Transformers with Auto-Correlation for Long-Term Series
Forecasting", NeurIPS 2021. Deviations: those of `layers.autocorrelation.AutoCorrelation`. Nothing is
instance-normalised, as published: of all baselines here it alone mixes variables and reads time marks.

Shape legend: B windows, N variables, M of them forecast (the last ones; all but with --features MS),
L lookback, H horizon, C label_len, F time marks, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.autoformer_layers import (
    AutoformerSizes,
    DecoderLayer,
    EncoderLayer,
    SeasonalNorm,
    SeriesEmbedding,
)
from layers.decomposition import SeriesDecomposition
from models.base import ForecastModel
from utils.config import Config
from utils.data_sets import SHORT_TERM
from utils.errors import UserError
from utils.frequency import mark_names

ENCODER_LAYERS = 2
"""``--e_layers`` of the paper and of the family's command line."""
DEFAULT_FREQUENCY = "h"
"""Where neither the data nor the settings say: hourly rows, the family's default."""


class Model(ForecastModel):
    """Windows [B, L, N] with marks [B, L, F] and [B, H, F] to [B, H, M]."""

    name = "Autoformer"
    offers_ms = True
    splits_width = True
    reads_time_marks = True
    own_settings = frozenset("e_layers d_layers moving_avg factor d_model d_ff n_heads dropout".split())

    def __init__(self, args: Config | Any) -> None:
        """Sizes from ``--e_layers --d_layers --moving_avg --factor --d_model --d_ff --n_heads --dropout``.

        N is ``--enc_in``, F follows from ``--freq``: a run takes both from its data.

        Raises:
            ValueError: without ``--enc_in``.
        """
        super().__init__(args)
        d, b, own = self.config.data, self.config.backbone, self.config.baseline
        if d.enc_in is None:
            raise UserError("--enc_in: Autoformer needs the number of variables, found none")
        self.n_targets = d.targets_of(d.enc_in)
        short_term = self.config.run.task_name == SHORT_TERM  # its one mark is the insample mask
        self.n_marks = 1 if short_term else len(mark_names(d.freq or DEFAULT_FREQUENCY))
        sizes = AutoformerSizes(b.d_model, b.d_ff, b.n_heads, own.factor, own.moving_avg, b.dropout)
        self.decomposition = SeriesDecomposition(own.moving_avg)
        self.encoder_embedding, self.decoder_embedding = (
            SeriesEmbedding(n_variables=d.enc_in, n_marks=self.n_marks, d_model=b.d_model, dropout=b.dropout)
            for _ in range(2)
        )
        self.encoder = nn.ModuleList(EncoderLayer(sizes) for _ in range(own.e_layers or ENCODER_LAYERS))
        self.encoder_norm = SeasonalNorm(b.d_model)
        self.decoder = nn.ModuleList(DecoderLayer(sizes, n_variables=d.enc_in) for _ in range(own.d_layers))
        self.decoder_norm = SeasonalNorm(b.d_model)
        self.projection = nn.Linear(b.d_model, d.enc_in)

    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        x_dec: Tensor | None = None,
        x_mark_dec: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """[B, L, N] with marks to [B, H, M]; of ``x_mark_dec`` the last H rows are read."""
        self._check(x_enc, x_mark_enc, x_mark_dec)
        encoded = self.encoder_embedding(x_enc, x_mark_enc)
        for layer in self.encoder:
            encoded = layer(encoded)
        encoded = self.encoder_norm(encoded)
        seasonal_start, trend = self._decoder_start(x_enc)
        states = self.decoder_embedding(seasonal_start, self._decoder_marks(x_mark_enc, x_mark_dec))
        for layer in self.decoder:
            states, residual_trend = layer(states, encoded)
            trend = trend + residual_trend
        both = self.projection(self.decoder_norm(states)) + trend  # [B, C + H, N]
        return both[:, self.config.data.label_len :, -self.n_targets :]

    def _decoder_start(self, x_enc: Tensor) -> tuple[Tensor, Tensor]:
        """(seasonal, trend) [B, C + H, N]: the last C rows' parts, then zeros and the lookback's mean."""
        d = self.config.data
        seasonal, trend = self.decomposition(x_enc)
        known = slice(d.seq_len - d.label_len, None)  # -label_len would mean everything where it is 0
        mean = x_enc.mean(dim=1, keepdim=True).expand(-1, d.pred_len, -1)
        return (
            torch.cat([seasonal[:, known], torch.zeros_like(mean)], dim=1),
            torch.cat([trend[:, known], mean], dim=1),
        )

    def _decoder_marks(self, x_mark_enc: Tensor | None, x_mark_dec: Tensor | None) -> Tensor | None:
        """Time marks [B, C + H, F] of the rows that the decoder sees."""
        if x_mark_enc is None or x_mark_dec is None:
            return None
        d = self.config.data
        return torch.cat([x_mark_enc[:, d.seq_len - d.label_len :], x_mark_dec[:, -d.pred_len :]], dim=1)

    def _check(self, x_enc: Tensor, x_mark_enc: Tensor | None, x_mark_dec: Tensor | None) -> None:
        """Windows and marks have the sizes that this model was built for, or there is a clear error."""
        d = self.config.data
        if x_enc.dim() != 3 or x_enc.shape[1:] != (d.seq_len, d.enc_in):
            raise ValueError(f"x_enc: expected [B, {d.seq_len}, {d.enc_in}], found {list(x_enc.shape)}")
        for name, marks, rows in (
            ("x_mark_enc", x_mark_enc, d.seq_len),
            ("x_mark_dec", x_mark_dec, d.pred_len),
        ):
            if not self.n_marks:
                continue
            found = "none" if marks is None else list(marks.shape)
            if marks is None or marks.shape[1] < rows or marks.shape[-1] != self.n_marks:
                raise ValueError(
                    f"{name}: Autoformer reads time marks, expected [B, {rows}, {self.n_marks}] "
                    f"({self.config.data.freq or DEFAULT_FREQUENCY}), found {found}"
                )

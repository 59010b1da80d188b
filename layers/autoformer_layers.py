"""The parts of Autoformer: embedding, seasonal norm, encoder layer and decoder layer.

Source: Wu et al., Autoformer, NeurIPS 2021, section 3.1 and its published code.

Shape legend: B windows, T steps of the decoder, L lookback, N variables, F time marks, D model width.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from layers.autocorrelation import AutoCorrelation
from layers.decomposition import SeriesDecomposition


@dataclass(frozen=True)
class AutoformerSizes:
    """What all layers share."""

    d_model: int
    d_ff: int
    n_heads: int
    factor: float
    """Of `layers.autocorrelation.delay_count`."""
    moving_avg: int
    """Rows of the moving average."""
    dropout: float

    def attention(self) -> AutoCorrelation:
        """A new auto-correlation of these sizes."""
        return AutoCorrelation(d_model=self.d_model, n_heads=self.n_heads, factor=self.factor)

    def feed_forward(self) -> nn.Sequential:
        """A new step-wise network, D to D; without biases, which a decomposition would take out again."""
        return nn.Sequential(
            nn.Linear(self.d_model, self.d_ff, bias=False),
            nn.GELU(),
            nn.Dropout(self.dropout),
            nn.Linear(self.d_ff, self.d_model, bias=False),
            nn.Dropout(self.dropout),
        )


class SeriesEmbedding(nn.Module):
    """Values [B, T, N] and time marks [B, T, F] to [B, T, D]; positions are not embedded.

    A width-3 circular convolution over time lifts the values, a linear map the marks.
    """

    def __init__(self, *, n_variables: int, n_marks: int, d_model: int, dropout: float) -> None:
        """``n_marks`` may be 0: then no marks are read."""
        super().__init__()
        self.value_embedding = nn.Conv1d(
            n_variables, d_model, kernel_size=3, padding=1, padding_mode="circular", bias=False
        )
        nn.init.kaiming_normal_(self.value_embedding.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.mark_embedding = nn.Linear(n_marks, d_model, bias=False) if n_marks else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, marks: Tensor | None) -> Tensor:
        """[B, T, N] and [B, T, F] to [B, T, D]."""
        embedded = self.value_embedding(values.transpose(1, 2)).transpose(1, 2)
        if self.mark_embedding is not None:
            embedded = embedded + self.mark_embedding(marks)
        return self.dropout(embedded)


class SeasonalNorm(nn.Module):
    """Layer norm over D, then the mean over time taken out, so that only the seasonal part is left."""

    def __init__(self, d_model: int) -> None:
        """Width D."""
        super().__init__()
        self.norm = nn.LayerNorm(d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] to [B, T, D]."""
        normed = self.norm(x)
        return normed - normed.mean(dim=1, keepdim=True)


class EncoderLayer(nn.Module):
    """[B, L, D] to [B, L, D]: auto-correlation and feed-forward, the trend thrown away after each."""

    def __init__(self, sizes: AutoformerSizes) -> None:
        """Of these sizes."""
        super().__init__()
        self.attention = sizes.attention()
        self.feed_forward = sizes.feed_forward()
        self.decomposition = SeriesDecomposition(sizes.moving_avg)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        x, _ = self.decomposition(x + self.dropout(self.attention(x, x)))
        x, _ = self.decomposition(x + self.feed_forward(x))
        return x


class DecoderLayer(nn.Module):
    """Seasonal states [B, T, D] to (seasonal states [B, T, D], their trend [B, T, N]).

    The trends taken out after self-attention, attention to the encoder, and feed-forward are summed
    and projected to the variables: the progressive part of the forecast's trend.
    """

    def __init__(self, sizes: AutoformerSizes, *, n_variables: int) -> None:
        """Of these sizes."""
        super().__init__()
        self.self_attention = sizes.attention()
        self.cross_attention = sizes.attention()
        self.feed_forward = sizes.feed_forward()
        self.decomposition = SeriesDecomposition(sizes.moving_avg)
        self.trend_projection = nn.Conv1d(
            sizes.d_model, n_variables, kernel_size=3, padding=1, padding_mode="circular", bias=False
        )
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor]:
        """[B, T, D] and the encoder's states [B, L, D] to ([B, T, D], [B, T, N])."""
        x, first = self.decomposition(x + self.dropout(self.self_attention(x, x)))
        x, second = self.decomposition(x + self.dropout(self.cross_attention(x, encoded)))
        x, third = self.decomposition(x + self.feed_forward(x))
        trend = self.trend_projection((first + second + third).transpose(1, 2))  # [B, N, T]
        return x, trend.transpose(1, 2)

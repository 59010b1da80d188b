"""Series to patch embeddings.

Shape legend: S series (windows x variables), C channels read together, L rows, P patches, D width.
"""

from __future__ import annotations

from typing import TypedDict

import torch.nn.functional as F
from torch import Tensor, nn


class Cut(TypedDict):
    """How rows are cut into patches."""

    patch_len: int
    stride: int
    pad_end: bool


def patches_of(rows: Tensor, *, patch_len: int, stride: int, pad_end: bool) -> Tensor:
    """Rows [..., L] cut into overlapping patches [..., P, patch_len], as a `PatchEmbedding` cuts them."""
    if pad_end:
        rows = F.pad(rows, (0, stride), mode="replicate")
    return rows.unfold(-1, patch_len, stride)


class PatchEmbedding(nn.Module):
    """Series [S, C, L] to patch embeddings [S, P, D].

    The series is cut into overlapping patches, after repeating its last value for one stride
    where ``pad_end`` is set; a width-3 circular convolution over the patches lifts them to D.
    Source: Nie et al., PatchTST, ICLR 2023, section 3.1, and Time-LLM's published code.
    """

    def __init__(
        self, *, channels: int, d_model: int, patch_len: int, stride: int, pad_end: bool, dropout: float
    ) -> None:
        """``patch_len`` and ``stride`` in rows; ``channels`` is C, 1 with channel independence."""
        super().__init__()
        self.patch_len = patch_len
        self.stride = stride
        self.pad_end = pad_end
        self.value_embedding = nn.Conv1d(
            channels * patch_len, d_model, kernel_size=3, padding=1, padding_mode="circular", bias=False
        )
        nn.init.kaiming_normal_(self.value_embedding.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """[S, C, L] to [S, P, D]."""
        patches = patches_of(  # [S, C, P, patch_len]
            series, patch_len=self.patch_len, stride=self.stride, pad_end=self.pad_end
        )
        columns = patches.transpose(2, 3).flatten(1, 2)  # [S, C * patch_len, P]
        embedded = self.value_embedding(columns).transpose(1, 2)  # [S, P, D]
        return self.dropout(embedded)

"""Series to patch embeddings.

Shape legend: S series (windows x variables), L rows, P patches, D model width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Series [S, L] to patch embeddings [S, P, D].

    The series is cut into overlapping patches, after repeating its last value for one stride
    where ``pad_end`` is set; a width-3 circular convolution over the patches lifts them to D.
    Source: Nie et al., PatchTST, ICLR 2023, section 3.1, and Time-LLM's published code.
    """

    def __init__(self, *, d_model: int, patch_len: int, stride: int, pad_end: bool, dropout: float) -> None:
        """``patch_len`` and ``stride`` in rows."""
        super().__init__()
        self.patch_len = patch_len
        self.stride = stride
        self.pad_end = pad_end
        self.value_embedding = nn.Conv1d(
            patch_len, d_model, kernel_size=3, padding=1, padding_mode="circular", bias=False
        )
        nn.init.kaiming_normal_(self.value_embedding.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """[S, L] to [S, P, D]."""
        if self.pad_end:
            series = F.pad(series.unsqueeze(1), (0, self.stride), mode="replicate").squeeze(1)
        patches = series.unfold(-1, self.patch_len, self.stride)  # [S, P, patch_len]
        embedded = self.value_embedding(patches.transpose(1, 2)).transpose(1, 2)  # [S, P, D]
        return self.dropout(embedded)

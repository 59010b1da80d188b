"""What the frozen LLM is told about a window: the data, the task, and the window's statistics.

Source: Time-LLM (Jin et al., ICLR 2024, section 3, Prompt-as-Prefix), in our own words. Deviations:
fixed precision, lags without 0, its flanks and mirrors, and padding under a mask, before what
differs between prompts.

Shape legend: S series (windows times variables), L lookback, T tokens of the longest prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

N_LAGS = 5
"""Time-LLM's number of lags."""
LAG_DECIMALS = 5
"""Autocorrelations this close are equal: rounding noise of the FFT must not order them."""

PEAK_BONUS = 4.0
"""Lifts a local maximum above every other lag; correlations lie within -1 and 1."""


class PromptStatistics(NamedTuple):
    """The facts about each window that go into its prompt."""

    minimum: Tensor
    """[S] float32."""
    maximum: Tensor
    """[S] float32."""
    median: Tensor
    """[S] float32, the lower one where L is even."""
    trend: Tensor
    """[S] float32, sum of first differences: above 0 is upward."""
    lags: Tensor
    """[S, min(5, L // 2)] int64 in 1 .. L // 2, the strongest first."""


@torch.no_grad()
def window_statistics(x: Tensor) -> PromptStatistics:
    """Statistics of windows [S, L], in float32 whatever the precision around it.

    The lags are those of the largest circular autocorrelation (of the deviations from the mean,
    which ranks lags as the raw values do), out of 1 .. L // 2, local maxima before all others: the
    neighbours 1, 2, 3, ... of lag 0 say only that the series is smooth. The shorter of two equal
    ones wins.
    """
    with torch.autocast(x.device.type, enabled=False):
        x = x.detach().float()
        length = x.shape[-1]
        # Sorting, not torch.median: that has no deterministic kernel on a GPU.
        ordered = x.sort(dim=-1).values
        return PromptStatistics(
            minimum=ordered[:, 0],
            maximum=ordered[:, -1],
            median=ordered[:, (length - 1) // 2],
            trend=x[:, -1] - x[:, 0],  # = the sum of the first differences
            lags=_strongest_lags(x),
        )


def _strongest_lags(x: Tensor) -> Tensor:
    """Lags [S, min(5, L // 2)] of the largest circular autocorrelation of windows [S, L]."""
    length = x.shape[-1]
    centred = x - x.mean(dim=-1, keepdim=True)
    spectrum = torch.fft.rfft(centred, dim=-1)
    correlation = torch.fft.irfft(spectrum.abs().square(), n=length, dim=-1)  # [S, L]
    energy = correlation[:, :1].clamp(min=torch.finfo(x.dtype).tiny)
    relative = (correlation / energy).round(decimals=LAG_DECIMALS)
    candidates = relative[:, 1 : length // 2 + 1]
    after = relative.roll(-1, dims=-1)[:, 1 : length // 2 + 1]
    is_peak = (candidates > relative[:, : length // 2]) & (candidates >= after)
    candidates = candidates + is_peak * PEAK_BONUS
    return candidates.argsort(dim=-1, descending=True, stable=True)[:, :N_LAGS] + 1


class PromptBuilder:
    """Windows to prompts, as text or as tokens for the LLM."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        description: str,
        *,
        seq_len: int,
        pred_len: int,
        digits: int,
    ) -> None:
        """Fix what all prompts share.

        Args:
            tokenizer: the LLM's.
            description: what the data are, one or a few sentences.
            seq_len: lookback L, rows.
            pred_len: horizon H, rows.
            digits: decimals of the statistics.
        """
        self.tokenizer = tokenizer
        self.seq_len = seq_len
        self.digits = digits
        self.constant_text = (
            f"About the data: {' '.join(description.split())}\n"
            f"Goal: continue a column by {pred_len} rows after {seq_len} known ones.\n"
        )
        """The beginning of every prompt: the data and the task."""
        self._constant_ids = self._constant_tokens()

    @property
    def n_constant(self) -> int:
        """How many tokens at the start of `tokens` are the same in every prompt."""
        return len(self._constant_ids)

    def statistics_text(
        self, minimum: float, maximum: float, median: float, trend: float, lags: Sequence[int]
    ) -> str:
        """The end of a prompt: one window's statistics, with the fixed number of decimals."""
        low, high, middle = (self._number(v) for v in (minimum, maximum, median))
        direction = "rising" if trend > 0 else "falling" if trend < 0 else "level"
        repeats = " ".join(str(lag) for lag in lags) or "none"
        return f"Range {low} to {high}, median {middle}, {direction}, strongest lags {repeats}."

    def texts(self, statistics: PromptStatistics) -> list[str]:
        """One prompt per window; the statistics leave the device in a single transfer."""
        floats = torch.stack(statistics[:4], dim=-1)
        rows = torch.cat([floats, statistics.lags.to(floats.dtype)], dim=-1).tolist()
        return [
            self.constant_text
            + self.statistics_text(row[0], row[1], row[2], row[3], [int(lag) for lag in row[4:]])
            for row in rows
        ]

    def tokens(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and mask, both [S, T] int64 on x's device, of the prompts of windows [S, L].

        The first `n_constant` columns are the same in every row. Padding (mask 0) comes right behind
        them, so each prompt's last token borders on what follows it.
        Special tokens are those that the tokenizer adds by itself, but for a closing end-of-text.

        Raises:
            ValueError: the windows are not [S, L] with a window at least.
        """
        if x.dim() != 2 or x.shape[1] != self.seq_len or not len(x):
            raise ValueError(f"prompt windows: expected [S, {self.seq_len}], S > 0, found {list(x.shape)}")
        rows = self._encode(self.texts(window_statistics(x)))
        width = max(len(ids) for ids in rows)
        pad = self.tokenizer.pad_token_id or 0
        start = self._constant_ids
        ids_and_mask = torch.tensor(
            [
                [start + [pad] * (width - len(ids)) + ids for ids in rows],
                [[1] * len(start) + [0] * (width - len(ids)) + [1] * len(ids) for ids in rows],
            ],
            dtype=torch.int64,
        ).to(x.device)
        return ids_and_mask[0], ids_and_mask[1]

    def _number(self, value: float) -> str:
        """Fixed precision; what rounds to zero has no sign."""
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts behind their common start, in one call."""
        if not self._constant_ids:
            return self._encode_whole(texts)
        ends = [text.removeprefix(self.constant_text) for text in texts]
        return self.tokenizer(ends, add_special_tokens=False, return_attention_mask=False)["input_ids"]

    def _encode_whole(self, texts: list[str]) -> list[list[int]]:
        """Token ids with the tokenizer's special tokens, but for a closing end-of-text token.

        BERT's kind, which frames its input, keeps its closing token.
        """
        encoded = self.tokenizer(texts, add_special_tokens=True, return_attention_mask=False)["input_ids"]
        if self.tokenizer.cls_token_id is not None:
            return encoded
        end = self.tokenizer.eos_token_id
        return [ids[:-1] if ids and ids[-1] == end else ids for ids in encoded]

    def _constant_tokens(self) -> list[int]:
        """Tokens of the constant text; none where this tokenizer joins it with what follows.

        Tokenising both parts apart must give the tokens of the whole, which two unlike windows show.
        """
        starts = []
        for values in ((-1.5, 2.25, 0.0, 1.0, [1, 2]), (-0.75, 13.0, -8.5, -1.0, [24, 168])):
            end = self.statistics_text(*values)
            whole = self._encode_whole([self.constant_text + end])[0]
            part = self.tokenizer(end, add_special_tokens=False)["input_ids"]
            if whole[-len(part) :] != part:
                return []
            starts.append(whole[: -len(part)])
        return starts[0] if starts[0] == starts[1] else []

"""What the frozen LLM is told about a window: the data, the task, and the window's statistics.

Source: Time-LLM (Jin et al., ICLR 2024, section 3, Prompt-as-Prefix), in our own words. Deviations:
fixed precision, lags without 0, its flanks and mirrors, and padding under a mask, before what
differs between prompts.

A prompt is a property of its window alone: loaders make it beside the window (`WindowPrompts`), a model
that is given none makes the same. All that differs from window to window is computed in float64, each
row by itself in NumPy on the CPU, so neither neighbours nor threads nor a device move a digit.

Shape legend: B windows, N variables, M of them forecast, S series (B * M), L lookback, K tokens of the
longest prompt at hand, T tokens of a prompt as the LLM is given it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from layers.normalization import EPSILON
from utils.windows import per_series

N_LAGS = 5
"""Time-LLM's number of lags."""
LAG_DECIMALS = 5
"""Autocorrelations this close are equal: rounding noise of the FFT must not order them."""

PEAK_BONUS = 4.0
"""Lifts a local maximum above every other lag; correlations lie within -1 and 1."""
BLOCK = 512
"""Series whose prompts are made at once: bounds what that takes beside many variables."""
AROUND_TEXT = 16
"""Tokens that a text's age and line take in a prompt, at most."""
NO_TOKEN = -1
"""Behind the end of a prompt that is shorter than others."""
TRIED_DECIMALS = 1000
"""At most so many endings of a number are tried for the longest one: all of three digits."""


class PromptStatistics(NamedTuple):
    """The facts about each window that go into its prompt."""

    minimum: Tensor
    """[S] float64."""
    maximum: Tensor
    """[S] float64."""
    median: Tensor
    """[S] float64, the lower one where L is even."""
    trend: Tensor
    """[S] float64, sum of first differences: above 0 is upward."""
    lags: Tensor
    """[S, min(5, L // 2)] int64 in 1 .. L // 2, the strongest first."""


def normalised(x: Tensor, observed: Tensor | None = None) -> Tensor:
    """Lookbacks [S, L] with mean 0 and deviation 1, float64 on the CPU: `InstanceNorm`'s, but exact.

    ``observed`` [S, L] is 1 where a row exists: the others become 0 and count in no statistic.
    """
    rows = _rows(x)
    seen = np.ones_like(rows) if observed is None else _rows(observed)
    count = seen.sum(axis=-1, keepdims=True)
    for _ in range(2):  # around itself the mean is right to the last place, as in `InstanceNorm`
        rows = rows - (rows * seen).sum(axis=-1, keepdims=True) / count
    variance = (rows * rows * seen).sum(axis=-1, keepdims=True) / count
    return torch.from_numpy(rows / np.sqrt(variance + EPSILON) * seen)


def window_statistics(x: Tensor) -> PromptStatistics:
    """Statistics of windows [S, L], in float64 whatever the precision around it, without gradient.

    The lags are those of the largest circular autocorrelation (of the deviations from the mean,
    which ranks lags as the raw values do), out of 1 .. L // 2, local maxima before all others: the
    neighbours 1, 2, 3, ... of lag 0 say only that the series is smooth. The shorter of two equal
    ones wins.
    """
    rows = _rows(x)
    middle = (rows.shape[-1] - 1) // 2
    found = (
        rows.min(axis=-1),
        rows.max(axis=-1),
        np.partition(rows, middle, axis=-1)[:, middle],
        rows[:, -1] - rows[:, 0],  # = the sum of the first differences
        _strongest_lags(rows),
    )
    return PromptStatistics(*(torch.from_numpy(np.ascontiguousarray(values)) for values in found))


def _rows(x: Tensor) -> NDArray[np.float64]:
    """Windows [S, L] as float64, row behind row."""
    return np.ascontiguousarray(x.detach().to("cpu", torch.float64).numpy())


def _strongest_lags(x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Lags [S, min(5, L // 2)] of the largest circular autocorrelation of windows [S, L].

    NumPy adds up and transforms one row at a time, and the other steps round each number by itself.
    """
    length = x.shape[-1]
    half = length // 2
    spectrum = np.fft.rfft(x - x.mean(axis=-1, keepdims=True), axis=-1)
    power = spectrum.real * spectrum.real + spectrum.imag * spectrum.imag
    correlation = np.fft.irfft(power, n=length, axis=-1)  # [S, L]
    energy = np.maximum(correlation[:, :1], np.finfo(np.float64).tiny)
    relative = np.round(correlation / energy, LAG_DECIMALS)
    rank = relative[:, 1 : half + 1]
    after = np.roll(relative, -1, axis=-1)[:, 1 : half + 1]
    rank = rank + PEAK_BONUS * ((rank > relative[:, :half]) & (rank >= after))
    lags = np.empty((len(x), min(N_LAGS, half)), dtype=np.int64)
    every = np.arange(len(x))
    for place in range(lags.shape[1]):
        lags[:, place] = best = rank.argmax(axis=-1)  # the first of equal ones
        rank[every, best] = -np.inf
    return lags + 1


def _texts_of(words: Tensor) -> list[str]:
    """What `utils.types.Batch.words` says, for series [S, U]."""
    return [bytes(row.tolist()).rstrip(b"\0").decode() for row in words.cpu()]


class WindowPrompts:
    """What makes the prompts of a batch's windows: for loaders, whose workers it is handed to."""

    def __init__(self, builder: PromptBuilder, *, targets: int | None, masked: bool) -> None:
        """Keep the builder, and how windows are read.

        Args:
            builder: makes text and tokens.
            targets: how many variables are forecast, the last ones (``--features MS``); None: all.
            masked: the time marks are insample masks (series without dates).
        """
        self.builder, self.targets, self.masked = builder, targets, masked

    def __call__(
        self,
        x: Tensor,
        x_mark: Tensor | None = None,
        words: Tensor | None = None,
        *,
        text: Tensor | None = None,
        age: Tensor | None = None,
    ) -> Tensor:
        """Token ids [B, M, K] of windows [B, L, N], their words and texts, as in `utils.types.Batch`."""
        read = x if self.targets is None else x[..., -self.targets :]
        observed = per_series(x_mark.expand_as(read)) if self.masked and x_mark is not None else None
        told = words.flatten(0, 1) if words is not None and words.numel() else None
        seen = None
        if self.builder.text_room is not None and text is not None and age is not None:
            seen = self.builder.text_parts(text, age, variables=read.shape[-1])
        return self.builder.ids(per_series(read), observed, told, seen).unflatten(0, (len(x), -1))


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
        texts: tuple[int, int] | None = None,
    ) -> None:
        """Fix what all prompts share.

        Args:
            tokenizer: the LLM's.
            description: what the data are, one or a few sentences.
            seq_len: lookback L, rows.
            pred_len: horizon H, rows.
            digits: decimals of the statistics.
            texts: how many texts of how many tokens each stand in a prompt at most; None: none do.
        """
        self.text_room = texts
        self.tokenizer = tokenizer
        self.room = 0
        """Tokens that what is told of a series takes at most, behind the window's statistics."""
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

    def texts(self, statistics: PromptStatistics, told: Sequence[str] | None = None) -> list[str]:
        """One prompt per window; ``told`` of its series in words stands at its end."""
        numbers = zip(*(values.tolist() for values in statistics), strict=True)
        found = [self.constant_text + self.statistics_text(*row) for row in numbers]
        if told is None:
            return found
        return [f"{text} {words}" if words else text for text, words in zip(found, told, strict=True)]

    def tokens_of(self, told: Sequence[str]) -> int:
        """How many tokens the longest of what is told of series takes."""
        return max(self._lengths([f" {words}" for words in dict.fromkeys(told)]), default=0)

    def ids(
        self,
        x: Tensor,
        observed: Tensor | None = None,
        words: Tensor | None = None,
        texts: Sequence[str] | None = None,
    ) -> Tensor:
        """Token ids of the prompts of lookbacks [S, L], each by itself; a function of the window alone.

        The first `n_constant` are the same in every prompt. Special tokens are those that the tokenizer
        adds by itself, but for a closing end-of-text.

        Args:
            x: in standardised units, on any device.
            observed: 1 where a row exists, [S, L]; everywhere where None.
            words: what is told of each series, UTF-8 [S, U] uint8, zeros behind its end; nothing where None.
            texts: what each says of texts, S of them, of `text_parts`, before the statistics.

        Returns:
            [S, K] int64 on the CPU, `NO_TOKEN` behind the end of shorter prompts.

        Raises:
            ValueError: the windows are not [S, L] with a window at least.
        """
        if x.dim() != 2 or x.shape[1] != self.seq_len or not len(x):
            raise ValueError(f"prompt windows: expected [S, {self.seq_len}], S > 0, found {list(x.shape)}")
        x = x.detach().to("cpu", torch.float64)
        seen = x.new_ones(x.shape) if observed is None else observed.detach().to(x)
        told = None if words is None else _texts_of(words)
        rows: list[list[int]] = []
        for place, (lookbacks, those_seen) in enumerate(zip(x.split(BLOCK), seen.split(BLOCK), strict=True)):
            own = None if told is None else told[place * BLOCK :][:BLOCK]
            whole = self.texts(window_statistics(normalised(lookbacks, those_seen)), own)
            if texts is not None:
                begin, parts = len(self.constant_text), texts[place * BLOCK :][:BLOCK]
                whole = [t[:begin] + part + t[begin:] for t, part in zip(whole, parts, strict=True)]
            rows += self._encode(whole)
        ids = np.full((len(rows), max(map(len, rows))), NO_TOKEN, dtype=np.int64)
        for place, row in enumerate(rows):
            ids[place, : len(row)] = row
        return torch.from_numpy(ids)

    def text_parts(self, text: Tensor, age: Tensor, *, variables: int) -> list[str]:
        """What prompts say of the texts that their windows see, oldest first; series by series, S of them.

        Args:
            text: tokens [B, V, C, T], -1 behind the end of shorter ones.
            age: [B, V, C], -1 where there is no text.
            variables: M.
        """
        parts = []
        for window, ages in zip(text.tolist(), age.tolist(), strict=True):
            told = ["".join(map(self._line, *pair)) for pair in zip(window, ages, strict=True)]
            parts += told if len(told) == variables else told * variables
        return parts

    def _line(self, tokens: list[float], age: int) -> str:
        """One text in a line of its own; nothing where there is none."""
        if age < 0:
            return ""
        ids = [int(t) for t in tokens if t >= 0]
        own = str(self.tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        return f"Known for {age} rows: {' '.join(own.split())}\n"

    def padded(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts as the LLM is given them: token ids and mask, both [S, T] int64, on the device of ``ids``.

        T is `width` and `room` whatever the windows, so equal prompts are computed alike in any batch;
        only where a prompt is longer after all, it is as long as that. Padding (mask 0) comes right behind
        the tokens that all begin with, so each prompt's last token borders on what follows it; its ids are
        the prompt's first, since a padding token may lie beyond the LLM's table. No value is read.

        Args:
            ids: [S, K] as `ids` gives them.
        """
        longest = ids.shape[1]
        width = max(self.width + self.room, longest)
        place = torch.arange(width, device=ids.device)
        missing = width - (ids != NO_TOKEN).sum(dim=-1, keepdim=True)  # [S, 1]
        constant = place < self.n_constant
        source = torch.where(constant, place, place - missing)  # [S, T]
        mask = constant | (source >= self.n_constant)
        found = ids.gather(1, source.clamp(min=0, max=longest - 1))
        return torch.where(mask, found, found[:, :1]), mask.to(torch.int64)

    def tokens(self, x: Tensor, observed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`ids` of lookbacks [S, L], `padded`: token ids and mask, both [S, T] int64 on x's device."""
        return self.padded(self.ids(x, observed).to(x.device))

    @cached_property
    def width(self) -> int:
        """Tokens that the longest possible prompt takes: the one length that all are padded to.

        A window's numbers are bounded: with mean 0 and deviation 1, L of them lie within the root of
        L - 1, and their median within 1. Each place of the text is tried with all that may stand there,
        and the longest are added up, as if tokens did not reach from one number into the next.
        """
        plain = self._number(0)
        texts = [self.statistics_text(0, 0, 0, slope, [1] * self._n_lags) for slope in (-1.0, 0.0, 1.0)]
        longest = max(map(len, self._encode([self.constant_text + text for text in texts])))
        zero = self._lengths([f" {plain},"])[0]
        base = longest - 3 * zero
        most = math.ceil(math.sqrt(max(0, self.seq_len - 1)))
        endings = max(self._lengths(self._endings())) - zero
        for ceiling in (most, most, 1):
            wholes = [f" {sign}{whole}{plain[1:]}," for sign in ("", "-") for whole in range(ceiling + 1)]
            base += max(self._lengths(wholes)) + endings
        lags = self._lengths([f" {lag}" for lag in range(1, self.seq_len // 2 + 1)])
        if self.text_room is not None:
            base += self.text_room[0] * (self.text_room[1] + AROUND_TEXT)
        return base + sum(sorted(lags, reverse=True)[: self._n_lags]) - sum(lags[:1]) * self._n_lags

    def _endings(self) -> list[str]:
        """Numbers with all decimals that there are; of more than three, with some of them."""
        if not self.digits:
            return [" 0,"]
        step = max(1, 10**self.digits // TRIED_DECIMALS)
        return [f" 0.{i:0{self.digits}d}," for i in range(0, 10**self.digits, step)]

    def _lengths(self, texts: list[str]) -> list[int]:
        """How many tokens each of these pieces takes."""
        if not texts:
            return []
        found = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [len(ids) for ids in found]

    @property
    def _n_lags(self) -> int:
        """How many lags a prompt names."""
        return min(N_LAGS, self.seq_len // 2)

    def _number(self, value: float) -> str:
        """Fixed precision; what rounds to zero has no sign."""
        text = f"{value:.{self.digits}f}"
        return text.removeprefix("-") if float(text) == 0 else text

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of prompts, in one call; their common start is taken from the first."""
        if not self._constant_ids:
            return self._encode_whole(texts)
        ends = [text.removeprefix(self.constant_text) for text in texts]
        found = self.tokenizer(ends, add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return [self._constant_ids + ids for ids in found]

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

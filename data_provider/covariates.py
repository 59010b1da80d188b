"""What is known beside a series and is not forecast: numbers by row, and what holds of a whole variable.

Shape legend: T rows, M variables forecast, C columns of one kind, W columns of coded statics, L lookback,
H horizon, U bytes of the longest words.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from logging import getLogger
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_provider import scaling
from utils.errors import UserError
from utils.types import RowCovariates, Standardisation

log = getLogger(__name__)
FloatArray = NDArray[np.float64]
LARGEST = 1e9
"""Deviations from the mean beyond which sums of squares come near the end of float32's range."""


class CovariateColumns(NamedTuple):
    """Which columns of a table are covariates."""

    known: tuple[str, ...] = ()
    """For the horizon too."""
    past: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Statics:
    """What holds of each variable that is forecast."""

    categories: Mapping[str, tuple[str, ...]]
    """[M] by column, as text."""
    numbers: Mapping[str, tuple[float, ...]]
    """[M] by column."""

    def words(self) -> list[str]:
        """What is told of each variable: [M]."""
        columns = {name: list(values) for name, values in self.categories.items()}
        columns |= {name: [f"{value:g}" for value in values] for name, values in self.numbers.items()}
        rows = zip(*columns.values(), strict=True)
        return [
            "About the series: "
            + ", ".join(f"{name} {value}" for name, value in zip(columns, row, strict=True))
            + "."
            for row in rows
        ]


@dataclass(frozen=True, eq=False)
class CovariateValues:
    """What is known beside a series, in original units."""

    columns: CovariateColumns
    known: FloatArray
    """[T or more, C]; rows behind the series' end are of the future."""
    past: FloatArray
    """[T, C]."""
    statics: Statics | None = None

    def update(self, digest: Any) -> None:
        """Add all of it to a hash."""
        digest.update(repr(self.columns).encode())
        for values in (self.known, self.past):
            digest.update(np.ascontiguousarray(values, dtype="<f8").data)
        if self.statics is not None:
            digest.update(repr((self.statics.categories, self.statics.numbers)).encode())


def no_values(rows: int, columns: CovariateColumns | None = None) -> CovariateValues:
    """Beside so many rows nothing by row."""
    return CovariateValues(columns or CovariateColumns(), np.empty((rows, 0)), np.empty((rows, 0)))


def content_with(content_hash: str, covariates: CovariateValues) -> str:
    """The hash of a series together with what is known beside it."""
    digest = hashlib.sha256(content_hash.encode())
    covariates.update(digest)
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class RowsBeside:
    """What is known beside a series, as windows are cut from it: standardised and coded."""

    known: Tensor
    """[T or more, C] float32."""
    past: Tensor
    """[T or more, C] float32."""
    static: Tensor
    """[M, W] float32; no columns where there is nothing."""
    words: Tensor
    """[M, U] uint8; no columns where there is nothing."""

    def of_window(self, start: int, middle: int, end: int, chosen: slice) -> dict[str, Tensor]:
        """The fields of a `Batch` item from row ``start``, its horizon from ``middle``, of them."""
        found = {"known": self.known[start:end], "past": self.past[start:middle]}
        found |= {"static": self.static[chosen], "words": self.words[chosen]}
        return {name: values for name, values in found.items() if values.numel()}

    def of_rows(self, start: Tensor, variable: Tensor, *, seq_len: int, span: int) -> RowCovariates:
        """Of rows of the memory: windows of ``span`` rows from ``start`` [R] on, of ``variable`` [R]."""
        rows = start[:, None] + torch.arange(span, device=start.device)
        static = self.static[variable] if self.static.shape[1] else self.static.new_empty(len(start), 0)
        return RowCovariates(self.known[rows], self.past[rows[:, :seq_len]], static)


@dataclass(frozen=True, eq=False)
class Coding:
    """How what is known beside a series becomes what a model reads; fitted on the training part."""

    columns: CovariateColumns
    known: Standardisation
    past: Standardisation
    numbers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """Mean and deviation over the variables, by column."""
    categories: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Those that there were, by column."""
    statics: Statics | None = None
    """Of the variables that it was fitted on."""

    @classmethod
    def fit(cls, covariates: CovariateValues, *, begin: int, end: int) -> Coding:
        """By the training rows from ``begin`` to ``end``, and all variables."""
        known, past = (
            scaling.fit(torch.from_numpy(values[begin:end]))
            if values.shape[1]
            else Standardisation(torch.empty(0), torch.empty(0))
            for values in (covariates.known, covariates.past)
        )
        statics = covariates.statics
        if statics is None:
            return cls(covariates.columns, known, past)
        numbers = {
            name: tuple(float(part) for part in scaling.fit(torch.tensor(values).double()[:, None]))
            for name, values in statics.numbers.items()
        }
        found = {name: tuple(sorted(set(values))) for name, values in statics.categories.items()}
        return cls(covariates.columns, known, past, numbers, found, statics)  # type: ignore[arg-type]

    @property
    def static_width(self) -> int:
        """W: a column for each number and for each category."""
        return len(self.numbers) + sum(map(len, self.categories.values()))

    def rows(self, covariates: CovariateValues, *, name: str) -> RowsBeside:
        """What windows are cut from; ``name`` is what messages call the series.

        Raises:
            UserError: numbers beyond what can be computed with.
        """
        known, past = (
            _scaled(*part, name=name)
            for part in (
                (self.columns.known, covariates.known, self.known),
                (self.columns.past, covariates.past, self.past),
            )
        )
        statics = covariates.statics or self.statics
        if statics is None:
            return RowsBeside(known, past, torch.empty(1, 0), torch.empty(1, 0, dtype=torch.uint8))
        return RowsBeside(known, past, self._coded(statics, name=name), words_as_bytes(statics.words()))

    def _coded(self, statics: Statics, *, name: str) -> Tensor:
        """[M, W]; a category that there was none of in training has zeros, and is named."""
        columns = [
            [(value - mean) / std for value in statics.numbers[column]]
            for column, (mean, std) in self.numbers.items()
        ]
        for column, known in self.categories.items():
            unseen = sorted(set(statics.categories[column]) - set(known))
            if unseen:
                log.warning(
                    "%s: --static %s: %s not seen in training (%s): told to the LLM, with no effect learned",
                    name, column, ", ".join(map(repr, unseen)), ", ".join(map(repr, known)),
                )  # fmt: skip
            columns += [[float(value == one) for value in statics.categories[column]] for one in known]
        return torch.tensor(columns, dtype=torch.float32).T.contiguous()

    def state(self) -> dict[str, Any]:
        """As tensors and plain values."""
        statics = self.statics
        return {
            "known_columns": list(self.columns.known),
            "past_columns": list(self.columns.past),
            "known": list(self.known),
            "past": list(self.past),
            "numbers": {name: list(pair) for name, pair in self.numbers.items()},
            "categories": {name: list(values) for name, values in self.categories.items()},
            "statics": None
            if statics is None
            else [{name: list(values) for name, values in part.items()} for part in _parts(statics)],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Coding:
        """What `state` gave."""
        statics = None
        if state["statics"] is not None:
            statics = Statics(*({n: tuple(v) for n, v in part.items()} for part in state["statics"]))
        return cls(
            CovariateColumns(tuple(state["known_columns"]), tuple(state["past_columns"])),
            Standardisation(*state["known"]),
            Standardisation(*state["past"]),
            {name: (pair[0], pair[1]) for name, pair in state["numbers"].items()},
            {name: tuple(values) for name, values in state["categories"].items()},
            statics,
        )


def _scaled(columns: Sequence[str], values: FloatArray, scale: Standardisation, *, name: str) -> Tensor:
    """Covariates [T, C], standardised, float32."""
    if not columns:
        return torch.empty(len(values), 0)
    scaled = scaling.transform(torch.from_numpy(values), scale).float()
    too_large = (~(scaled.abs() <= LARGEST)).nonzero()
    if len(too_large):
        row, column = too_large[0].tolist()
        raise UserError(
            f"{name}: column {columns[column]!r}, data row {row + 1}: expected a number like those of the "
            f"training part, found {values[row, column]:g}; correct it"
        )
    return scaled


def _parts(statics: Statics) -> Iterator[Mapping[str, tuple[Any, ...]]]:
    yield statics.categories
    yield statics.numbers


def words_as_bytes(words: Sequence[str]) -> Tensor:
    """Texts as UTF-8 [M, U] uint8, zeros behind their end."""
    texts = [text.encode() for text in words]
    found = torch.zeros(len(texts), max(map(len, texts), default=0), dtype=torch.uint8)
    for place, text in enumerate(texts):
        found[place, : len(text)] = torch.tensor(list(text), dtype=torch.uint8)
    return found


def require_finite(value: float, where: str) -> float:
    """A number of a table of statics.

    Raises:
        UserError: it is none.
    """
    if not math.isfinite(value):
        raise UserError(f"{where}: expected a finite number, found {value}; give it")
    return value

"""Standardisation per column: fit on training rows, apply, take back. N variables on the last axis."""

from __future__ import annotations

import torch
from torch import Tensor

from utils.types import Standardisation

ROWS_AT_ONCE = 1024
LARGEST = 1e9
"""Deviations from the mean beyond which sums of squares come near the end of float32's range."""


def fit(values: Tensor) -> Standardisation:
    """Mean and population deviation of each column of ``values`` [T, N].

    Pass the training rows only, and of those only the ones that are used. A constant column gets
    deviation 1, so that it becomes zero instead of a division by zero.

    Raises:
        ValueError: the values are not [T, N] with a row at least.
    """
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values: expected [T, N] with T of 1 or more, found {list(values.shape)}")
    values = values.to(torch.float64)
    constant = values.amax(dim=0) == values.amin(dim=0)
    mean = torch.where(constant, values[0], values.mean(dim=0))
    std = values.std(dim=0, correction=0)
    return Standardisation(mean, torch.where(constant, torch.ones_like(std), std))


def transform(values: Tensor, standardisation: Standardisation) -> Tensor:
    """``values`` [..., N] in original units -> standardised, float64."""
    mean, std = _matching(values, standardisation)
    return (values.to(torch.float64) - mean) / std


def transform_to_float32(values: Tensor, standardisation: Standardisation) -> Tensor:
    """``values`` [T, N] in original units -> standardised float32, a block of rows at a time.

    As `transform` and then rounded, without a second copy of the series in float64.
    """
    result = torch.empty(values.shape, dtype=torch.float32, device=values.device)
    for rows in torch.arange(len(values)).split(ROWS_AT_ONCE):
        block = slice(int(rows[0]), int(rows[-1]) + 1)
        result[block] = transform(values[block], standardisation)
    return result


def floor(standardisation: Standardisation) -> Tensor:
    """Zero in standardised units [N] float32, rounded so that `inverse` is not below it."""
    mean, std = standardisation
    nearest = (-mean / std).float()
    below = nearest.double() * std + mean < 0
    return torch.where(below, nearest.nextafter(torch.full_like(nearest, torch.inf)), nearest)


def inverse(values: Tensor, standardisation: Standardisation) -> Tensor:
    """Standardised ``values`` [..., N] -> original units, float64."""
    mean, std = _matching(values, standardisation)
    return values.to(torch.float64) * std + mean


def _matching(values: Tensor, standardisation: Standardisation) -> tuple[Tensor, Tensor]:
    """Mean and deviation on the device of ``values``, after a check of the number of columns."""
    mean, std = (s.to(device=values.device, dtype=torch.float64) for s in standardisation)
    if values.shape[-1] != len(mean):
        raise ValueError(f"values: expected {len(mean)} columns as fitted, found {values.shape[-1]}")
    return mean, std

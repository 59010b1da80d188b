"""Ridge maps from sums over rows: gathered block by block, solved for every penalty at once.

Shape legend: R rows (one variable of one window each), A features, H horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from utils.errors import UserError


class Moments:
    """Sums that determine a linear map's weighted squared error, float64; memory does not grow with rows."""

    def __init__(self, features: int, horizon: int, *, device: torch.device | None = None) -> None:
        """Nothing is counted yet."""
        self.gram = torch.zeros(features, features, dtype=torch.float64, device=device)
        self.cross = torch.zeros(features, horizon, dtype=torch.float64, device=device)
        self.energy = self.weight = 0.0
        self.rows = self.values = 0

    def add(self, x: Tensor, y: Tensor, weight: Tensor | None = None) -> None:
        """Count the rows x [R, A] with their futures y [R, H], each with its weight [R, 1] or 1; float64."""
        weighed, futures = (x, y) if weight is None else (x * weight, y * weight)
        self.gram.addmm_(weighed.T, x)
        self.cross.addmm_(weighed.T, y)
        self.energy += float((futures * y).sum())
        self.weight += len(x) if weight is None else float(weight.sum())
        self.rows += len(x)
        self.values += y.numel()

    def require(self, part: str) -> None:
        """Raise UserError where no row was counted, or a value is not finite."""
        if not self.values:
            raise UserError(f"ridge: expected {part} windows, found none")
        if not (torch.isfinite(self.gram).all() and torch.isfinite(self.cross).all()):
            raise UserError(f"ridge: expected finite {part} values, found NaN or infinity")

    def mse(self, coefficients: Tensor) -> float:
        """Weighted sum of squares that ``x @ coefficients`` leaves, over the number of values."""
        explained = 2 * (coefficients * self.cross).sum() - (coefficients * (self.gram @ coefficients)).sum()
        return (self.energy - float(explained)) / self.values


def solve(train: Moments, valid: Moments, penalties: Iterable[float]) -> tuple[Tensor, float]:
    """The ridge map [A, H] of the training rows whose penalty errs least on the validation rows, and that.

    Weights count relative to their mean. One decomposition serves every penalty:
    (G + a I)^-1 C = V (e + a)^-1 V'C.
    """
    scale = train.rows / train.weight
    asked = list(penalties)
    fits = zip(maps_at(torch.linalg.eigh(train.gram * scale), train.cross * scale, asked), asked, strict=True)
    return min(fits, key=lambda fit: valid.mse(fit[0]))


def maps_at(decomposed: tuple[Tensor, Tensor], cross: Tensor, penalties: Iterable[float]) -> Iterator[Tensor]:
    """The ridge map [A, H] of each penalty, by eigenvalues [A] and vectors [A, A] of X'X, and X'Y [A, H]."""
    eigenvalues, vectors = decomposed
    rotated = vectors.T @ cross
    for penalty in penalties:
        yield vectors @ (rotated / (eigenvalues.clamp(min=0.0) + penalty)[:, None])


def solve_at(train: Moments, penalty: float) -> Tensor:
    """The ridge map [A, H] of one penalty."""
    scale = train.rows / train.weight
    gram = train.gram * scale
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(train.cross * scale, torch.linalg.cholesky(gram))

"""Ridge: one linear map from lookback to future, shared by all variables, in closed form.

The penalty is chosen on the validation windows. Source of the model as a baseline: Toner and Darlow,
"An Analysis of Linear Time Series Forecasting Models", ICML 2024. The solution is that of
`models.closed_form.RidgeMap`; here it takes part in the same runs as every other model.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any

import torch
from torch import Tensor

from models.base import ForecastModel
from models.closed_form import fit_ridge
from utils.config import Config
from utils.types import FitSource

log = getLogger(__name__)


class Model(ForecastModel):
    """Windows [B, L, N] to [B, H, N] float64; all zeros around the window's mean until it is fitted."""

    name = "Ridge"
    channel_independent = True
    is_trainable = False
    coefficients: Tensor
    alpha: Tensor

    def __init__(self, args: Config | Any) -> None:
        """The map [L, H] and its penalty are part of the checkpoint, in float64."""
        super().__init__(args)
        d = self.config.data
        self.register_buffer("coefficients", torch.zeros(d.seq_len, d.pred_len, dtype=torch.float64))
        self.register_buffer("alpha", torch.tensor(torch.nan, dtype=torch.float64))

    def fit_statistics(self, source: FitSource) -> None:
        """Solve for the map on all training windows, under each penalty; keep validation's choice."""
        if not source.weights_given:
            source.once(self, None, lambda: self._solve(source))

    def _solve(self, source: FitSource) -> None:
        fit = fit_ridge(source.training, source.validation)
        self.coefficients.copy_(torch.from_numpy(fit.coefficients))
        self.alpha.fill_(fit.alpha)
        log.info("ridge: penalty %g has the least error on the validation windows", fit.alpha)

    def forward(self, x_enc: Tensor, *_: Any, **__: Any) -> Tensor:
        """[B, L, N] to [B, H, N], in the precision of the map."""
        with torch.autocast(x_enc.device.type, enabled=False):
            x = x_enc.to(self.coefficients.dtype)
            mean = x.mean(dim=1, keepdim=True)
            return torch.einsum("bln,lh->bhn", x - mean, self.coefficients) + mean

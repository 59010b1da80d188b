"""What training minimises: the forecast's loss, and the modules' losses after a warm-up.

Shape legend: B windows, N variables, L lookback, H horizon, S = B * N series.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.config import STD_FLOOR, Config, GRAMConfig, TAPRConfig, TrainingConfig
from utils.trend import direction_of, magnitude_of, ordinal_bin_of, ordinal_scale, trend_measure
from utils.types import Batch, ForecastState, RetrievalRecord, TrendRecord
from utils.windows import floored_std, per_series

SMALLEST_SIZE = 1e-8
"""Of what SMAPE divides by, in standardised units."""
LEAST_GATE = torch.finfo(torch.float32).eps
"""Of a mean gate, and most but for so much: the slope of its entropy has no bound at 0 and 1."""
NEVER = 1e4
"""A logit beyond which there is no bin."""


class Loss(NamedTuple):
    """The loss of one forward pass, and what it is made of."""

    total: Tensor
    """main + warm-up factor * auxiliary, with gradient."""
    main: Tensor
    """The forecast's loss, detached."""
    auxiliary: Tensor
    """The modules' weighted losses before the warm-up factor, detached."""
    warmup: float
    """The warm-up factor, 0 to 1."""
    terms: dict[str, Tensor]
    """Each module loss before its weights, detached."""
    decisions: dict[str, Tensor]
    """What the gate decided over the pass, detached; empty without retrieval."""

    @classmethod
    def mean_of(cls, losses: Sequence[Loss], shares: Sequence[float]) -> Loss:
        """The loss of a batch from those of its parts, all of one step, without a gradient."""

        def mean(values: Sequence[Tensor]) -> Tensor:
            weighted = [share * value.detach() for share, value in zip(shares, values, strict=True)]
            return torch.stack(weighted).sum()

        return cls(
            total=mean([loss.total for loss in losses]),
            main=mean([loss.main for loss in losses]),
            auxiliary=mean([loss.auxiliary for loss in losses]),
            warmup=losses[0].warmup,
            terms={name: mean([loss.terms[name] for loss in losses]) for name in losses[0].terms},
            decisions={name: mean([loss.decisions[name] for loss in losses]) for name in losses[0].decisions},
        )


class Objective:
    """Forecast and batch to `Loss`."""

    def __init__(self, config: Config) -> None:
        """Takes the weights from the configuration."""
        self.config = config

    def __call__(self, state: ForecastState, batch: Batch, *, step: int) -> Loss:
        """The loss of ``state`` against ``batch.y`` at optimizer step ``step`` (from 0)."""
        training = self.config.training
        main = forecast_loss(state.prediction, batch, training)
        auxiliary = main.new_zeros(())
        terms: dict[str, Tensor] = {}
        if state.trend is not None:
            trend_terms = trend_losses(state.trend, per_series(batch.y), self.config.tapr)
            auxiliary = auxiliary + self.config.tapr.lambda_trend * _weighted(trend_terms, self.config.tapr)
            terms.update(trend_terms)
        if state.retrieval is not None:
            retrieval_terms = retrieval_losses(state.retrieval, batch, self.config.gram)
            auxiliary = auxiliary + self.config.gram.lambda_retrieval * sum(retrieval_terms.values())
            terms.update(retrieval_terms)
        warmup = warmup_factor(step, training.aux_warmup_steps)
        return Loss(
            total=main + warmup * auxiliary,
            main=main.detach(),
            auxiliary=auxiliary.detach(),
            warmup=warmup,
            terms={name: value.detach() for name, value in terms.items()},
            decisions={} if state.retrieval is None else gate_statistics(state.retrieval),
        )


def warmup_factor(step: int, warmup_steps: int) -> float:
    """min(1, step / warmup_steps); 1 without a warm-up."""
    return 1.0 if warmup_steps == 0 else min(1.0, step / warmup_steps)


def forecast_loss(prediction: Tensor, batch: Batch, config: TrainingConfig) -> Tensor:
    """MSE, MAE, Huber or SMAPE of predictions [B, H, M], in standardised units or window deviations."""
    error = prediction.float() - batch.y
    if config.loss == "SMAPE":  # the denominator without gradient, as the family has it
        size = prediction.detach().float().abs() + batch.y.abs()
        return 200 * (error.abs() / size.clamp(min=SMALLEST_SIZE)).mean()
    if config.loss_scale == "std":
        own = batch.x[..., -error.shape[-1] :]
        error = error / own.std(dim=1, unbiased=False, keepdim=True).clamp(min=STD_FLOOR)
    if config.loss == "MSE":
        return error.square().mean()
    if config.loss == "MAE":
        return error.abs().mean()
    return F.huber_loss(error, torch.zeros_like(error))


def trend_losses(record: TrendRecord, future: Tensor, config: TAPRConfig) -> dict[str, Tensor]:
    """TAPR's losses against futures [S, H] in standardised units, each a scalar.

    Labels come from the fixed cuts; of these losses the learnable thresholds are in the ordinal one alone,
    so they move without moving the labels. The path's is its mean absolute error in (floored) deviations of
    the window: in the normalised units that it is given in.
    """
    measure = trend_measure(future, reference=record.reference, scale=record.scale, kind=config.trend_label)
    cuts = record.label_cuts
    direction_logits, magnitude_logits = record.direction_logits.float(), record.magnitude_logits.float()
    smoothing = config.label_smoothing
    expected = direction_logits.detach().softmax(dim=-1) @ record.magnitude_given_direction  # [S, 4]
    return {
        "direction": F.cross_entropy(
            direction_logits, direction_of(measure, cuts), label_smoothing=smoothing
        ),
        "magnitude": F.cross_entropy(
            magnitude_logits, magnitude_of(measure, cuts), label_smoothing=smoothing
        ),
        "consistency": F.kl_div(magnitude_logits.log_softmax(dim=-1), expected, reduction="batchmean"),
        "ordinal": ordinal_loss(record, ordinal_bin_of(measure, cuts)),
        "path": ((record.standardised(record.path) - future) / record.scale[:, None]).abs().mean(),
    }


def ordinal_loss(record: TrendRecord, bins: Tensor) -> Tensor:
    """Cumulative-link negative log-likelihood of ``bins`` [S] (0 to 4) at the path's trend measure.

    P(bin <= j) = sigmoid((threshold_j - measure) / s), with s fixed by the label cuts. In logarithms
    throughout, so that the gradient does not vanish where the path is most wrong.
    Source: McCullagh, Regression Models for Ordinal Data, JRSS B 1980.
    """
    scale = ordinal_scale(record.label_cuts)
    logits = (record.thresholds.float() - record.measure.float()[:, None]) / scale  # [S, 4]
    upper = F.pad(logits, (0, 1), value=NEVER).gather(1, bins[:, None])
    lower = F.pad(logits, (1, 0), value=-NEVER).gather(1, bins[:, None])
    # log(sigmoid(u) - sigmoid(l)) = log sigmoid(u) + log sigmoid(-l) + log(1 - exp(l - u))
    between = torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6)))
    return -(F.logsigmoid(upper) + F.logsigmoid(-lower) + between).mean()


def _weighted(terms: dict[str, Tensor], config: TAPRConfig) -> Tensor:
    """TAPR's losses under their inner weights."""
    return (
        config.lambda_dir * terms["direction"]
        + config.lambda_mag * terms["magnitude"]
        + config.lambda_hcl * terms["consistency"]
        + config.lambda_ord * terms["ordinal"]
        + config.lambda_path * terms["path"]
    )


def retrieval_losses(record: RetrievalRecord, batch: Batch, config: GRAMConfig) -> dict[str, Tensor]:
    """GRA-M's losses on the gate, each a scalar; none where it has no two forecasts to choose from."""
    if config.gate_loss == "document":
        return document_gate_losses(record, batch.y.shape[-1])
    return {"gate_errors": gate_errors(record, batch)} if record.plain.shape[1] else {}


def gate_errors(record: RetrievalRecord, batch: Batch) -> Tensor:
    """What the gate's choices cost, a scalar: how far it is from the forecast that errs less.

    That is g where history helps and 1 - g where it misleads, times the difference of the two squared errors
    in deviations of the window, which counts by its deviation, as where the two are fitted; the mean over the
    windows. So the gate is driven to its ends. Windows of which the difference is not known cost nothing.
    """
    own = per_series(batch.x[..., -batch.y.shape[-1] :])
    std = floored_std(own)  # [S]
    if record.advantage.shape[1]:
        advantage = record.advantage.squeeze(1).nan_to_num()
    else:  # the window itself tells: no forecast is fitted without it
        future = per_series(batch.y)
        apart = (record.plain - future).square() - (record.joint - future).square()
        advantage = apart.mean(dim=1) / std.square()
    advantage = torch.where(record.matched, advantage, 0.0)
    gate = record.gate.float().squeeze(1)
    wrong = torch.where(advantage < 0, 1 - gate, gate)
    return (std * advantage.abs() * wrong).mean()


def document_gate_losses(record: RetrievalRecord, variables: int) -> dict[str, Tensor]:
    """The document's two losses on the gate g of a pass's windows, each of ``variables`` series.

    Consistency: mean(confidence * 4 g (1 - g)), confidence without gradient: a confident match
    makes the gate leave 0.5. Diversity: the mean over the variables of ln 2 - H(m), lowest where a
    variable's mean gate m over the windows is 0.5, so that not all windows decide alike. Series without a
    match have no decision to make: their gate is 1 by rule, and m is that of the others; where there are
    none, it is 0.5.
    """
    gate = record.gate.float()
    decides = record.matched.view(-1, variables)  # [B, M]
    count = decides.sum(dim=0)
    mean = torch.where(decides, gate.view(-1, variables), 0.0).sum(dim=0) / count.clamp(min=1)  # [M]
    mean = torch.where(count > 0, mean, 0.5).clamp(LEAST_GATE, 1 - LEAST_GATE)
    entropy = torch.special.entr(mean) + torch.special.entr(1 - mean)
    return {
        "gate_consistency": (record.confidence.detach().float() * 4 * gate * (1 - gate)).mean(),
        "gate_entropy": (math.log(2) - entropy).mean(),
    }


@torch.no_grad()
def gate_statistics(record: RetrievalRecord) -> dict[str, Tensor]:
    """Mean and deviation of the gate, mean confidence, and share of series that found anything."""
    gate = record.gate.float()
    return {
        "gate_mean": gate.mean(),
        "gate_std": gate.std(unbiased=False),
        "confidence_mean": record.confidence.float().mean(),
        "matched_share": record.matched.float().mean(),
    }

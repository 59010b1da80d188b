"""Time-LLM with TAPR and GRA-M around the same frozen LLM.

With both modules off this is `models.TimeLLM` bit for bit: modules that are off create nothing and
draw nothing, and those that are on are created after the baseline's parts.

Shape legend: B windows, N variables, M of them forecast, L lookback, H horizon, S = B * M series,
P patches, D width.
"""

from __future__ import annotations

from logging import getLogger

import torch
from torch import Tensor

from layers.fusion import (
    ConfidenceGate,
    RetrievalFusion,
    TrendFusion,
    begin_as_a_word,
    class_confidence,
    trend_bound,
)
from layers.GRAM import GRAM, Neighbours, neighbours_from
from layers.retrieval.memory import unmatched_share
from layers.retrieval.search import MemoryRows, Rows, query_rows
from layers.TAPR import TAPR
from models import TimeLLM
from models.TimeLLM import DEFAULT_SEASON
from utils.config import Config
from utils.micro_step import MicroStep
from utils.trend import MAGNITUDES, ORDINAL_BINS, ordinal_probabilities, trend_measure
from utils.types import (
    Covariates,
    FitSource,
    ForecastState,
    InstanceStatistics,
    RetrievalRecord,
    StartForecast,
    TrendRecord,
    WindowSource,
)
from utils.windows import per_series

log = getLogger(__name__)
CALIBRATION_BLOCK = 4096
"""Training rows measured at once."""


class Model(TimeLLM.Model):
    """Windows [B, L, N] to forecasts [B, H, N], with trend routing and retrieval where switched on."""

    name = "TimeLLM_Enhanced"
    is_named_by_flag = False
    _has_memory = True

    def _build(self, config: Config, d_llm: int) -> None:
        """The baseline's parts first, then those of the modules that are on."""
        super()._build(config, d_llm)
        d, b = config.data, config.backbone
        season = min(d.season or DEFAULT_SEASON, d.seq_len)
        if config.tapr.use_tapr:
            self.tapr = TAPR(
                config.tapr,
                d_model=b.d_model,
                d_llm=d_llm,
                patch_count=config.patch_count,
                horizon=d.pred_len,
                season=season,
                dropout=b.dropout,
            )
            if config.tapr.trend_fusion != "off":
                self.trend_fusion = TrendFusion(
                    horizon=d.pred_len,
                    n_classes=len(MAGNITUDES),
                    width=b.d_model,
                    n_bins=ORDINAL_BINS if config.tapr.thresholds_in == "forecast" else 0,
                )
                self.trend_gate = ConfidenceGate()
        if config.gram.use_gram:
            self.gram = GRAM(
                config.gram,
                seq_len=d.seq_len,
                horizon=d.pred_len,
                patch_len=b.patch_len,
                season=season,
                d_model=b.d_model,
                d_llm=d_llm,
                dropout=b.dropout,
                apart=config.apart,
            )
            if config.gram.gate_loss != "document":  # whose tokens are as they were drawn
                token = self.gram.prompt.confidence_embed
                begin_as_a_word(token, self._word_embeddings(), scale=self._word_scale)
            if config.gram.retrieval_fusion != "feature":
                self.retrieval_fusion = RetrievalFusion(d.pred_len)

    def forward(
        self,
        x_enc: Tensor,
        x_mark_enc: Tensor | None = None,
        x_dec: Tensor | None = None,
        x_mark_dec: Tensor | None = None,
        *,
        start: Tensor | None = None,
        series_id: Tensor | None = None,
        variable: Tensor | None = None,
        target: Tensor | None = None,
        prompt: Tensor | None = None,
        text: Tensor | None = None,
        text_age: Tensor | None = None,
        covariates: Covariates | None = None,
        micro_step: MicroStep | None = None,
        return_state: bool = False,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, M] of windows ``x_enc`` [B, L, N], both in standardised units.

        Args:
            x_enc: lookback windows.
            x_mark_enc: time marks [B, L, F], read with ``--use_time_marks``; of series without dates the
                insample mask [B, L, 1].
            x_dec: the family's; not read.
            x_mark_dec: time marks of the future, the last H rows [B, H, F], read with ``--use_time_marks``.
            start: absolute row of each window in its series, [B]. With ``series_id`` [B] it keeps
                retrieval from finding the window itself or one that overlaps it; without both,
                the windows are taken to be new to the memory.
            series_id: content hash of each window's series, [B].
            variable: index of each variable that is forecast, [B, M]; by default 0 to M - 1.
            target: the true future [B, H, M], read by the retrieval oracle alone.
            prompt: prompts of the windows, [B, M, K], of `prompts`; made here where None, for which the
                windows are read back from an accelerator.
            text: of the texts that windows see, [B, V, C, D] as in `Batch`.
            text_age: rows since they could first see them, [B, V, C]; -1 where there is none.
            covariates: what is known beside the windows, where the settings name any.
            micro_step: of the optimizer step, whose micro-steps share its source embeddings.
            return_state: give a `ForecastState` instead of the prediction alone.
        """
        prompt = self.told(prompt, x_enc, x_mark_enc, text, text_age)
        series = self.normalise(x_enc, self.insample_mask(x_mark_enc), covariates)
        patches = self.embed(series, x_mark_enc)
        shape = series.statistics.mean[:, 0]  # [B, M]
        query = query_rows(shape, start=start, series_id=series_id, variable=variable)
        future = None if target is None else per_series(target)
        begun = self.begin(series, query, x_mark_enc, target) if self.begins_solved else None
        leading: list[Tensor] = []
        trend: TrendRecord | None = None
        retrieval: RetrievalRecord | None = None
        if self.config.tapr.use_tapr:
            patches, token, trend = self.tapr(patches, lookback=series.lookback, statistics=series.statistics)
            leading.append(token)
        if self.config.gram.use_gram:
            patches, tokens, retrieved, retrieval = self.gram(
                patches,
                lookback=series.lookback,
                normalised=series.normalised,
                query=query,
                target=future,
                found=None if begun is None else self._neighbours(begun, series.lookback),
            )
            leading.append(tokens)
        forecast = self.answer(leading, series, patches, prompt, x_mark_dec, micro_step).float()  # [S, H]
        if begun is not None and retrieval is not None:
            forecast, retrieval = self._choose(forecast, begun, retrieval, query, series.statistics)
        elif begun is not None:
            forecast = begun.plain + forecast
        parts = self.parts(begun, forecast, series.statistics) if return_state else None
        if retrieval is not None and self.config.gram.retrieval_fusion != "feature":
            forecast, retrieval = self._fuse_retrieved(forecast, retrieved, retrieval, series.statistics)
        if trend is not None:
            forecast = self._apply_trend_fusion(forecast, trend, series.normalised[:, -1:])
        prediction = self.with_texts(self.denormalise(forecast, series.statistics), text, text_age, variable)
        return ForecastState(prediction, trend, retrieval, begun, parts) if return_state else prediction

    def _neighbours(self, begun: StartForecast, lookback: Tensor) -> Neighbours | None:
        """Those that the start found already, where GRA-M looks for the same; else it searches itself."""
        if not self.shares_search:
            return None
        return neighbours_from(self.start.retrieved, begun.rows, lookback, config=self.config.gram)

    def _choose(
        self,
        forecast: Tensor,
        begun: StartForecast,
        record: RetrievalRecord,
        query: Rows,
        statistics: InstanceStatistics,
    ) -> tuple[Tensor, RetrievalRecord]:
        """What the LLM adds [S, H] on top of the forecast that the gate chooses: joint + g (plain - joint).

        In this form, so that at both ends it is the one alone, to the bit.
        """
        gate = record.gate.float()
        chosen = (1 - gate) * begun.joint + gate * begun.plain
        record = self._chosen_from(record, begun.plain, begun.joint, statistics)
        known = self.start.advantage(query.series_id, query.variable, query.start)
        return chosen + forecast, record._replace(advantage=known[:, None])

    def _fuse_retrieved(
        self, forecast: Tensor, retrieved: Tensor, record: RetrievalRecord, statistics: InstanceStatistics
    ) -> tuple[Tensor, RetrievalRecord]:
        """Move a forecast [S, H] towards the retrieved one as far as the gate lets it; record both."""
        fused = self.retrieval_fusion(forecast, retrieved, 1 - record.gate.float())
        if record.plain.shape[1]:  # it chooses from those of the start
            return fused, record
        whole = self.retrieval_fusion(forecast, retrieved, torch.ones_like(record.gate).float())
        return fused, self._chosen_from(record, forecast, whole, statistics)

    def _chosen_from(
        self, record: RetrievalRecord, plain: Tensor, joint: Tensor, statistics: InstanceStatistics
    ) -> RetrievalRecord:
        """The record with the two forecasts [S, H], normalised, that the gate chooses from."""
        both = (per_series(self.denormalise(made.detach(), statistics)) for made in (plain, joint))
        return record._replace(**dict(zip(("plain", "joint"), both, strict=True)))

    def _apply_trend_fusion(self, forecast: Tensor, trend: TrendRecord, last: Tensor) -> Tensor:
        """Correct a forecast [S, H] by the trend, in normalised units, the same in training and test.

        The correction is at most `trend_bound`, zero in an untrained model; a confident magnitude
        opens ``trend_gate`` further. The original design multiplied the output by up to 1.5%, in
        training only.
        """
        mode = self.config.tapr.trend_fusion
        if mode == "off" or (mode == "train" and not self.training):
            return forecast
        probabilities = trend.magnitude_logits.float().softmax(dim=-1)
        opened = self.trend_gate(class_confidence(probabilities))  # [S, 1]
        bound = trend_bound(forecast, last, trend.gate.float(), opened)
        bins = None
        if self.config.tapr.thresholds_in == "forecast":
            own = trend_measure(
                trend.standardised(forecast),
                reference=trend.reference,
                scale=trend.scale,
                kind=self.tapr.kind,
            )
            bins = ordinal_probabilities(own, trend.thresholds.float(), trend.label_cuts)
        return forecast + bound * self.trend_fusion(trend.path.float(), probabilities, bins).float()

    @property
    def shares_search(self) -> bool:
        """Whether GRA-M's neighbours are those of the start."""
        return self.config.shares_search

    @property
    def memory(self) -> MemoryRows:
        """What GRA-M's neighbours are rows of."""
        return self.start.retrieved.contents if self.shares_search else self.gram.retriever.contents

    def unmatched_share(self, source: WindowSource) -> float:
        """Share of the training rows for which the memory holds no admissible row."""
        d, scope = self.config.data, self.config.gram.retrieval_scope
        return unmatched_share(
            self.memory.places, source, span=d.seq_len + d.pred_len, same_variable=scope == "variable"
        )

    def fit_statistics(self, source: FitSource) -> None:
        """Fix TAPR's class cuts, fill the memories from the training windows, solve for the start.

        Under given weights thresholds stay as learned, and GRA-M's memory but with ``--build_memory``.
        """
        super().fit_statistics(source)
        self._calibrate(source.training, place_thresholds=not source.weights_given)
        if self.config.gram.build_memory or not source.weights_given:
            self.rebuild_memory(source.training)

    @torch.no_grad()
    def _calibrate(self, source: WindowSource, *, place_thresholds: bool) -> None:
        if not self.config.tapr.use_tapr:
            return
        measures = []
        for rows in torch.arange(source.num_rows).split(CALIBRATION_BLOCK):
            block = source.rows(rows)
            reference, scale = self.tapr.level_before(block.lookback)
            measures.append(
                trend_measure(block.future, reference=reference, scale=scale, kind=self.tapr.kind)
            )
        self.tapr.calibrate(torch.cat(measures), place_thresholds=place_thresholds)

    def rebuild_memory(self, source: WindowSource) -> None:
        """Draw the memory's rows from the training windows, by the run's seed alone."""
        if self.config.gram.use_gram:
            if not self.shares_search:
                generator = torch.Generator().manual_seed(self.config.training.seed)
                self.gram.retriever.build(source, generator=generator)
            rows = len(self.memory.places.start)
            log.info("memory: built from %d of %d training rows", rows, source.num_rows)
            unmatched = self.unmatched_share(source)
            if unmatched:
                log.warning(
                    "memory: %.1f%% of the training rows overlap all of it and will find nothing; "
                    "a larger --percent or --memory_size helps",
                    100 * unmatched,
                )

    def refresh(self, source: WindowSource) -> None:
        """Encode the memory's keys anew, where encoders that learn made them."""
        if self.config.gram.use_gram and not self.shares_search:
            self.gram.retriever.refresh(source)

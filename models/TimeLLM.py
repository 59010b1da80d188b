"""Time-LLM: forecasting by reprogramming patches into the word space of a frozen LLM.

Source: Jin et al., "Time-LLM: Time Series Forecasting by Reprogramming Large Language Models",
ICLR 2024. Deviations are named where they occur.

Shape legend: B windows, N variables, M of them forecast, L lookback, H horizon, S = B * M series,
P patches, T tokens given to the LLM, D model width, C source tokens. M = N, and each variable is
forecast from itself (channel independence), but with --features MS: there M counts the targets, the last
variables, and the patches of each are embedded together with those of all the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from logging import getLogger
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from layers.covariates import CovariateInput
from layers.heads import FlattenHead
from layers.llm.ablation import ablated, drawn_attention, pass_through
from layers.llm.check import CheckTokens
from layers.llm.forward import Prefix
from layers.llm.load import FrozenLLM, load_llm, positions_of, seen_words, word_scale
from layers.llm.lora import add_adapters, is_adapter, set_dropout
from layers.llm.text_states import has_words, questions_of, read_states, read_tokens, state_width
from layers.normalization import InstanceNorm
from layers.patching import PatchEmbedding
from layers.prompt import PromptBuilder, WindowPrompts
from layers.reprogramming import ReprogrammingLayer
from layers.retrieval.search import Rows, query_rows
from layers.solved_start import SolvedStart
from layers.start_features import CovariateSizes
from layers.text_fitting import fit_reader
from layers.text_reader import TextReader
from layers.time_marks import TimeMarks
from models.base import ForecastModel
from utils.config import AUTO, STD_FLOOR, BackboneConfig, Config
from utils.data_sets import SHORT_TERM
from utils.errors import UserError
from utils.frequency import mark_names
from utils.micro_step import MicroStep, StepValue
from utils.process_memory import give_back_where_scarce
from utils.prompt_bank import GENERAL, describe, read_description
from utils.types import (
    Covariates,
    FitSource,
    ForecastParts,
    ForecastState,
    InstanceStatistics,
    StartForecast,
    TextReading,
    TextWindows,
)
from utils.windows import per_series, rows_of

log = getLogger(__name__)
LLM_PREFIX, START_PREFIX, TEXT_PREFIX = "llm_model.", "start.", "text_reader."
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_FREQUENCY = "h"
"""Of rows where neither the data nor the settings say."""
DEFAULT_SEASON = 24
"""Rows of one season where neither the data nor the settings say: hourly data's day."""


def dtype_of(config: Config) -> torch.dtype:
    """What the frozen LLM computes in, and keeps its weights in but for ``--llm_weights``.

    Raises:
        ValueError: ``--mixed_precision auto``, which a run decides before it builds its model.
    """
    precision = config.training.mixed_precision
    if precision == AUTO:
        raise ValueError(
            "--mixed_precision auto: expected no, bf16 or fp16 to build a model, found auto, which a run "
            "decides by timing; see utils.training.precision_choice.settle"
        )
    return DTYPES[precision]


class Series(NamedTuple):
    """A batch taken apart into the single variables that are forecast."""

    lookback: Tensor
    """[S, L], standardised units."""
    normalised: Tensor
    """[S, L], mean 0 and deviation 1."""
    channels: Tensor
    """[S, 1 or N, L]: what is embedded, normalised; the variable alone, or as the last of all."""
    statistics: InstanceStatistics
    """Of the forecast variables, each [B, 1, M]."""
    observed: Tensor | None
    """[S, L], 1 where a row exists; None where all do."""
    covariates: Covariates | None = None
    """Of the windows."""


class Model(ForecastModel):
    """Windows [B, L, N] to forecasts [B, H, N].

    The frozen LLM is always in eval mode, is not part of `state_dict`, and is passed over by
    `load_state_dict` where a checkpoint carries it. Adapters on it (``--peft lora``) are trained and are
    part of both.
    """

    name = "TimeLLM"
    channel_independent = True
    offers_ms = True
    reads_covariates = True
    uses_llm = True
    words_width: Tensor
    """[], tokens of the longest of what is told of the variables."""
    _has_memory = False
    """Whether ``--use_gram`` gives it one."""
    own_settings = frozenset(item.name for item in fields(BackboneConfig))

    def __init__(self, args: Config | Any, *, llm: FrozenLLM | None = None) -> None:
        """Build from a `Config`, or from any object with attributes named like the flags.

        Args:
            args: attributes that it lacks take their one default.
            llm: the language model, where the caller has it already; otherwise it is loaded.

        Raises:
            ValueError: ``--d_ff`` is above the LLM's hidden size.
        """
        super().__init__(args)
        config = self.config
        if llm is None:
            with torch.random.fork_rng():  # loading must not move what follows
                llm = load_llm(config.llm, dtype=dtype_of(config), cpu=config.training.cpu)
        llm = ablated(llm, config.llm, seed=config.training.seed)
        if config.llm.peft == "lora":
            add_adapters(llm.model, config.llm, seed=config.training.seed)
        self.llm_identity = llm.identity
        self.llm_model: Any = llm.model
        d_llm = llm.identity.hidden_size
        self.llm_attention = None
        if config.llm.llm_ablation == "attention":
            self.llm_attention = drawn_attention(d_llm, seed=config.training.seed)
        self.prompt = PromptBuilder(
            llm.tokenizer,
            description=_description(config),
            seq_len=config.data.seq_len,
            pred_len=config.data.pred_len,
            digits=config.backbone.prompt_digits,
            texts=(config.text.text_count, config.text.text_tokens) if config.text.in_prompt else None,
        )
        self.prompt_text = self.prompt.constant_text
        tokens = self._tokens()
        self._refuse_too_long(tokens.total)
        self._pass: Any = pass_through(llm, self.llm_attention, config, tokens=tokens)
        scale = word_scale(llm.model)
        self._word_scale = self._pass.way.multiplier * (1.0 if scale is None else scale)
        self._seen_words = seen_words(llm.model) if scale is None else None
        self._kept_prefix: tuple[Any, Prefix] | None = None
        self._kept_source: tuple[Any, Tensor] | None = None
        self._kept_idle: tuple[Any, bool] | None = None
        self.leaves_out_idle_llm = True
        d_state = self._pass.way.width or d_llm
        if config.backbone.d_ff > d_state:
            raise UserError(
                f"--d_ff: expected at most the LLM's hidden size ({d_state}), found {config.backbone.d_ff}"
            )
        self._build(config, d_llm)
        self.prompts = WindowPrompts(
            self.prompt,
            targets=len(config.data.target) if config.data.features == "MS" else None,
            masked=config.run.task_name == SHORT_TERM,
        )
        self.register_state_dict_post_hook(_drop_llm)
        self.register_load_state_dict_pre_hook(_pass_over_llm)
        self.register_load_state_dict_post_hook(_do_not_miss_llm)
        self.train(self.training)

    def _tokens(self) -> CheckTokens:
        """Of the longest sequence the LLM is given: what all begin with, the prompt's rest, the patches."""
        config = self.config
        leading = config.tapr.use_tapr + (config.gram.use_gram and 2)
        patches, constant = config.patch_count, self.prompt.n_constant
        if config.backbone.token_order == "prompt_first":
            return CheckTokens(constant, self.prompt.width - constant, leading + patches)
        return CheckTokens(leading + constant, self.prompt.width - constant, patches)

    def _build(self, config: Config, d_llm: int) -> None:
        """The trained parts, in the order that fixes their random initial weights."""
        b = config.backbone
        self.normalize_layers = InstanceNorm(STD_FLOOR if config.begins_solved else None)
        self.patch_embedding = PatchEmbedding(
            channels=_channels(config),
            d_model=b.d_model,
            patch_len=b.patch_len,
            stride=b.stride,
            pad_end=b.padding_patch == "end",
            dropout=b.dropout,
        )
        mapping = nn.Linear(self._word_embeddings().shape[0], b.num_tokens)
        if b.source_tokens == "mapping":
            self.mapping_layer = mapping
        else:
            self.source_prototypes = nn.Parameter(self._map_words(mapping).detach())
        self.reprogramming_layer = ReprogrammingLayer(
            d_model=b.d_model, n_heads=b.n_heads, d_keys=b.d_ff, d_llm=d_llm, dropout=b.dropout
        )
        self.output_projection = FlattenHead(
            n_features=b.d_ff * config.patch_count, horizon=config.data.pred_len, dropout=b.dropout
        )
        if b.use_time_marks:
            self.reads_time_marks = True
            self.time_marks = _time_marks(config)
        if config.data.has_covariates:
            self.covariate_input = _covariate_input(config)
        if config.data.has_statics:
            self.register_buffer("words_width", torch.zeros((), dtype=torch.int64))
            self.register_load_state_dict_post_hook(_make_room)
        if config.begins_solved:
            self.begins_solved = True
            self.start = solved_start(config, retrieves=self._has_memory and config.gram.use_gram)
            self.output_projection.begin_at_zero()
        if config.text.asked:
            self.text_reader = TextReader(
                width=state_width(
                    d_llm, questions=len(questions_of(config)), has_words=has_words(self.llm_model)
                ),
                variables=config.data.targets_of(config.data.enc_in or 1),
                horizon=config.data.pred_len,
            )

    @classmethod
    def read_texts(cls, config: Config, texts: Sequence[str]) -> TextReading:
        """What the LLM makes of texts, as ``--text_fusion`` has it."""
        if config.text.in_prompt:
            return read_tokens(config, texts)
        on_gpu = torch.cuda.is_available() and not config.training.cpu
        return read_states(config, texts, device=torch.device("cuda" if on_gpu else "cpu"))

    def fit_statistics(self, source: FitSource) -> None:
        """Fill the start's memory from the training windows and solve for it, whatever weights are given.

        Then for what the texts add to it.
        """
        if self.config.data.has_statics:
            self.words_width.fill_(self.prompt.tokens_of(source.words))
            self.prompt.room = int(self.words_width.item())
        if self.begins_solved:
            dated = self.config.text.text_file is not None
            fit_start(self.start, self.config, source, keeps_calendar=dated)
        if source.texts is not None and self.config.text.asked:
            self._fit_texts(source, source.texts)

    def _fit_texts(self, source: FitSource, texts: TextWindows) -> None:
        """Standardise the states of the texts and solve for what they add, once for the same data."""

        def begun(lookback: Tensor, query: Rows, marks: Tensor | None) -> Tensor:
            """Where forecasts begin, [R, H] in standardised units."""
            device = self.start.plain_map.device
            lookback, query = lookback.to(device), Rows(*(column.to(device) for column in query))
            marks = None if marks is None else marks.to(device)
            mean, std = self.start.mean_and_std(lookback)
            return self.start(lookback, query, marks=marks).joint * std + mean

        text, d = self.config.text, self.config.data
        settings = {
            "texts": [
                source.text_hash,
                text.text_lag,
                text.text_count,
                text.text_tokens,
                text.text_llm_layers,
            ],
            "questions": questions_of(self.config),
            "llm": [self.llm_identity.content_hash if self.llm_identity else None],
            "start": None if not self.begins_solved else self.start.facts(),
            "kinds": [self.config.backbone.start_refine, self.config.gram.top_k, d.season],
            "control": [self.config.gram.use_gram, self.config.gram.retrieval_control],
            "lengths": [d.seq_len, d.pred_len, d.eval_stride],
        }
        source.once(
            self.text_reader,
            settings,
            lambda: fit_reader(
                self.text_reader,
                texts,
                source.training,
                source.validation,
                forecast=begun if self.begins_solved else None,
                seq_len=d.seq_len,
                block=self.start.block if self.begins_solved else d.pred_len,
            ),
        )
        for line in self.text_reader.lines() if self.begins_solved else ():
            log.info("%s", line)

    def told(
        self,
        prompt: Tensor | None,
        x_enc: Tensor,
        x_mark_enc: Tensor | None,
        text: Tensor | None,
        age: Tensor | None,
    ) -> Tensor | None:
        """Prompts with the windows' texts in them, where these stand there and none were made yet."""
        if prompt is not None or self.prompt.text_room is None:
            return prompt
        if text is None or age is None:
            raise ValueError("text: expected the tokens of each window's texts (--text_file), found none")
        assert self.prompts is not None
        return self.prompts(x_enc, x_mark_enc, text=text, age=age)

    def with_texts(
        self, prediction: Tensor, text: Tensor | None, age: Tensor | None, variable: Tensor | None
    ) -> Tensor:
        """A forecast [B, H, M], standardised, and what the texts add to it.

        Raises:
            ValueError: the model reads texts, and there are none: a window without them has ages of -1.
        """
        if not self.config.text.asked:
            return prediction
        if text is None or age is None:
            raise ValueError("text: expected the states of each window's texts (--text_file), found none")
        return prediction + self.text_reader(text, age, variable)

    @property
    def closed_form_facts(self) -> dict[str, Any]:
        """What was decided for the start, as plain values."""
        found = self.start.facts() if self.begins_solved else {}
        return found | ({"texts": self.text_reader.facts()} if self.config.text.asked else {})

    def train(self, mode: bool = True) -> Model:
        """Training mode for the trained parts; the frozen LLM stays in eval mode (its dropout is off)."""
        super().train(mode)
        self.llm_model.eval()
        if self.config.llm.peft != "none":
            set_dropout(self.llm_model, training=mode)
            self._kept_prefix = None
        self._kept_source = self._kept_idle = None
        return self

    def state(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Weights of a run without adapters start one with them: the adapters begin as they were drawn."""
        if self.begins_solved:  # it is solved anew, and other weights need not have one
            kept = {name: weight for name, weight in weights.items() if not name.startswith(START_PREFIX)}
            mine = self.state_dict().items()
            weights = kept | {name: weight for name, weight in mine if name.startswith(START_PREFIX)}
        read = {n: w for n, w in self.state_dict().items() if n.startswith(TEXT_PREFIX) and n not in weights}
        weights = {**weights, **read} if read else weights
        own = {name: weight for name, weight in self.state_dict().items() if is_adapter(name)}
        if not own or any(is_adapter(name) for name in weights):
            return weights
        log.warning("--init_from: its weights have no adapters; those of this run begin without effect")
        return {**weights, **own}

    def use_reference_forward(self) -> None:
        """From now on compute every state of the LLM by its own forward pass, for comparison."""
        self.leaves_out_idle_llm = False
        self._pass = self._pass.plain()

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

        ``prompt`` [B, M, K] holds their prompts (`prompts`), which are made here where None: then the
        windows are read back from an accelerator. Time marks are read with ``--use_time_marks`` alone,
        ``covariates`` where the settings name any; ``text`` [B, V, C, D] and ``text_age`` [B, V, C] are the
        texts that windows see, as in `Batch`. The micro-steps of an optimizer step share its source
        embeddings.
        """
        prompt = self.told(prompt, x_enc, x_mark_enc, text, text_age)
        series = self.normalise(x_enc, self.insample_mask(x_mark_enc), covariates)
        begun = None
        forecast = self.answer([], series, self.embed(series, x_mark_enc), prompt, x_mark_dec, micro_step)
        if self.begins_solved:
            shape = series.statistics.mean[:, 0]  # [B, M]
            query = query_rows(shape, start=start, series_id=series_id, variable=variable)
            begun = self.begin(series, query, x_mark_enc, target)
            forecast = begun.joint + forecast
        prediction = self.with_texts(self.denormalise(forecast, series.statistics), text, text_age, variable)
        if not return_state:
            return prediction
        return ForecastState(prediction, None, None, begun, self.parts(begun, forecast, series.statistics))

    # The steps of a forecast, shared with the enhanced model.

    def normalise(
        self, x_enc: Tensor, observed: Tensor | None = None, covariates: Covariates | None = None
    ) -> Series:
        """Instance normalisation over the rows that are ``observed`` [B, L, 1], and the variables apart.

        Raises:
            ValueError: the windows have another length, or another number of variables, than the settings.
        """
        expected, joint = self.config.data.seq_len, self.config.data.features == "MS"
        targets = self.config.data.targets_of(x_enc.shape[-1])
        if x_enc.dim() != 3 or x_enc.shape[1] != expected:
            raise ValueError(f"x_enc: expected [B, {expected}, N], found {list(x_enc.shape)}")
        if joint and x_enc.shape[2] != self.config.data.enc_in:
            raise ValueError(
                f"x_enc: expected {self.config.data.enc_in} variables (--enc_in), found {x_enc.shape[2]}"
            )
        normalised, statistics = self.normalize_layers(x_enc, observed)
        if not joint:
            series = per_series(normalised)
            seen = None if observed is None else per_series(observed.expand_as(x_enc))
            return Series(per_series(x_enc), series, series.unsqueeze(1), statistics, seen, covariates)
        own = InstanceStatistics(*(value[..., -targets:] for value in statistics))
        lookback, values = per_series(x_enc[..., -targets:]), per_series(normalised[..., -targets:])
        seen = None if observed is None else per_series(observed.expand_as(x_enc)[..., -targets:])
        return Series(lookback, values, _each_last(normalised, targets), own, seen, covariates)

    def embed(self, series: Series, marks: Tensor | None = None) -> Tensor:
        """Patch embeddings [S, P, D]; ``marks`` [B, L, F] are the lookback's.

        Raises:
            UserError: the settings name covariates that the windows have not, or the other way round.
        """
        _check_covariates(self.config, series.covariates)
        dropped = F.dropout(series.channels, self.config.backbone.input_dropout, self.training)
        patches = self.patch_embedding(dropped)
        if series.covariates is not None:
            patches = patches + self.covariate_input.of_patches(series.covariates)
        if not self.config.backbone.use_time_marks:
            return patches
        return patches + self.time_marks.of_patches(
            _given(marks, "x_mark_enc"), series.statistics.mean.shape[-1]
        )

    def begin(
        self, series: Series, query: Rows, marks: Tensor | None, target: Tensor | None
    ) -> StartForecast:
        """Where the forecasts of series from ``query`` begin, in normalised units.

        ``marks`` [B, L, F] are the lookback's; ``target`` [B, H, M] is read by the retrieval oracle alone.
        """
        variables = series.statistics.mean.shape[-1]
        begun: StartForecast = self.start(
            series.lookback,
            query,
            marks=None if marks is None else marks[:, -1].repeat_interleave(variables, dim=0),
            target=None if target is None else per_series(target),
            covariates=rows_of(series.covariates),
        )
        return begun

    def answer(
        self,
        leading: list[Tensor],
        series: Series,
        patches: Tensor,
        prompt: Tensor | None,
        marks: Tensor | None,
        micro_step: MicroStep | None = None,
    ) -> Tensor:
        """What the LLM makes of the patches, [S, H]: the forecast, or what it adds to the start's.

        An evaluation whose head gives zero whatever the LLM says, as before the first step, does without.
        """
        if self._llm_is_idle():
            return series.normalised.new_zeros(len(series.normalised), self.config.data.pred_len)
        return self.project(self.decode(leading, series, patches, prompt, micro_step), series, marks)

    def _llm_is_idle(self) -> bool:
        """Whether nothing that the LLM says reaches a forecast; the weights are looked at once."""
        if torch.is_grad_enabled() or not (self.begins_solved and self.leaves_out_idle_llm):
            return False
        parts: list[nn.Module] = [self.output_projection]
        if self.config.backbone.use_time_marks:
            parts.append(self.time_marks.to_share)
        if self.config.data.known_covariates:
            assert self.covariate_input.to_share is not None
            parts.append(self.covariate_input.to_share)
        state = tuple(map(_state_of, parts))
        if self._kept_idle is None or self._kept_idle[0] != state:
            self._kept_idle = state, not any(bool(w.any()) for part in parts for w in part.parameters())
        return self._kept_idle[1]

    def parts(
        self, begun: StartForecast | None, forecast: Tensor, statistics: InstanceStatistics
    ) -> ForecastParts | None:
        """The start, and the forecast [S, H] that the LLM has added to; None without a start."""
        if begun is None:
            return None
        grown = (begun.plain, begun.joint, forecast.detach())
        return ForecastParts(*(self.denormalise(part, statistics) for part in grown))

    def project(self, states: Tensor, series: Series, marks: Tensor | None) -> Tensor:
        """States at the patches [S, P, d_ff] to forecasts [S, H]; ``marks`` [B, H, F] are the future's."""
        forecast = self.output_projection(states)
        if series.covariates is not None:
            added = self.covariate_input.of_future(series.covariates, states)
            forecast = forecast if added is None else forecast + added
        if not self.config.backbone.use_time_marks:
            return forecast
        future = _given(marks, "x_mark_dec")[:, -self.config.data.pred_len :]
        return forecast + self.time_marks.of_future(future, states)

    def reprogram(self, patches: Tensor, micro_step: MicroStep | None = None) -> Tensor:
        """Patches [S, P, D] in the LLM's word space, [S, P, d_llm]."""
        return self.reprogramming_layer(patches, self.source_tokens(micro_step))

    def source_tokens(self, micro_step: MicroStep | None = None) -> Tensor:
        """The source (text prototype) embeddings [C, d_llm]; once an optimizer step, once an evaluation."""
        if self.config.backbone.source_tokens == "prototypes":
            return self.source_prototypes
        if torch.is_grad_enabled():
            return self._source_of_step(micro_step or MicroStep(StepValue(), last=True))
        state = _state_of(self.mapping_layer)
        if self._kept_source is None or self._kept_source[0] != state:
            self._kept_source = state, self._map_words(self.mapping_layer)
        return self._kept_source[1]

    def _source_of_step(self, micro_step: MicroStep) -> Tensor:
        """The mapped source, which the micro-steps of an optimizer step share."""
        source = micro_step.shared.get(lambda: self._map_words(self.mapping_layer), last=micro_step.last)
        if micro_step.last and source.requires_grad and source.device.type == "cpu":
            # what the LLM's backward pass has freed goes before the map's gradient comes
            source.register_hook(lambda gradient: give_back_where_scarce())
        return source

    def _map_words(self, mapping: nn.Linear) -> Tensor:
        """Each source token as a weighted sum of all word embeddings, [C, d_llm]."""
        words = self._word_embeddings().to(mapping.weight.device)
        if not torch.is_autocast_enabled(words.device.type):
            words = words.to(mapping.weight.dtype)
        mapped = mapping.weight @ words
        if self._word_scale != 1:
            mapped = self._word_scale * mapped
        return mapped + mapping.bias[:, None]

    def decode(
        self,
        leading: list[Tensor],
        series: Series,
        patches: Tensor,
        prompt: Tensor | None = None,
        micro_step: MicroStep | None = None,
    ) -> Tensor:
        """Run ``[*leading, prompt, patches]`` through the LLM; its states at the patches [S, P, d_ff].

        ``leading`` holds tokens [S, n, d_llm], which ``--token_order prompt_first`` puts behind the
        prompt. Padding inside the prompt is masked and takes no position, and is as long in every batch,
        so a window's forecast does not depend on its neighbours' prompts. ``prompt`` [B, M, K] is of
        `prompts`; the same is made here where None.
        """
        reprogrammed = self.reprogram(patches, micro_step)
        if prompt is None:
            beside = series.covariates
            words = None if beside is None else beside.words.flatten(0, 1)
            ids = self.prompt.ids(series.lookback, series.observed, words)
        else:
            ids = prompt.flatten(0, 1)
        token_ids, mask = self.prompt.padded(ids.to(patches.device))
        self._refuse_too_long(sum(t.shape[1] for t in (*leading, token_ids, reprogrammed)))
        prefix = None
        prompt_first = self.config.backbone.token_order == "prompt_first" or not leading
        if prompt_first:
            prefix = self._prompt_prefix(token_ids)
        words = self._words(token_ids[:, prefix.length if prefix else 0 :])
        lead = torch.cat([words[:, :0], *(t.to(words.dtype) for t in leading)], dim=1)
        tail = reprogrammed.to(words.dtype)
        if prompt_first:
            mask = F.pad(mask, (0, lead.shape[1] + tail.shape[1]), value=1)
            front, tail = words, torch.cat([lead, tail], dim=1)
        else:
            mask = F.pad(F.pad(mask, (lead.shape[1], 0), value=1), (0, tail.shape[1]), value=1)
            front = torch.cat([lead, words], dim=1)
        states = self._pass(front, tail, mask=mask, prefix=prefix)
        return states[:, -patches.shape[1] :, : self.config.backbone.d_ff].to(patches.dtype)

    def _words(self, token_ids: Tensor) -> Tensor:
        """Word embeddings [S, T, d_llm] of token ids [S, T], on their device."""
        words = self.llm_model.get_input_embeddings()(token_ids).to(token_ids.device)
        return words if self._pass.way.multiplier == 1 else self._pass.way.multiplier * words

    def _prompt_prefix(self, token_ids: Tensor) -> Prefix | None:
        """Keys and values of what all prompts [S, T] begin with; None where that can not be.

        They are kept until the LLM's weights change; where its adapters are being trained, every pass has
        its own, with their gradient.
        """
        if not (self.prompt.n_constant and self._pass.reuses_prefix):
            return None
        constant = token_ids[:1, : self.prompt.n_constant]
        if self._pass.trained and torch.is_grad_enabled():
            return self._pass.prefix(self._words(constant))
        state = _state_of(self.llm_model)
        if self._kept_prefix is None or self._kept_prefix[0] != state:
            with torch.inference_mode(False), torch.no_grad():
                self._kept_prefix = state, self._pass.prefix(self._words(constant.clone()))
        return self._kept_prefix[1]

    def denormalise(self, forecast: Tensor, statistics: InstanceStatistics) -> Tensor:
        """Forecast [S, H] in normalised units to [B, H, M] in standardised ones."""
        n_variables = statistics.mean.shape[-1]
        windows = forecast.unflatten(0, (-1, n_variables)).transpose(1, 2)  # [B, H, N]
        return self.normalize_layers.denormalize(windows.float(), statistics)

    def _refuse_too_long(self, length: int) -> None:
        """The LLM has a position for each token, or there is a clear error."""
        most = positions_of(self.llm_model)
        if most is not None and length > most:
            raise UserError(
                f"--stride, --seq_len: expected at most {most} tokens, the positions of "
                f"{type(self.llm_model).__name__}, found {length}: "
                "place patches further apart, or look back less"
            )

    def _word_embeddings(self) -> Tensor:
        """The words that source tokens are made of, [V, d_llm], without gradient: rows of the LLM's table.

        Where its layers see no multiple of these, it is the words as they see them.
        """
        if self._seen_words is not None:
            return self._seen_words
        return self.llm_model.get_input_embeddings().weight.detach()


def _each_last(windows: Tensor, targets: int) -> Tensor:
    """All variables of windows [B, L, N], for each of the last M once with that one last: [B * M, N, L]."""
    if targets == 1:
        return windows.transpose(1, 2)
    places = list(range(windows.shape[-1]))
    others, forecast = places[:-targets], places[-targets:]
    orders = [[*others, *(place for place in forecast if place != own), own] for own in forecast]
    chosen = windows.transpose(1, 2)[:, torch.tensor(orders, device=windows.device)]  # [B, M, N, L]
    return chosen.flatten(0, 1)


def _state_of(module: nn.Module) -> tuple[tuple[int, int], ...]:
    """Where the weights lie and how often they changed: another value after any change, in place or not."""
    return tuple((weight.data_ptr(), weight._version) for weight in map(_held, module.parameters()))


def _held(weight: Tensor) -> Tensor:
    """What this process holds of a weight: all of it, or its share."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


def _time_marks(config: Config) -> TimeMarks:
    """The part that reads time marks, which follow from ``--freq``; a run takes that from its data."""
    b = config.backbone
    names = mark_names(config.data.freq or DEFAULT_FREQUENCY)
    if not names:
        raise UserError(f"--use_time_marks: expected rows that have marks, found {config.data.freq}")
    return TimeMarks(
        names=names,
        width=b.d_model,
        d_model=b.d_model,
        n_features=b.d_ff,
        patch_len=b.patch_len,
        stride=b.stride,
        pad_end=b.padding_patch == "end",
    )


def _covariate_input(config: Config) -> CovariateInput:
    """The part that reads what is known beside the windows."""
    b, d = config.backbone, config.data
    return CovariateInput(
        known=len(d.known_covariates),
        past=len(d.past_covariates),
        static=_static_width(config),
        d_model=b.d_model,
        n_features=b.d_ff,
        patch_len=b.patch_len,
        stride=b.stride,
        pad_end=b.padding_patch == "end",
    )


def _static_width(config: Config) -> int:
    """Columns of coded statics, which follow from the data."""
    if not config.data.has_statics:
        return 0
    if config.data.static_width is None:
        raise UserError(
            "--static, --static_numbers: expected --static_width, the number of columns, found none"
        )
    return config.data.static_width


def _check_covariates(config: Config, covariates: Covariates | None) -> None:
    """Raise UserError where the settings name covariates that are not given, or other ones are."""
    d = config.data
    if not d.has_covariates and covariates is None:
        return
    expected = (len(d.known_covariates), len(d.past_covariates), _static_width(config))
    found = (0, 0, 0) if covariates is None else tuple(part.shape[-1] for part in covariates[:3])
    if found != expected:
        raise UserError(
            f"covariates: expected {expected[0]} known, {expected[1]} past, {expected[2]} static columns, as "
            f"the settings have it, found {found[0]}, {found[1]} and {found[2]}"
        )


def _make_room(module: nn.Module, incompatible: Any) -> None:
    """Prompts are as long as those that the weights were trained with."""
    model: Any = module
    model.prompt.room = int(model.words_width)


def solved_start(config: Config, *, retrieves: bool) -> SolvedStart:
    """The start of a configuration's forecasts, with a joint map where it ``retrieves``; not yet fitted."""
    d = config.data
    return SolvedStart(
        seq_len=d.seq_len,
        horizon=d.pred_len,
        season=min(d.season or DEFAULT_SEASON, d.seq_len),
        retrieves=retrieves,
        marks=() if d.freq is None else mark_names(d.freq),
        top_k=config.gram.top_k,
        control=config.gram.retrieval_control,
        draw=config.training.seed,
        one_calendar=d.is_panel,
        apart=config.apart,
        covariates=CovariateSizes(
            known=len(d.known_covariates),
            past=len(d.past_covariates),
            static=_static_width(config),
            variables=d.targets_of(d.enc_in or 1),
        ),
    )


def fit_start(start: SolvedStart, config: Config, source: FitSource, *, keeps_calendar: bool = False) -> None:
    """Fill the memory of a configuration's start and solve for its maps; once for all that they depend on."""
    d, control, refine = config.data, config.gram.retrieval_control, config.backbone.start_refine
    settings: dict[str, Any] = {
        "lengths": [d.seq_len, d.pred_len, d.eval_stride],
        "season": d.season,
        "frequency": d.freq,
        "retrieves": start.retrieves,
        "top_k": config.gram.top_k,
        "control": control,
        "refine": refine,
        "seed": config.training.seed if control in ("random", "same_phase") else None,
    }
    if keeps_calendar:
        settings["calendar"] = "kept"
    if d.is_panel:
        settings["apart"] = config.apart
    if d.has_covariates:
        settings["covariates"] = [*d.known_covariates, *d.past_covariates, *d.static, *d.static_numbers]
    start.fill(source.training)
    source.once(
        start,
        settings,
        lambda: start.fit(source.training, source.validation, keeps_calendar=keeps_calendar, refine=refine),
    )
    for line in start.lines():
        log.info("%s", line)


def _given(marks: Tensor | None, name: str) -> Tensor:
    """Marks that ``--use_time_marks`` needs."""
    if marks is None:
        raise ValueError(f"{name}: --use_time_marks reads time marks, found none")
    return marks


def _description(config: Config) -> str:
    """What the prompts say of the data."""
    if config.backbone.prompt_file is not None:
        return read_description(config.backbone.prompt_file)
    return describe(config.data.data if config.backbone.prompt_domain else GENERAL)


def _channels(config: Config) -> int:
    """How many variables a patch embedding reads together."""
    if config.data.features != "MS":
        return 1
    if config.data.enc_in is None:
        raise UserError("--features MS: expected --enc_in, the number of variables, found none")
    return config.data.enc_in


def _drop_llm(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """A state dict does not carry the frozen LLM, only the adapters on it."""
    for key in [k for k in state if k.startswith(prefix + LLM_PREFIX) and not is_adapter(k)]:
        del state[key]


def _pass_over_llm(module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """LLM weights inside a checkpoint are not loaded: the frozen LLM is known by its own hash."""
    _drop_llm(module, state, prefix, None)


def _do_not_miss_llm(module: nn.Module, incompatible: Any) -> None:
    """LLM weights that a checkpoint lacks are no missing keys."""
    incompatible.missing_keys[:] = [
        k for k in incompatible.missing_keys if LLM_PREFIX not in k or is_adapter(k)
    ]

"""Time-LLM: forecasting by reprogramming patches into the word space of a frozen LLM.

Source: Jin et al., "Time-LLM: Time Series Forecasting by Reprogramming Large Language Models",
ICLR 2024. Deviations are named where they occur.

Shape legend: B windows, N variables, L lookback, H horizon, S = B * N series, P patches,
T tokens given to the LLM, D model width, C source tokens.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layers.heads import FlattenHead
from layers.llm import FrozenLLM, load_llm
from layers.normalization import InstanceNorm
from layers.patching import PatchEmbedding
from layers.prompt import PromptBuilder
from layers.reprogramming import ReprogrammingLayer
from models.forecaster import Forecaster
from utils.config import Config
from utils.prompt_bank import describe
from utils.types import InstanceStatistics
from utils.windows import per_series

LLM_PREFIX = "llm_model."
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_SEASON = 24
"""Rows of one season where neither the data nor the settings say: hourly data's day."""


class Series(NamedTuple):
    """A batch taken apart into single variables (channel independence)."""

    lookback: Tensor
    """[S, L], standardised units."""
    normalised: Tensor
    """[S, L], mean 0 and deviation 1."""
    statistics: InstanceStatistics
    """Of the windows, each [B, 1, N]."""


class Model(Forecaster):
    """Windows [B, L, N] to forecasts [B, H, N].

    The frozen LLM is always in eval mode, is not part of `state_dict`, and is passed over by
    `load_state_dict` where a checkpoint carries it.
    """

    name = "TimeLLM"

    def __init__(self, args: Config | Any, *, llm: FrozenLLM | None = None) -> None:
        """Build from a `Config`, or from any object with attributes named like the flags.

        Args:
            args: attributes that it lacks take their one default.
            llm: the language model, where the caller has it already; otherwise it is loaded.
        """
        super().__init__(args)
        config = self.config
        if llm is None:
            with torch.random.fork_rng():  # loading must not move what follows
                llm = load_llm(config.llm, dtype=DTYPES[config.training.mixed_precision])
        self.llm_identity = llm.identity
        self.llm_model: Any = llm.model
        d_llm = llm.identity.hidden_size
        if config.backbone.d_ff > d_llm:
            raise ValueError(
                f"--d_ff: expected at most the LLM's hidden size ({d_llm}), found {config.backbone.d_ff}"
            )
        self._build(config, d_llm)
        self.prompt = PromptBuilder(
            llm.tokenizer,
            description=describe(config.data.data),
            seq_len=config.data.seq_len,
            pred_len=config.data.pred_len,
            digits=config.backbone.prompt_digits,
        )
        self.register_state_dict_post_hook(_drop_llm)
        self.register_load_state_dict_pre_hook(_pass_over_llm)
        self.register_load_state_dict_post_hook(_do_not_miss_llm)
        self.train(self.training)

    def _build(self, config: Config, d_llm: int) -> None:
        """The trained parts, in the order that fixes their random initial weights."""
        b = config.backbone
        self.normalize_layers = InstanceNorm()
        self.patch_embedding = PatchEmbedding(
            d_model=b.d_model,
            patch_len=b.patch_len,
            stride=b.stride,
            pad_end=b.padding_patch == "end",
            dropout=b.dropout,
        )
        self.mapping_layer = nn.Linear(self._word_embeddings().shape[0], b.num_tokens)
        self.reprogramming_layer = ReprogrammingLayer(
            d_model=b.d_model, n_heads=b.n_heads, d_keys=b.d_ff, d_llm=d_llm, dropout=b.dropout
        )
        self.output_projection = FlattenHead(
            n_features=b.d_ff * config.patch_count, horizon=config.data.pred_len, dropout=b.dropout
        )

    def train(self, mode: bool = True) -> Model:
        """Training mode for the trained parts; the frozen LLM stays in eval mode (its dropout is off)."""
        super().train(mode)
        self.llm_model.eval()
        return self

    def forecast(self, x_enc: Tensor, x_mark_enc: Tensor | None, x_mark_dec: Tensor | None) -> Tensor:
        """Windows [B, L, N] to [B, H, N]; the time marks are not read."""
        series = self.normalise(x_enc)
        states = self.decode([], series, self.embed(series))
        return self.denormalise(self.output_projection(states), series.statistics)

    # The steps of a forecast, shared with the enhanced model.

    def normalise(self, x_enc: Tensor) -> Series:
        """Instance normalisation and channel independence."""
        expected = self.config.data.seq_len
        if x_enc.dim() != 3 or x_enc.shape[1] != expected:
            raise ValueError(f"x_enc: expected [B, {expected}, N], found {list(x_enc.shape)}")
        normalised, statistics = self.normalize_layers(x_enc)
        return Series(per_series(x_enc), per_series(normalised), statistics)

    def embed(self, series: Series) -> Tensor:
        """Patch embeddings [S, P, D]."""
        dropped = F.dropout(series.normalised, self.config.backbone.input_dropout, self.training)
        return self.patch_embedding(dropped)

    def reprogram(self, patches: Tensor) -> Tensor:
        """Patches [S, P, D] in the LLM's word space, [S, P, d_llm]."""
        words = self._word_embeddings().to(self.mapping_layer.weight.dtype)
        source = self.mapping_layer(words.T).T  # [C, d_llm]
        return self.reprogramming_layer(patches, source)

    def decode(self, leading: list[Tensor], series: Series, patches: Tensor) -> Tensor:
        """Run ``[*leading, prompt, patches]`` through the LLM; its states at the patches [S, P, d_ff].

        ``leading`` holds tokens [S, n, d_llm]. The prompt is padded on its left; padding is masked
        and takes no position, so a window's forecast does not depend on its neighbours' prompts.
        """
        reprogrammed = self.reprogram(patches)
        token_ids, prompt_mask = self.prompt.tokens(series.normalised)
        self._refuse_too_long(sum(t.shape[1] for t in (*leading, token_ids, reprogrammed)))
        words = self.llm_model.get_input_embeddings()(token_ids)  # [S, T_prompt, d_llm]
        front = [t.to(words.dtype) for t in leading]
        tokens = torch.cat([*front, words, reprogrammed.to(words.dtype)], dim=1)  # [S, T, d_llm]
        n_front = sum(t.shape[1] for t in leading)
        mask = F.pad(prompt_mask, (n_front, reprogrammed.shape[1]), value=1)
        position = (mask.cumsum(dim=-1) - 1).clamp(min=0)
        hidden = self.llm_model(
            inputs_embeds=tokens, attention_mask=mask, position_ids=position
        ).last_hidden_state
        return hidden[:, -reprogrammed.shape[1] :, : self.config.backbone.d_ff].to(patches.dtype)

    def denormalise(self, forecast: Tensor, statistics: InstanceStatistics) -> Tensor:
        """Forecast [S, H] in normalised units to [B, H, N] in standardised ones."""
        n_variables = statistics.mean.shape[-1]
        windows = forecast.unflatten(0, (-1, n_variables)).transpose(1, 2)  # [B, H, N]
        return self.normalize_layers.denormalize(windows.float(), statistics)

    def _refuse_too_long(self, length: int) -> None:
        """The LLM has a position for each token, or there is a clear error."""
        most = getattr(self.llm_model.config, "max_position_embeddings", None)
        if most is not None and length > most:
            raise ValueError(
                f"--stride, --seq_len: expected at most {most} tokens, the positions of "
                f"{type(self.llm_model).__name__}, found {length}: "
                "place patches further apart, or look back less"
            )

    def _word_embeddings(self) -> Tensor:
        """The LLM's input embedding matrix, [V, d_llm], without gradient."""
        return self.llm_model.get_input_embeddings().weight.detach()


def _drop_llm(module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: Any) -> None:
    """A state dict does not carry the frozen LLM."""
    for key in [k for k in state if k.startswith(prefix + LLM_PREFIX)]:
        del state[key]


def _pass_over_llm(module: nn.Module, state: dict[str, Tensor], prefix: str, *args: Any) -> None:
    """LLM weights inside a checkpoint are not loaded: the frozen LLM is known by its own hash."""
    _drop_llm(module, state, prefix, None)


def _do_not_miss_llm(module: nn.Module, incompatible: Any) -> None:
    """LLM weights that a checkpoint lacks are no missing keys."""
    incompatible.missing_keys[:] = [k for k in incompatible.missing_keys if LLM_PREFIX not in k]

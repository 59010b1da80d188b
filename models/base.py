"""What a training run asks of any model, and the step that baselines share.

Shape legend: B windows, N variables, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.utils.data import Dataset

from utils.config import Config, ConfigError
from utils.config_checks import model_problems
from utils.data_sets import SHORT_TERM
from utils.types import Batch, ForecastState, LLMIdentity, PassOfStep, PromptMaker, WindowSource


class ForecastModel(nn.Module):
    """A model of windows [B, L, N]; subclasses give `forecast`.

    The hooks below do nothing: a model overrides those it needs.
    """

    name = ""
    llm_identity: LLMIdentity | None = None
    """The frozen LLM's, where there is one."""
    uses_llm = False
    """Whether there is a frozen LLM."""
    is_trainable = True
    """Whether an optimizer trains it; otherwise `fit_closed_form` does, or there is nothing to fit."""
    reads_time_marks = False
    """Whether a forecast needs the time marks, and the decoder start of ``--label_len``."""
    reads_whole_season = False
    """Whether a forecast needs a whole season in its lookback."""
    channel_independent = False
    """Whether the forecast of a variable reads that variable alone (but with ``--features MS``)."""
    offers_ms = False
    """Whether it takes ``--features MS``: reads all variables, and forecasts the last alone, [B, H, 1]."""
    splits_width = False
    """Whether ``--d_model`` is divided among ``--n_heads``."""
    is_named_by_flag = True
    """Whether ``--model`` of run_main.py may name it; otherwise it has an entry point of its own."""
    prompt_text = ""
    """What every prompt begins with, where there is an LLM: a checkpoint goes on with the same."""
    own_settings: frozenset[str] = frozenset()
    """Which fields of `utils.config.BackboneConfig` and `BaselineConfig` it reads; a run names the others."""

    def __init__(self, args: Config | Any) -> None:
        """Build from a `Config`, or from any object with attributes named like the flags.

        Raises:
            ConfigError: settings that do not fit each other, or this model.
        """
        super().__init__()
        self.config = args if isinstance(args, Config) else Config.from_namespace(args)
        if problems := model_problems(self.config.flat(), self):
            raise ConfigError(problems)

    def forecast(self, x_enc: Tensor, x_mark_enc: Tensor | None, x_mark_dec: Tensor | None) -> Tensor:
        """Windows [B, L, N] to [B, H, N], or [B, H, 1] with ``--features MS``.

        Marks are time features, [B, L, F] and [B, H, F].
        """
        raise NotImplementedError

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
        return_state: bool = False,
    ) -> Tensor | ForecastState:
        """Forecast [B, H, N] of windows ``x_enc`` [B, L, N], both in standardised units."""
        prediction = self.forecast(x_enc, x_mark_enc, x_mark_dec)
        return ForecastState(prediction, None, None) if return_state else prediction

    @property
    def prompts(self) -> PromptMaker | None:
        """What makes the prompts that loaders hand over beside the windows; None for a model without."""
        return None

    def insample_mask(self, x_mark_enc: Tensor | None) -> Tensor | None:
        """Which rows of a window exist, [B, L, 1], for series without dates; None where all do."""
        return x_mark_enc if self.config.run.task_name == SHORT_TERM else None

    def shard_llm(self, mesh: DeviceMesh) -> None:
        """Divide the layers of the frozen LLM among the processes of ``mesh``, where there is one."""

    def starting_weights(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What ``--init_from`` loads of another run's weights; what they may lack is added."""
        return weights

    def fit_statistics(self, source: WindowSource) -> None:
        """Learn from the training windows what is counted rather than trained."""

    @property
    def begins_solved(self) -> bool:
        """Whether a forecast is one before the first optimizer step, which then counts as any other."""
        return False

    @property
    def closed_form_settings(self) -> dict[str, Any] | None:
        """What `fit_closed_form` depends on beside the data, where its result is worth keeping."""
        return None

    @property
    def closed_form_lines(self) -> list[str]:
        """What `fit_closed_form` found, in words."""
        return []

    @property
    def closed_form_facts(self) -> dict[str, Any]:
        """The same as plain values, for the results."""
        return {}

    def fit_closed_form(self, training: WindowSource, validation: Dataset[Batch]) -> None:
        """Solve for the weights, where they have a closed form; settings by validation alone."""

    def recalibrate(self, source: WindowSource) -> None:
        """Count anew, under another run's weights that this one starts from, what is not learned."""

    def refresh(self, source: WindowSource) -> None:
        """Recompute what was derived from weights that have moved since."""

    def begin_pass(self, place: PassOfStep) -> None:
        """A forward pass in training begins; said before each, or every pass is a step of its own."""

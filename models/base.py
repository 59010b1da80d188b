"""What a training run asks of any model, and the step that baselines share.

Shape legend: B windows, N variables, L lookback, H horizon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from utils.config import Config, ConfigError
from utils.config_checks import model_problems
from utils.data_sets import SHORT_TERM
from utils.types import FitSource, ForecastState, LLMIdentity, PromptMaker, TextReading, WindowSource


class ForecastModel(nn.Module):
    """A model of windows [B, L, N]: gives `forward`, and of the other three hooks those that it needs.

    They are `fit_statistics`, `refresh` and `state`, which do nothing here.
    """

    name = ""
    llm_identity: LLMIdentity | None = None
    """The frozen LLM's, where there is one."""
    uses_llm = False
    """Whether there is a frozen LLM."""
    is_trainable = True
    """Whether an optimizer trains it; otherwise `fit_statistics` does, or there is nothing to fit."""
    reads_time_marks = False
    """Whether a forecast needs the time marks, and the decoder start of ``--label_len``."""
    reads_whole_season = False
    """Whether a forecast needs a whole season in its lookback."""
    channel_independent = False
    """Whether the forecast of a variable reads that variable alone (but with ``--features MS``)."""
    offers_ms = False
    """Whether it takes ``--features MS``: reads all variables, and forecasts the last M alone, [B, H, M]."""
    reads_covariates = False
    """Whether a forecast reads what is known beside the variables (`utils.types.Covariates`)."""
    splits_width = False
    """Whether ``--d_model`` is divided among ``--n_heads``."""
    begins_solved = False
    """Whether a forecast is one before the first optimizer step, which then counts as any other."""
    is_named_by_flag = True
    """Whether ``--model`` of run_main.py may name it; otherwise it has an entry point of its own."""
    prompt_text = ""
    """What every prompt begins with, where there is an LLM: a checkpoint goes on with the same."""
    prompts: PromptMaker | None = None
    """What makes the prompts that loaders hand over beside the windows, where there is an LLM."""
    own_settings: frozenset[str] = frozenset()
    """Which fields of `utils.config.BackboneConfig` and `BaselineConfig` it reads; a run names the others."""

    def __init_subclass__(cls) -> None:
        """Raise TypeError for what a class says of itself under a name that nothing reads."""
        facts = {name for name, value in vars(cls).items() if isinstance(value, bool | str | frozenset)}
        known = {name for name in vars(ForecastModel) if not name.startswith("_")}
        if unknown := sorted(name for name in facts - known if not name.startswith("_")):
            raise TypeError(
                f"{cls.__module__}: expected facts that models/base.py lists, found {', '.join(unknown)}"
            )

    def __init__(self, args: Config | Any) -> None:
        """Build from a `Config`, or from any object with attributes named like the flags.

        Raises:
            ConfigError: settings that do not fit each other, or this model.
        """
        super().__init__()
        self.config = args if isinstance(args, Config) else Config.from_namespace(args)
        if problems := model_problems(self.config.flat(), self):
            raise ConfigError(problems)

    def forward(self, x_enc: Tensor, *args: Any, **kwargs: Any) -> Tensor | ForecastState:
        """Forecast [B, H, M] of windows ``x_enc`` [B, L, N], both in standardised units; M as in `Batch`.

        Called with the time marks ``x_mark_enc`` [B, L, F] and ``x_mark_dec`` [B, H, F] (second and fourth
        where given by place), ``start, series_id, variable, target, prompt`` of the `Batch`, its
        ``covariates`` where it has any, and ``return_state=True``: a model whose parts record what they did
        gives a `ForecastState`.
        """
        raise NotImplementedError

    def insample_mask(self, x_mark_enc: Tensor | None) -> Tensor | None:
        """Which rows of a window exist, [B, L, 1], for series without dates; None where all do."""
        return x_mark_enc if self.config.run.task_name == SHORT_TERM else None

    @property
    def closed_form_facts(self) -> dict[str, Any]:
        """What `fit_statistics` solved for, as plain values, for the results."""
        return {}

    @classmethod
    def read_texts(cls, config: Config, texts: Sequence[str]) -> TextReading:
        """What it makes of texts, each by itself; asked of models with an LLM alone."""
        raise NotImplementedError

    def fit_statistics(self, source: FitSource) -> None:
        """Learn what is counted or solved rather than trained; what takes long, by `FitSource.once`."""

    def refresh(self, source: WindowSource) -> None:
        """Recompute from the training windows what was derived from weights that have moved since."""

    def state(self, weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """All that a run loads which ``--init_from`` another's ``weights``: these, and what they may lack."""
        return weights

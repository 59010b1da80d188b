"""The models, by name."""

from collections.abc import Callable, Sequence

from layers.llm.load import outline_of
from models import (
    Autoformer,
    DLinear,
    Linear,
    PanelAverage,
    PatchTST,
    Persistence,
    RetrievalRidge,
    Ridge,
    SeasonalNaive,
    TimeLLM,
    TimeLLM_Enhanced,
)
from models.base import ForecastModel
from utils.cli import parse_config
from utils.config import Config
from utils.types import LLMOutline

MODELS: dict[str, type[ForecastModel]] = {
    "TimeLLM": TimeLLM.Model,
    "TimeLLM_Enhanced": TimeLLM_Enhanced.Model,
    "Autoformer": Autoformer.Model,
    "DLinear": DLinear.Model,
    "Linear": Linear.Model,
    "PanelAverage": PanelAverage.Model,
    "PatchTST": PatchTST.Model,
    "Persistence": Persistence.Model,
    "RetrievalRidge": RetrievalRidge.Model,
    "Ridge": Ridge.Model,
    "SeasonalNaive": SeasonalNaive.Model,
}

assert all(name == model.name for name, model in MODELS.items()), "a model's `name` is its name here"


def llm_outline(name: str) -> Callable[[Config], LLMOutline | None]:
    """From a configuration to the widths of the LLM that the model of this name reads; None without one."""
    uses_llm = MODELS[name].uses_llm
    return lambda config: outline_of(config.llm) if uses_llm else None


ENHANCED_DEFAULTS = {"start": "auto"}
"""What run_main_enhanced.py asks for where its command line says nothing else."""
ENHANCED_FLAGS = tuple(word for name, value in ENHANCED_DEFAULTS.items() for word in (f"--{name}", value))


def parse_run(argv: Sequence[str] | None = None) -> tuple[Config, str]:
    """What a command line of either entry point asks for, and the model that it trains."""
    config = parse_config(argv, models=MODELS)
    if model_name(config) == "TimeLLM_Enhanced":
        config = parse_config(argv, models=MODELS, first=ENHANCED_FLAGS)
    return config, model_name(config)


def model_name(config: Config) -> str:
    """The model that the entry point for these settings trains."""
    if config.tapr.use_tapr or config.gram.use_gram:
        return "TimeLLM_Enhanced"
    return config.run.model or "TimeLLM"

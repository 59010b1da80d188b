"""The models, by name."""

from collections.abc import Callable

from models import (
    Autoformer,
    DLinear,
    Linear,
    PatchTST,
    Persistence,
    Ridge,
    SeasonalNaive,
    TimeLLM,
    TimeLLM_Enhanced,
)
from models.forecaster import Forecaster

MODELS: dict[str, Callable[..., Forecaster]] = {
    "TimeLLM": TimeLLM.Model,
    "TimeLLM_Enhanced": TimeLLM_Enhanced.Model,
    "Autoformer": Autoformer.Model,
    "DLinear": DLinear.Model,
    "Linear": Linear.Model,
    "PatchTST": PatchTST.Model,
    "Persistence": Persistence.Model,
    "Ridge": Ridge.Model,
    "SeasonalNaive": SeasonalNaive.Model,
}

"""The models, by name."""

from collections.abc import Callable

from models import DLinear, Linear, PatchTST, TimeLLM, TimeLLM_Enhanced
from models.forecaster import Forecaster

MODELS: dict[str, Callable[..., Forecaster]] = {
    "TimeLLM": TimeLLM.Model,
    "TimeLLM_Enhanced": TimeLLM_Enhanced.Model,
    "DLinear": DLinear.Model,
    "Linear": Linear.Model,
    "PatchTST": PatchTST.Model,
}

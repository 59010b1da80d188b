"""The models, by name."""

from collections.abc import Callable
from typing import Any

from torch import nn

from models import TimeLLM, TimeLLM_Enhanced

MODELS: dict[str, Callable[..., nn.Module]] = {
    "TimeLLM": TimeLLM.Model,
    "TimeLLM_Enhanced": TimeLLM_Enhanced.Model,
}


def build_model(name: str, *args: Any, **kwargs: Any) -> nn.Module:
    """The model of this name, built from the arguments of its ``Model`` class."""
    if name not in MODELS:
        raise ValueError(f"model: expected one of {', '.join(MODELS)}, found {name}")
    return MODELS[name](*args, **kwargs)

"""The one hook by which a run reaches everything that only many processes or GPUs need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from utils.config import Config
from utils.training.distributed.deepspeed import DeepSpeed
from utils.training.distributed.fsdp import DividedLLM
from utils.training.distributed.launcher_options import as_launched, deepspeed_is_asked
from utils.training.distributed.plain import Wing


@contextmanager
def wing_of(config: Config) -> Iterator[Wing]:
    """How the processes share the run's work, by its flags and what accelerate's launcher asks for.

    Raises:
        ConfigError: the launcher's file asks for what can not be had.
    """
    with as_launched(config) as (launched, unread):
        if deepspeed_is_asked():
            yield DeepSpeed(launched, unread)
        elif launched.llm.shard_llm:
            yield DividedLLM(launched, unread)
        else:
            yield Wing(launched, unread)

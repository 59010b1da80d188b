"""Which of a run's flags it never reads; what a model reads, its class says (`models.base`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from utils.config import GROUPS, Config, iter_settings
from utils.data_sets import M4

STEPS_READ = frozenset(
    "batch_size eval_batch_size mixed_precision matmul_precision cpu deterministic seed "
    "auto_batch_size max_channels_per_step levels interval_score".split()
)
"""Training settings that a run without optimizer steps reads too."""
RESOLVED = frozenset({"season", "enc_in", "freq"})
"""What the data decide where no flag does: not to be told as flags."""
OF_DATES = frozenset({"date_format", "time_zone", "round_dates"})
"""How the dates of a file are read."""
USUAL = {"retrieval_key": "hybrid"}
"""What auto comes to in a memory of ordinary size: not to be told as a flag either."""


def unread_flags(config: Config, model: Any) -> list[str]:
    """Flags that were set to other than their default and do nothing in this run, each with the reason.

    ``model`` is the run's `models.base.ForecastModel`, or its class.
    """
    reasons: dict[str, str] = {}
    for reason, names in _unread(config, model):
        for name in names:
            reasons.setdefault(name, reason)
    values = config.flat()
    told = [
        name
        for _, name, item in iter_settings()
        if name in reasons
        and name not in RESOLVED
        and values[name] not in (item.default, USUAL.get(name, item.default))
    ]
    return [f"--{name} ({reasons[name]})" for name in told]


def _unread(config: Config, model: Any) -> Iterator[tuple[str, set[str]]]:
    """(reason, settings that are not read for it), the most telling reason first."""
    if not model.uses_llm:
        own = _group("tapr") | _group("gram") | _group("llm") | {"gradient_checkpointing"}
        own -= model.own_settings
        yield f"{model.name} has no LLM", own
    else:
        yield from _unread_modules(config)
    parts = _group("backbone") | _group("baseline")
    yield f"{model.name} has no such part", parts - model.own_settings
    yield from _unread_data(config)
    yield from _unread_training(config, model)


def _unread_modules(config: Config) -> Iterator[tuple[str, set[str]]]:
    """Settings of modules that are off, and of parts that a choice leaves out."""
    tapr, gram = config.tapr, config.gram
    if config.llm.llm_ablation in ("attention", "none"):
        unread = (
            {"llm_layers"}
            if config.llm.llm_ablation == "attention"
            else {"llm_layers", "token_order", "prompt_domain", "prompt_digits"}
        )
        yield f"--llm_ablation {config.llm.llm_ablation} does without the LLM's layers", unread
    if config.llm.peft == "none":
        yield "without --peft lora", {"lora_rank", "lora_alpha", "lora_dropout", "lora_targets"}
    if not tapr.use_tapr:
        yield "without --use_tapr", _group("tapr") - {"use_tapr"}
    if not gram.use_gram:
        yield "without --use_gram", _group("gram") - {"use_gram"}
    elif gram.retrieval_key == "raw":
        yield "--retrieval_key raw learns no key", {"d_repr"}
    if gram.memory_size == "all":
        yield "--memory_size all has no limit", {"max_memory_size"}
    if not (tapr.use_tapr or gram.use_gram):
        yield "without --use_tapr or --use_gram", {"aux_warmup_steps", "token_order"}
    if config.llm.llm_model_path is not None:
        yield "--llm_model_path names the LLM", {"llm_model"}


def _unread_data(config: Config) -> Iterator[tuple[str, set[str]]]:
    """Settings of files and columns that this run does not open."""
    if config.data.data == "synthetic":
        yield "the built-in series has no file", {"root_path", "data_path", *OF_DATES}
    if config.data.data != M4:
        yield "without --data M4", {"seasonal_patterns"}
    else:
        yield (
            "M4's series have one column and no dates",
            {
                "target",
                "fill_missing",
                "channel_sampling",
                *OF_DATES,
            },
        )
    if config.data.features == "M":
        yield "--features M reads all columns", {"target"}


def _unread_training(config: Config, model: Any) -> Iterator[tuple[str, set[str]]]:
    """Settings of steps that are not taken."""
    of_steps = (_group("training") - STEPS_READ) | {"save_steps", "save_total_limit", "log_steps"}
    if not model.is_trainable:
        yield f"{model.name} takes no optimizer steps", of_steps
    elif not config.run.is_training:
        yield "--is_training 0 takes no steps", of_steps
    if config.run.save_steps == 0:
        yield "--save_steps 0 keeps none", {"save_total_limit"}


def _group(name: str) -> set[str]:
    return {item.name for item in fields(GROUPS[name])}

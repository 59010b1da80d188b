"""Which of a run's flags it never reads; what a setting needs, its field says (`utils.config`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from utils.config import GROUPS, Config, Need, iter_settings
from utils.data_sets import COMPETITIONS, M4, PACKAGED

OWN = ("llm", "part", "gram", "start")
"""What a model may be without and read a setting of all the same, by its ``own_settings``."""


def unread_flags(config: Config, model: Any) -> list[str]:
    """Flags that were set to other than their default and do nothing in this run, each with the reason.

    ``model`` is the run's `models.base.ForecastModel`, or its class.
    """
    values, reasons = config.flat(), unread_reasons(config, model)
    return [
        f"--{name} ({reasons[name]})"
        for _, name, item in iter_settings()
        if name in reasons and values[name] != item.default
    ]


def unread_reasons(config: Config, model: Any) -> dict[str, str]:
    """``{flag name: reason}`` of each setting that needs something which this run has not."""
    reasons: dict[str, str] = {}
    for lacking, reason in _lacking(config, model):
        for group, name, item in iter_settings():
            needed = (*getattr(GROUPS[group], "needs", ()), *item.metadata["needs"])
            if lacking in needed and not (lacking in OWN and name in model.own_settings):
                reasons.setdefault(name, reason)
    return reasons


def _lacking(config: Config, model: Any) -> Iterator[tuple[Need, str]]:
    """(what this run is without, why), the most telling reason first."""
    if not model.uses_llm:
        yield "llm", f"{model.name} has no LLM"
    yield "part", f"{model.name} has no such part"
    yield from _lacking_modules(config)
    if config.data.data == "synthetic":
        yield "file", "the built-in series has no file"
    if config.data.data in COMPETITIONS:
        yield "table", f"{config.data.data}'s series have one column and no dates"
    else:
        yield "m4", "without a competition's --data"
    if config.data.data in COMPETITIONS and config.data.data != M4:
        yield "file", f"{config.data.data} comes with the package {PACKAGED}"
    if not config.data.is_panel:
        yield "panel", f"{config.data.data} is one series"
        if config.data.features == "M":
            yield "selection", "--features M reads all columns"
    if not model.is_trainable:
        yield "steps", f"{model.name} takes no optimizer steps"
    elif not config.run.is_training:
        yield "steps", "--is_training 0 takes no steps"
    if config.run.save_steps == 0:
        yield "step_files", "--save_steps 0 keeps none"


def _lacking_modules(config: Config) -> Iterator[tuple[Need, str]]:
    """Modules that are off, and parts that a choice leaves out."""
    llm, tapr, gram = config.llm, config.tapr, config.gram
    ablated = f"--llm_ablation {llm.llm_ablation} does without the LLM's layers"
    if llm.llm_ablation in ("attention", "none"):
        yield "layers", ablated
    if llm.llm_ablation == "none":
        yield "tokens", ablated
    if llm.peft == "none":
        yield "lora", "without --peft lora"
    if not tapr.use_tapr:
        yield "tapr", "without --use_tapr"
    if not gram.use_gram:
        yield "gram", "without --use_gram"
    if gram.retrieval_key == "raw":
        yield "learned_key", "--retrieval_key raw learns no key"
    if config.shares_search:
        yield "own_memory", "GRA-M's memory is the start's, of up to 100,000 rows"
    if gram.gate_loss == "errors" and gram.retrieval_fusion == "feature" and not config.begins_solved:
        yield (
            "choice",
            "without a start or --retrieval_fusion both the gate has no two forecasts to choose from",
        )
    if config.text.text_file is None:
        yield "text", "without --text_file"
    if config.text.text_fusion != "asked":
        yield "asked", f"--text_fusion {config.text.text_fusion} asks nothing"
    if not config.begins_solved:
        yield "start", "--start none has no start"
    if gram.memory_size == "all":
        yield "memory_limit", "--memory_size all has no limit"
    if not (tapr.use_tapr or gram.use_gram):
        yield "modules", "without --use_tapr or --use_gram"
    if llm.llm_model_path is not None:
        yield "llm_by_name", "--llm_model_path names the LLM"

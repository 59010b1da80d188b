"""What is wrong with settings: numbers out of range, and settings that do not fit together.

What does not fit together is told of the flat settings, ``{flag name: value}`` (`utils.config.Config.flat`),
in one line each, which names a flag, what was expected and what was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from utils.data_sets import SHORT_TERM, m4_problems, transfer_problems

ATTENTION_HEADS = 4
"""Heads of every attention inside TAPR and GRA-M; their widths are multiples of it."""
Models = Mapping[str, Any]
"""Classes of `models.base.ForecastModel` by name, that of no ``--model`` first; entry points know them."""


def expected_number(value: float, facts: Mapping[str, Any]) -> str | None:
    """What a number should have been by the ``facts`` of its setting; None where it is."""
    low, high, below = facts["at_least"], facts["at_most"], facts["below"]
    if below is not None:
        return None if low <= value < below else f"a number from {low} to below {below}"
    if not math.isfinite(value):
        return "a finite number"
    if low <= value <= high:
        return None
    return f"{low} or more" if high == math.inf else f"{low} to {high}"


def expected_items(values: tuple[Any, ...], kind: type) -> str | None:
    """What the values of a setting of several, each of this kind, should have been; None where they are."""
    if kind is float and not all(isinstance(value, float) and 0 < value < 1 for value in values):
        return "numbers between 0 and 1"
    if kind is str and not all(isinstance(value, str) and value for value in values):
        return "names"
    return None


def joint_problems(values: Mapping[str, Any], models: Models | None = None) -> list[str]:
    """Settings that are right alone and do not fit together, or not the one of ``models`` that they name."""
    s = SimpleNamespace(**values)
    checks = (_lengths, _variables, _covariates, _modules, _texts, _training, _llm, _sharding)
    return [
        *transfer_problems(s),
        *m4_problems(values),
        *(problem for check in checks for problem in check(s)),
        *(() if models is None else _named_model(s, models)),
    ]


def _named_model(s: SimpleNamespace, models: Models) -> list[str]:
    """What is wrong with ``--model``, or with the other settings for that model."""
    offered = [name for name, model in models.items() if model.is_named_by_flag]
    if s.model is not None and s.model not in offered:
        return [f"--model: expected {' or '.join(offered)}, found {s.model!r}"]
    return model_problems(vars(s), models[s.model or offered[0]])


def model_problems(values: Mapping[str, Any], model: Any) -> list[str]:
    """Settings that this model, a `models.base.ForecastModel` or its class, can not do with."""
    s, found = SimpleNamespace(**values), []
    if s.features == "MS" and not model.offers_ms and model.channel_independent:
        found.append(
            f"--features MS: {model.name} forecasts each variable from itself alone; use "
            "--features S, which is the same, or TimeLLM"
        )
    elif s.features == "MS" and not model.offers_ms:
        found.append(f"--features MS: {model.name} forecasts all variables that it reads; use M or S")
    for name in ("known_covariates", "past_covariates", "static", "static_numbers"):
        if getattr(s, name) and not model.reads_covariates:
            found.append(f"--{name}: {model.name} reads no covariates; use TimeLLM, or leave it out")
    if s.max_channels_per_step is not None and not model.channel_independent:
        found.append(f"--max_channels_per_step: {model.name} reads all variables at once; leave it out")
    if s.channel_sampling == "single" and not model.channel_independent:
        found.append(f"--channel_sampling: {model.name} reads all variables of a window; use joint")
    if model.reads_time_marks and s.label_len > s.seq_len:
        found.append(
            f"--label_len: expected at most --seq_len ({s.seq_len}), of which {model.name} reads the end, "
            f"found {s.label_len}; name a smaller one, such as --label_len {s.seq_len // 2}"
        )
    if model.splits_width and s.d_model % s.n_heads:
        found.append(f"--d_model: {model.name} needs a multiple of --n_heads, found {s.d_model}")
    return found


def _lengths(s: SimpleNamespace) -> Iterator[str]:
    """Windows, patches and what is said of them."""
    if s.patch_len > s.seq_len:
        yield f"--patch_len: expected at most --seq_len ({s.seq_len}), found {s.patch_len}"
    if s.prompt_file is not None and not s.prompt_domain:
        yield "--prompt_file: --prompt_domain 0 leaves every description out; drop one of them"


def _variables(s: SimpleNamespace) -> Iterator[str]:
    """Which variables a model reads together."""
    if s.features != "M" and not s.target:
        yield f"--target: --features {s.features} forecasts the columns that it names, found none"
    if twice := sorted({name for name in s.target if s.target.count(name) > 1}):
        yield f"--target: expected each column once, found {twice[0]!r} more than once"
    if s.features == "MS" and s.channel_sampling == "single":
        yield "--channel_sampling single: --features MS reads all variables at once; use joint"
    if (s.id_column or s.date_column) and s.data not in ("custom",):
        yield f"--id_column, --date_column: expected --data custom, a file of your own, found --data {s.data}"
    if s.features == "MS" and s.max_channels_per_step is not None:
        yield "--max_channels_per_step: --features MS reads all variables at once; leave it out"


def _covariates(s: SimpleNamespace) -> Iterator[str]:
    """What is known beside the variables."""
    roles = {name: list(getattr(s, name)) for name in ("known_covariates", "past_covariates")}
    for name, columns in roles.items():
        if both := [target for target in s.target if s.features != "M" and target in columns]:
            yield f"--{name}: {both[0]!r} is a --target; a column is forecast or a covariate, not both"
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            yield f"--{name}: expected each column once, found {twice[0]!r} more than once"
    if both := sorted(set(roles["known_covariates"]) & set(roles["past_covariates"])):
        yield f"--past_covariates: {both[0]!r} is among --known_covariates too; leave it out of one"
    statics = [*s.static, *s.static_numbers]
    if statics and s.static_path is None:
        flag = "static" if s.static else "static_numbers"
        yield f"--{flag}: expected --static_path, the table of these columns, found none"
    if s.static_path is not None and not statics:
        yield "--static_path: expected --static or --static_numbers, which columns of it are read, found none"
    if twice := sorted({column for column in statics if statics.count(column) > 1}):
        yield f"--static, --static_numbers: expected each column once, found {twice[0]!r} more than once"
    asked = [name for name in (*roles, "static", "static_numbers") if getattr(s, name)]
    if asked and s.eval_data is not None:
        yield f"--{asked[0]}: --eval_data {s.eval_data} has no such columns; drop one of them"


def _modules(s: SimpleNamespace) -> Iterator[str]:
    """TAPR, GRA-M and widths that heads share."""
    if isinstance(s.memory_size, int) and s.memory_size > s.max_memory_size:
        yield (
            f"--memory_size: expected at most --max_memory_size ({s.max_memory_size}) or all, "
            f"found {s.memory_size}"
        )
    if s.build_memory and not s.use_gram:
        yield "--build_memory: there is no memory without --use_gram; add it, or drop this"
    if s.use_gram and s.retrieval_key != "raw" and s.d_repr % ATTENTION_HEADS:
        yield f"--d_repr: expected a multiple of {ATTENTION_HEADS} (attention heads), found {s.d_repr}"
    if s.use_gram and s.gate_loss == "document" and s.start != "none":
        yield (
            "--gate_loss document: its gate is never 0, where forecasts begin; add --start none, "
            "or take --gate_loss errors"
        )
    if (s.use_tapr or s.use_gram) and s.d_model % ATTENTION_HEADS:
        yield f"--d_model: TAPR and GRA-M need a multiple of {ATTENTION_HEADS}, found {s.d_model}"


def _texts(s: SimpleNamespace) -> Iterator[str]:
    """What dated texts do not go with."""
    if s.text_file is None:
        return
    if s.task_name == SHORT_TERM:
        yield "--text_file: expected series with dates, found M4's, which have none; leave it out"
    if s.known_covariates or s.past_covariates or s.static or s.static_numbers:
        yield "--text_file: it is not read beside covariates (--known_covariates and its kin); leave one out"
    if s.eval_data is not None:
        yield "--text_file: it is about --data alone, and --eval_data tests on another; drop one of them"
    if s.text_fusion == "asked" and s.llm_ablation in ("attention", "none"):
        yield (
            f"--text_fusion asked: expected an LLM that reads, found --llm_ablation {s.llm_ablation}; use "
            "random for its control, or --text_fusion none"
        )


def _training(s: SimpleNamespace) -> Iterator[str]:
    """Runs, steps and numbers."""
    if s.itr > 1 and (s.resume_from_checkpoint or not s.is_training):
        yield (
            f"--itr: expected 1 when resuming or testing one checkpoint, found {s.itr}; "
            "name each run's own checkpoint"
        )
    if s.lradj == "TST" and s.lr_warmup_steps:
        yield (
            f"--lr_warmup_steps: expected 0 with --lradj TST, which rises by itself, found "
            f"{s.lr_warmup_steps}"
        )
    if s.mixed_precision == "fp16" and s.cpu:
        yield "--mixed_precision: fp16 needs a GPU; use bf16 or no with --cpu"
    if s.resume_from_checkpoint and s.init_from:
        yield "--init_from: cannot be combined with --resume_from_checkpoint"


def _llm(s: SimpleNamespace) -> Iterator[str]:
    """The LLM's layers, its adapters and its devices."""
    kept = f"--llm_weights {s.llm_weights}"
    if s.llm_ablation == "random" and s.load_in_4bit:
        yield "--load_in_4bit: random weights (--llm_ablation random) are not quantised"
    if s.llm_weights != "auto":
        if s.llm_ablation == "random":
            yield f"{kept}: random weights (--llm_ablation random) are kept as they are drawn; drop either"
        if s.load_in_4bit:
            yield f"{kept}: --load_in_4bit keeps the weights in 4 bits; drop either"
        if s.llm_device_map is not None:
            yield f"{kept}: --llm_device_map spreads the LLM as it is on disk; drop either"
    if s.peft != "none" and s.llm_ablation in ("attention", "none"):
        yield f"--peft {s.peft}: --llm_ablation {s.llm_ablation} leaves no layers to adapt; drop either"
    if s.peft != "none" and s.load_in_4bit:
        yield (
            f"--peft {s.peft}: adapters on 4-bit weights (--load_in_4bit) are not offered; use "
            "--llm_weights int8, or --mixed_precision bf16 and --gradient_checkpointing"
        )
    if s.llm_device_map is not None and s.llm_ablation == "random":
        yield "--llm_device_map: random weights (--llm_ablation random) are drawn onto one device"
    if s.llm_device_map not in (None, "cpu") and s.cpu:
        yield (
            f"--llm_device_map {s.llm_device_map}: it spreads the LLM over GPUs, which --cpu does not use; "
            "drop one of them"
        )
    if "all-linear" in s.lora_targets and len(s.lora_targets) > 1:
        yield f"--lora_targets: expected all-linear alone, or names, found {spaced(s.lora_targets)}"


def _sharding(s: SimpleNamespace) -> Iterator[str]:
    """What does not go with an LLM that is divided among processes."""
    if not s.shard_llm:
        return
    reasons = {
        f"--llm_device_map {s.llm_device_map}: it spreads the LLM over one process's devices": (
            s.llm_device_map is not None
        ),
        "--load_in_4bit: weights in 4 bits are not divided": s.load_in_4bit,
        f"--llm_weights {s.llm_weights}: weights that are kept otherwise are not divided": (
            s.llm_weights != "auto"
        ),
        f"--llm_ablation {s.llm_ablation}: it leaves no layers to divide": (
            s.llm_ablation in ("attention", "none")
        ),
    }
    for reason, found in reasons.items():
        if found:
            yield f"{reason}; drop it, or --shard_llm"


def season_problem(season: int, seq_len: int, model: str) -> str:
    """The message for a forecast that repeats a season longer than what it looks back on."""
    return (
        f"--model {model}: expected a lookback of a whole season, {season} rows or more, found --seq_len "
        f"{seq_len}; use --seq_len {season}, or name a shorter season, such as --season {seq_len}"
    )


def spaced(value: Any) -> str:
    """The items of a setting of several values, as they stand behind its flag."""
    return " ".join(map(str, value))

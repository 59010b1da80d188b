"""Every setting of a run: the one home of each default and derived value; checks: `utils.config_checks`.

A setting is a field of one of the small frozen dataclasses below; its flag is ``--<field name>``
(`utils.cli` builds the parser from these fields). Layers receive their own part, never the whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from utils.config_checks import Models, joint_problems, range_problems, spaced
from utils.data_sets import DATA_SETS, SHORT_TERM, default_flags, known_as, name_problem
from utils.errors import UserError
from utils.file_names import safe_name

KEY_SEASONS = 7
"""Seasons in the raw retrieval key (cut to the lookback): 168 rows of hourly data."""
RAW_KEY_ROWS = 100_000
"""Memories of more rows have raw keys by default: others are computed anew after every epoch."""
SCALE_BASE = 4
"""Each scale of TAPR is this many times coarser than the one before: 1x, 4x, 16x, 64x."""
STD_FLOOR = 0.1
"""Smallest deviation, in standardised units, that anything is divided by."""
DOCUMENT_NEIGHBOURS = 5
"""Neighbours that GRA-M's own memory gives by default; source: the original design document."""
AUTO = "auto"
"""Of a setting that the run itself decides."""
BY_MACHINE = ("mixed_precision", "matmul_precision")
"""Settings whose ``auto`` is decided by the machine that a run begins on, and recorded as what it came to."""
PART_OF_NAME = 36
"""Bytes of each free text in the name of a run's folder, which has 255 in all."""
_FLAG = re.compile(r"--(\w+)")


class ConfigError(UserError):
    """One or more settings are wrong; the message lists every problem."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems, each naming a flag, what was expected and what was found."""
        self.problems = problems
        super().__init__("\n".join(problems))


_AS_DEFAULT = object()


def setting(default: Any, text: str, *, then: Any = _AS_DEFAULT) -> Any:
    """A dataclass field with the one line that ``--help`` prints for its flag.

    ``then`` is what a run counts as having that says nothing of the setting, saved before it was there: the
    first default, and where what came before was none of its values, that. It must be given where the default
    changes, and never changes itself: names of runs and keys of studies leave this value out.
    """
    then = default if then is _AS_DEFAULT else then
    return field(default=default, metadata={"help": text, "then": then})


def path_setting(default: str | None, text: str) -> Any:
    """A `setting` that names a file or a folder; blanks alone, as of an unset variable, are not given."""
    return field(default=default, metadata={"help": text, "path": True, "then": default})


@dataclass(frozen=True)
class DataConfig:
    """Which series, cut into which windows."""

    data: str = setting("ETTh1", f"data set: {', '.join(DATA_SETS)}")
    root_path: str = path_setting("./dataset/ETT-small", "folder of the data file (default: the data set's)")
    data_path: str | None = path_setting(None, "data file inside root_path (default: the data set's)")
    features: Literal["M", "S", "MS"] = setting(
        "M", "M: all variables from all; S: the target from itself; MS: the target from all variables"
    )
    target: str = setting("OT", "target column, used with --features S and MS")
    enc_in: int | None = setting(None, "expected number of variables read (default: the file's)")
    freq: str | None = setting(
        None, "frequency of the rows, a pandas alias or MS-15 for each 15th; accepts gaps (default: inferred)"
    )
    date_format: str | None = setting(
        None, "how dates are written: strptime's format (1949%y: from 1949 on), or ISO8601 (default: found)"
    )
    time_zone: str | None = setting(
        None, "zone of the dates, such as Europe/Berlin; offsets are brought into it (default: the file's)"
    )
    round_dates: bool = setting(False, "round times that jitter around regular ones")
    seasonal_patterns: Literal["Yearly", "Quarterly", "Monthly", "Weekly", "Daily", "Hourly"] = setting(
        "Monthly", "group of M4's series"
    )
    fill_missing: Literal["interpolate", "ffill"] | None = setting(
        None, "missing and infinite numbers: interpolate between rows, or ffill (default: an error)"
    )
    seq_len: int = setting(512, "lookback window L, rows")
    label_len: int = setting(48, "decoder start length, rows (read by encoder-decoder models only)")
    pred_len: int = setting(96, "horizon H, rows")
    percent: int = setting(100, "share of the training part that is used, percent")
    eval_data: str | None = setting(
        None, "data set to test on, in place of --data: zero-shot transfer (default: --data itself)"
    )
    eval_root_path: str | None = path_setting(None, "folder of --eval_data's file (default: the data set's)")
    eval_data_path: str | None = path_setting(None, "file of --eval_data (default: the data set's)")
    channel_sampling: Literal["joint", "single"] = setting(
        "joint", "training sample: all variables of a window, or one variable"
    )
    season: int | None = setting(None, "rows of one season (default: the data set's, 24 if hourly)")
    eval_stride: int = setting(1, "validate on every N-th window (the test always uses all)")
    num_workers: int = setting(0, "data loading processes")

    @property
    def file_name(self) -> str:
        """The data file's name inside ``root_path``."""
        files = DATA_SETS[self.data].files
        return self.data_path or (files[0].name if files else f"{self.data}.csv")


@dataclass(frozen=True)
class LLMConfig:
    """Which frozen language model."""

    llm_model: str = setting("auto", "GPT2, SMOLLM2, LLAMA, QWEN, BERT, auto, or a hub id")
    llm_model_path: str | None = path_setting(None, "local folder, GGUF file or hub id of the LLM")
    llm_layers: int = setting(12, "transformer layers kept, from the input side")
    llm_dim: int | None = setting(None, "expected hidden size (default: read from the LLM)")
    llm_ablation: Literal["pretrained", "random", "attention", "none"] = setting(
        "pretrained",
        "study control: LLM layers pretrained, of random weights, one trained attention layer, or none",
    )
    llm_device_map: Literal["auto", "balanced", "sequential", "cpu"] | None = setting(
        None, "spread the LLM over this process's devices: auto, balanced, sequential, cpu (default: one)"
    )
    shard_llm: bool = setting(
        False, "divide the LLM's frozen layers among the processes: less memory, more between them"
    )
    peft: Literal["none", "lora"] = setting("none", "train low-rank adapters on the LLM's frozen layers")
    lora_rank: int = setting(8, "rank of the adapters")
    lora_alpha: int = setting(16, "the adapters' part is scaled by this / lora_rank")
    lora_dropout: float = setting(0.0, "dropout rate on the adapters' input")
    lora_targets: tuple[str, ...] = setting(
        (), "linear maps that get adapters, by name, or all-linear (none: PEFT's own for the architecture)"
    )
    load_in_4bit: bool = setting(False, "LLM weights in 4 bits (needs a GPU and bitsandbytes)")
    trust_remote_code: bool = setting(False, "allow an LLM that ships its own code to run it")


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the Time-LLM parts that are trained."""

    d_model: int = setting(64, "width of a patch embedding")
    d_ff: int = setting(128, "width per reprogramming head, and LLM features read by the head")
    n_heads: int = setting(8, "heads of the reprogramming attention")
    patch_len: int = setting(16, "patch length, rows")
    stride: int = setting(8, "distance between patches, rows")
    padding_patch: Literal["end", "none"] = setting("end", "pad one stride at the end, or not")
    num_tokens: int = setting(1000, "source tokens the vocabulary is mapped to")
    source_tokens: Literal["mapping", "prototypes"] = setting(
        "mapping", "source tokens: a learned map of the vocabulary, or learned vectors (faster)"
    )
    token_order: Literal["document", "prompt_first"] = setting(
        "document", "trend and retrieval tokens before the prompt, or behind it (faster)"
    )
    dropout: float = setting(0.15, "dropout rate of the trained parts")
    input_dropout: float = setting(0.0, "dropout rate on the normalised lookback")
    start: Literal["auto", "solved", "none"] = setting(
        "none",
        "solved: forecasts begin at linear maps in closed form, and the LLM adds to them from zero on; auto: "
        "that, unless what is resumed or tested was begun without",
    )
    use_time_marks: bool = setting(
        False, "known time marks of lookback and future reach the model (Time-LLM ignores them)"
    )
    prompt_domain: int = setting(1, "1: the prompt describes this data set; 0: it speaks of any series")
    prompt_file: str | None = path_setting(
        None, "text file that describes the data to the LLM (default: the prompt bank's)"
    )
    prompt_digits: int = setting(3, "decimals of the statistics in the prompt")

    def patch_count(self, seq_len: int) -> int:
        """Number of patches P of a lookback of ``seq_len`` rows."""
        return (seq_len - self.patch_len) // self.stride + 1 + (self.padding_patch == "end")


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes of the baselines that `BackboneConfig` has no name for; the family's defaults."""

    e_layers: int | None = setting(None, "encoder layers (default: Autoformer 2, PatchTST 3)")
    d_layers: int = setting(1, "decoder layers of Autoformer")
    moving_avg: int = setting(25, "moving average of Autoformer and DLinear, rows")
    factor: float = setting(1.0, "Autoformer keeps factor * ln(length) delays per head")


@dataclass(frozen=True)
class TAPRConfig:
    """The trend-aware patch router and its losses."""

    use_tapr: bool = setting(False, "switch TAPR on")
    n_scales: int = setting(3, "scales of the decomposition: 1x, 4x, 16x, 64x, ...")
    lambda_trend: float = setting(0.5, "weight of all TAPR losses")
    lambda_dir: float = setting(0.3, "inner weight of the direction loss")
    lambda_mag: float = setting(0.3, "inner weight of the magnitude loss")
    lambda_hcl: float = setting(0.1, "inner weight of the consistency loss")
    lambda_ord: float = setting(0.1, "inner weight of the ordinal (threshold) loss")
    label_smoothing: float = setting(0.1, "label smoothing of the two classifications")
    trend_label: Literal["level", "relative"] = setting(
        "level", "label: change of level in deviations, or relative change of the end points"
    )
    trend_fusion: Literal["always", "train", "off"] = setting(
        "always", "when the trend corrects the forecast"
    )


@dataclass(frozen=True)
class GRAMConfig:
    """The retrieval-augmented memory and its losses."""

    use_gram: bool = setting(False, "switch GRA-M on")
    top_k: int | None = setting(
        DOCUMENT_NEIGHBOURS,
        "neighbours retrieved (with --start solved by default 50 and, of the same phase, 32)",
    )
    lambda_retrieval: float = setting(0.3, "weight of all GRA-M losses")
    build_memory: bool = setting(False, "rebuild the memory (empty ones are built anyway)")
    d_repr: int = setting(128, "width of the learned retrieval key")
    temperature: float = setting(0.1, "softmax temperature over the neighbours' distances")
    memory_size: int | Literal["all"] = setting(5000, "memory rows, or all training rows")
    max_memory_size: int = setting(10000, "most rows that --memory_size may ask for as a number")
    memory_dtype: Literal["fp32", "fp16"] = setting("fp32", "numbers of the memory's keys and futures")
    retrieval_key: Literal["auto", "raw", "learned", "hybrid"] = setting(
        "auto", "what is compared; auto: hybrid, and raw in a memory of more than 100,000 rows"
    )
    retrieval_fusion: Literal["feature", "prediction", "both"] = setting(
        "feature", "where the retrieved futures enter"
    )
    retrieval_scope: Literal["variable", "all"] = setting(
        "variable", "neighbours of the same variable only, or of any"
    )
    retrieval_control: Literal["none", "random", "same_phase", "oracle"] = setting(
        "none", "study control: replace the neighbours found by these"
    )

    @property
    def neighbours(self) -> int:
        """How many are retrieved where ``top_k`` does not say."""
        return DOCUMENT_NEIGHBOURS if self.top_k is None else self.top_k


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is fitted and judged."""

    loss: Literal["MSE", "MAE", "Huber", "SMAPE"] = setting("MSE", "main loss; SMAPE for M4 (its default)")
    loss_scale: Literal["none", "std"] = setting("none", "std: errors in deviations of the window")
    aux_warmup_steps: int = setting(500, "optimizer steps until the module losses have full weight")
    train_epochs: int = setting(50, "most epochs")
    max_steps: int | None = setting(None, "stop after N optimizer steps (default: by epochs)")
    batch_size: int = setting(32, "windows per process and forward pass")
    auto_batch_size: bool = setting(
        False, "lower batch_size until it fits into memory, with more passes: the same effective batch"
    )
    max_channels_per_step: int | None = setting(
        None, "variables per forward pass, for many of them: the same result in less memory (default: all)"
    )
    eval_batch_size: int | None = setting(
        None, "windows per evaluation pass (default: about 4,096 tokens through the LLM, 65,536 on a GPU)"
    )
    gradient_accumulation_steps: int = setting(1, "forward passes per optimizer step")
    learning_rate: float = setting(0.0005, "peak learning rate")
    lradj: Literal["COS", "constant", "type1", "type2", "type3", "PEMS", "TST"] = setting(
        "COS", "learning-rate schedule, in optimizer steps"
    )
    lr_warmup_steps: int = setting(0, "optimizer steps of linear warm-up of the learning rate")
    weight_decay: float = setting(0.0, "decoupled weight decay")
    max_grad_norm: float = setting(0.0, "clip the gradient to this norm (0: off)")
    patience: int = setting(15, "validations without improvement until training stops")
    eval_steps: int | None = setting(None, "validate every N optimizer steps (default: each epoch)")
    eval_test_each_epoch: bool = setting(False, "also test at each validation (never selects)")
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = setting(
        "no", "frozen LLM and matrix products in this precision; auto: bf16 where it is 1.3 times as fast"
    )
    matmul_precision: Literal["auto", "highest", "medium"] = setting(
        "auto", "float32 products: torch's highest or medium; auto: medium where as exact, and faster"
    )
    gradient_checkpointing: bool = setting(
        False, "keep less for the backward pass and compute it again: less memory, more time"
    )
    levels: tuple[float, ...] = setting(
        (0.8, 0.95), "levels of the prediction intervals, several numbers (none: no calibration)"
    )
    interval_score: Literal["auto", "absolute", "scaled"] = setting(
        "auto", "intervals by absolute errors, or scaled by the window's deviation; auto: by validation"
    )
    cpu: bool = setting(False, "do not use a GPU")
    deterministic: bool = setting(False, "deterministic kernels only (slower on a GPU)")
    seed: int = setting(2021, "seed of weights, data order and dropout")


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, what it resumes."""

    task_name: Literal["long_term_forecast", "short_term_forecast"] = setting(
        "long_term_forecast", "long_term_forecast, or short_term_forecast for M4 (its default)"
    )
    model: str | None = setting(None, "model without TAPR and GRA-M, by name (default: TimeLLM)")
    itr: int = setting(1, "runs, with the seeds --seed, --seed + 1, ...; mean and spread at the end")
    is_training: int = setting(1, "1: train and test; 0: test a checkpoint")
    model_id: str = setting("", "free text in the run's name (default: data and lengths)")
    model_comment: str = setting("run", "last part of the run's folder name")
    des: str = setting("", "free description, part of the run's name")
    checkpoints: str = path_setting("./checkpoints", "folder of the run folders")
    save_steps: int | None = setting(None, "step checkpoint every N optimizer steps (0: off)")
    save_total_limit: int = setting(3, "step checkpoints kept (0: all)")
    resume_from_checkpoint: str | None = path_setting(None, "file, folder or auto: go on from there")
    resume_counter: int | None = setting(None, "early-stopping counter to resume with")
    init_from: str | None = path_setting(None, "checkpoint whose weights to start from (not a resume)")
    log_steps: int = setting(50, "optimizer steps between lines of the training log")
    report_to: Literal["none", "tensorboard", "wandb"] = setting(
        "none", "tracker that gets the metrics too; wandb obeys WANDB_MODE, e.g. offline"
    )
    debug_shapes: bool = setting(False, "print the shapes of one forward pass before the run")
    dump_prompt: bool = setting(False, "print the prompt of the first window before the run")
    max_minutes: float | None = setting(None, "save and stop (status 75) before this many minutes")


GROUPS: dict[str, type] = {
    "data": DataConfig,
    "llm": LLMConfig,
    "backbone": BackboneConfig,
    "baseline": BaselineConfig,
    "tapr": TAPRConfig,
    "gram": GRAMConfig,
    "training": TrainingConfig,
    "run": RunConfig,
}

NOT_IDENTITY = frozenset(
    "root_path num_workers checkpoints save_steps save_total_limit resume_from_checkpoint "
    "resume_counter log_steps patience is_training eval_test_each_epoch cpu "
    "build_memory model_id model_comment des eval_batch_size enc_in itr max_minutes "
    "auto_batch_size gradient_checkpointing levels interval_score report_to debug_shapes "
    "dump_prompt eval_data eval_root_path eval_data_path llm_device_map shard_llm".split()
)
"""Settings that do not change what is trained: two runs that differ only here share a hash."""
TESTED_ON = frozenset({"eval_data", "eval_root_path", "eval_data_path"})
"""Settings that decide what is tested, not what is trained."""
KNOWN_BY_CONTENT = frozenset({"llm_model", "llm_model_path", "llm_dim", "trust_remote_code"})
"""Settings that say where the LLM lies: which one it is, its content hash tells."""
MAY_CHANGE_ON_RESUME = (
    NOT_IDENTITY
    | KNOWN_BY_CONTENT
    | {
        "max_steps",
        "train_epochs",
        "init_from",
        "max_channels_per_step",  # the same sums, other dropout
        "prompt_file",  # known by its content, which the checkpoint holds
        "date_format",  # what they make of the dates is part of the data's content
        "time_zone",
        "round_dates",
    }
)
"""Settings in which a run and the checkpoint it goes on from may differ."""


def left_to_machine(values: Mapping[str, Any]) -> frozenset[str]:
    """Settings of `BY_MACHINE` that are still ``auto``: they stand for whatever it comes to."""
    return frozenset(name for name in BY_MACHINE if values.get(name) == AUTO)


@dataclass(frozen=True)
class Config:
    """All settings of a run, by part."""

    data: DataConfig = field(default_factory=DataConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    tapr: TAPRConfig = field(default_factory=TAPRConfig)
    gram: GRAMConfig = field(default_factory=GRAMConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    @classmethod
    def from_flat(cls, values: Mapping[str, Any], *, models: Models | None = None) -> Config:
        """A configuration from ``{flag name: value}``; what is missing takes its default.

        Where the data set's own default (`utils.data_sets`) differs from the general one, it is taken.
        What does not fit a model is among the problems where its ``models`` are given; else the model
        refuses it as it is built.

        Raises:
            ConfigError: for an unknown name or a value that fails a check, all at once.
        """
        values = {name: value for name, value in values.items() if not _is_empty_path(name, value)}
        values = {**_neighbours(values), **values}
        values = {**default_flags(values, default_data=DataConfig.data), **values}
        values |= {name: known_as(values[name]) for name in ("data", "eval_data") if name in values}
        known = {name for _, name, _ in iter_settings()}
        problems = [f"--{name}: no such setting" for name in values if name not in known]
        parts = {
            group: part(
                **{
                    f.name: _as_declared(group, f.name, values[f.name])
                    for f in dataclasses.fields(part)
                    if f.name in values
                }
            )
            for group, part in GROUPS.items()
        }
        config = cls(**parts)
        problems += config.problems(models)
        if problems:
            raise ConfigError(problems)
        return config

    @classmethod
    def from_namespace(cls, args: Any) -> Config:
        """A configuration from any object with attributes, class attributes included.

        Attributes that are no setting are passed over: the family's namespaces carry many.
        """
        names = [name for _, name, _ in iter_settings()]
        return cls.from_flat({name: getattr(args, name) for name in names if hasattr(args, name)})

    def flat(self) -> dict[str, Any]:
        """``{flag name: value}`` of every setting."""
        return {name: getattr(getattr(self, group), name) for group, name, _ in iter_settings()}

    def replace(self, **changes: Any) -> Config:
        """A copy with these settings changed, checked again."""
        return Config.from_flat({**self.flat(), **changes})

    @property
    def patch_count(self) -> int:
        """Number of patches P."""
        return self.backbone.patch_count(self.data.seq_len)

    @property
    def begins_solved(self) -> bool:
        """Whether forecasts begin at a solved start; series of `SHORT_TERM` are padded, and have none."""
        return self.backbone.start != "none" and self.run.task_name != SHORT_TERM

    def identity(self) -> dict[str, Any]:
        """The settings that change what is trained, but for those that a run counts as having unsaid.

        So a setting that is added later, or a default that changes, leaves what was trained before the same.
        """
        then = settings_then()
        return {k: v for k, v in self.flat().items() if k not in NOT_IDENTITY and v != then[k]}

    def training_hash(self) -> str:
        """8 hex digits that name everything that changes what is trained."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]

    def run_name(self, *, model: str, llm_name: str) -> str:
        """``<setting>-<comment>``, the name of the run's folder: one part of a path, whatever is in it.

        The setting ends in seed, LLM, the modules that are on, and `training_hash`.
        """
        lora = self.llm.peft == "lora"
        parts_on = (("tapr", self.tapr.use_tapr), ("gram", self.gram.use_gram), ("lora", lora))
        modules = "+".join(name for name, on in parts_on if on)
        llm = safe_name(re.split(r"[/\\]", llm_name.rstrip("/\\"))[-1], longest=PART_OF_NAME)
        comment = safe_name(self.run.model_comment, longest=PART_OF_NAME)
        return f"{self.run_name_begins(model)}{llm}_{modules or 'plain'}_{self.training_hash()}-{comment}"

    def run_name_begins(self, model: str) -> str:
        """What `run_name` says before the LLM: the part that no later version will word differently."""
        d, b = self.data, self.backbone
        parts = [
            self.run.task_name,
            safe_name(self.run.model_id or f"{d.data}_{d.seq_len}_{d.pred_len}", longest=PART_OF_NAME),
            f"{model}_ft{d.features}_dm{b.d_model}_nh{b.n_heads}_df{b.d_ff}_ll{self.llm.llm_layers}",
            safe_name(self.run.des, longest=PART_OF_NAME) if self.run.des else "",
            f"s{self.training.seed}",
        ]
        return "".join(f"{part}_" for part in parts if part)

    def problems(self, models: Models | None = None) -> list[str]:
        """What is wrong with this configuration, one line each; empty when all is well."""
        wrong = {**_type_problems(self), **_list_problems(self), **range_problems(self.flat())}
        for flag in ("data", "eval_data"):
            name = getattr(self.data, flag)
            if flag not in wrong and name is not None and (unknown := name_problem(name, flag=flag)):
                wrong[flag] = unknown
        right = dataclasses.replace(
            self,
            **{
                group: dataclasses.replace(
                    getattr(self, group),
                    **{f.name: f.default for f in dataclasses.fields(part) if f.name in wrong},
                )
                for group, part in GROUPS.items()
            },
        )
        # a setting that is wrong by itself says nothing of how it fits the others
        joint = [p for p in joint_problems(right.flat(), models) if wrong.keys().isdisjoint(_FLAG.findall(p))]
        return [*wrong.values(), *joint]


def _neighbours(values: Mapping[str, Any]) -> dict[str, Any]:
    """The default of ``--top_k``: each kind of a solved start's neighbours has its own number."""
    solved = values.get("start", "none") != "none" or values.get("model") == "RetrievalRidge"
    return {"top_k": None} if solved else {}


def iter_settings() -> Iterator[tuple[str, str, dataclasses.Field[Any]]]:
    """``(group, name, field)`` of every setting, in the order of ``--help``."""
    for group, part in GROUPS.items():
        for item in dataclasses.fields(part):
            yield group, item.name, item


def settings_then() -> dict[str, Any]:
    """``{flag name: value}`` that a run counts as having where it says nothing of a setting."""
    return {name: item.metadata["then"] for _, name, item in iter_settings()}


@cache
def setting_type(group: str, name: str) -> tuple[tuple[type, ...], tuple[Any, ...]]:
    """The Python types and the literal choices that a setting accepts."""
    hint = get_type_hints(GROUPS[group])[name]
    members = get_args(hint) or (hint,)
    if getattr(hint, "__origin__", None) is Literal:
        return (), members
    if getattr(hint, "__origin__", None) is tuple:
        return (tuple,), ()
    types = tuple(m for m in members if isinstance(m, type))
    choices = tuple(c for m in members if getattr(m, "__origin__", None) is Literal for c in get_args(m))
    return types, choices


@cache
def item_type(group: str, name: str) -> type:
    """The type of each value of a setting of several."""
    found = get_args(get_type_hints(GROUPS[group])[name])[0]
    assert isinstance(found, type)
    return found


def _as_declared(group: str, name: str, value: Any) -> Any:
    """``value``, a whole number as a float where the setting is one: 1 and 1.0 are the same run."""
    if isinstance(value, list) and setting_type(group, name)[0] == (tuple,):
        return tuple(value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in setting_type(group, name)[0] else value


@cache
def _path_settings() -> frozenset[str]:
    return frozenset(name for _, name, item in iter_settings() if item.metadata.get("path"))


def _is_empty_path(name: str, value: Any) -> bool:
    """Whether a setting that names a path says nothing, as ``--data_path "$UNSET"`` does."""
    return isinstance(value, str) and not value.strip() and name in _path_settings()


def _list_problems(config: Config) -> dict[str, str]:
    """What is wrong with the values of settings of several, by name."""
    found: dict[str, str] = {}
    for group, name, _ in iter_settings():
        value = getattr(getattr(config, group), name)
        if isinstance(value, tuple):
            found |= _list_problem(name, value, item_type(group, name))
    return found


def _list_problem(name: str, values: tuple[Any, ...], item: type) -> dict[str, str]:
    """What is wrong with the values of a setting of several, under its name; nothing where all is well."""
    if item is float and not all(_is_fraction(one) for one in values):
        return {name: f"--{name}: expected numbers between 0 and 1, found {spaced(values)}"}
    if item is str and not all(isinstance(one, str) and one for one in values):
        return {name: f"--{name}: expected names, found {spaced(values)}"}
    return {}


def _is_fraction(value: Any) -> bool:
    return isinstance(value, float) and 0 < value < 1


def _type_problems(config: Config) -> dict[str, str]:
    """Values whose type is wrong or that are none of the choices, by name."""
    found = {}
    for group, name, _ in iter_settings():
        value = getattr(getattr(config, group), name)
        types, choices = setting_type(group, name)
        accepted = types + ((int,) if float in types else ())
        is_stray_bool = isinstance(value, bool) and bool not in types
        if value in choices or (isinstance(value, accepted) and not is_stray_bool):
            continue
        wanted = " or ".join([*(t.__name__ for t in types if t is not type(None)), *map(str, choices)])
        found[name] = f"--{name}: expected {wanted}, found {value!r}"
    return found

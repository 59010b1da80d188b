"""Every setting of a run: the one home of each default and derived value; checks: `utils.config_checks`.

A setting is a field of one of the small frozen dataclasses below; its flag is ``--<field name>``
(`utils.cli` builds the parser from these fields). Layers receive their own part, never the whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, ClassVar, Literal, get_args, get_type_hints

from utils.config_checks import Models, expected_items, expected_number, joint_problems, spaced
from utils.data_sets import DATA_SETS, SHORT_TERM, default_flags, known_as, name_problem
from utils.errors import UserError
from utils.file_names import safe_name

KEY_SEASONS = 7
"""Seasons in the raw retrieval key (cut to the lookback): 168 rows of hourly data."""
MEMORY_ROWS = 100_000
"""Training rows that a memory holds by default, at most."""
NEIGHBOURS = 50
"""Retrieved where no other number is given."""
LEARNED_TEMPERATURE = 0.1
"""Of the softmax over the distances of learned keys, which learn through it, where none is given."""
SCALE_BASE = 4
"""Each scale of TAPR is this many times coarser than the one before: 1x, 4x, 16x, 64x."""
STD_FLOOR = 0.1
"""Smallest deviation, in standardised units, that anything is divided by."""
AUTO = "auto"
"""Of a setting that the run itself decides."""
PART_OF_NAME = 36
"""Bytes of each free text in the name of a run's folder, which has 255 in all."""
ONCE_ONE_WORD = frozenset({"target"})
"""Settings of several values that took one before: a lone value counts in hashes as that word did."""
_FLAG = re.compile(r"--(\w+)")


class ConfigError(UserError):
    """One or more settings are wrong; the message lists every problem."""

    def __init__(self, problems: list[str]) -> None:
        """Keep the problems, each naming a flag, what was expected and what was found."""
        self.problems = problems
        super().__init__("\n".join(problems))


Decides = Literal["training", "test", "name", "place", "course"]
"""What a setting decides: what is trained (then it is part of a run's identity), what is tested, the run's
name, where it lies and how it is watched, or only how its work is done."""
OnResume = Literal["same", "free", "llm", "batch", "machine"]
"""What a setting of a resumed run must be: as its checkpoint has it; anything (of a file of data or text, the
content is compared); what gives the same LLM, by content, or the same batch in all; or ``auto``, which is
what the checkpoint's machine came to."""
Need = Literal[
    "llm", "part", "layers", "tokens", "lora", "tapr", "gram", "learned_key", "memory_limit",
    "own_memory", "choice", "modules", "llm_by_name", "file", "m4", "table", "selection", "panel",
    "steps", "step_files", "start", "text", "asked",
]  # fmt: skip
"""What a run must have for a setting to be read; `utils.reporting.unused_flags` says when it has not."""
_AS_DEFAULT = object()


def setting(
    default: Any,
    text: str,
    *,
    then: Any = _AS_DEFAULT,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    below: float | None = None,
    path: bool = False,
    decides: Decides = "training",
    on_resume: OnResume | None = None,
    needs: Need | tuple[Need, ...] = (),
    switch: bool = False,
) -> Any:
    """A dataclass field with all that is so about one setting beside its name and type.

    Args:
        default: what it is where nothing is said.
        text: the one line that ``--help`` prints for its flag.
        then: what a run counts as having that says nothing of the setting, saved before it was there: the
            first default, and where what came before was none of its values, that. It must be given where the
            default changes, and never changes itself: names of runs and keys of studies leave this value out.
        at_least: its least number.
        at_most: its largest number.
        below: a number that it must stay below.
        path: it names a file or a folder; blanks alone, as of an unset variable, are not given.
        decides: see `Decides`.
        on_resume: see `OnResume`; by default free, and the same where it decides what is trained.
        needs: beside what its whole part needs, see `Need`.
        switch: without it no other setting of its part is read.
    """
    facts = {
        "help": text,
        "then": default if then is _AS_DEFAULT else then,
        "at_least": at_least,
        "at_most": at_most,
        "below": below,
        "path": path,
        "decides": decides,
        "on_resume": on_resume or ("same" if decides == "training" else "free"),
        "needs": (needs,) if isinstance(needs, str) else needs,
        "switch": switch,
    }
    return field(default=default, metadata=facts)


@dataclass(frozen=True)
class DataConfig:
    """Which series, cut into which windows."""

    data: str = setting("ETTh1", f"one of {' '.join(DATA_SETS)}")
    root_path: str = setting(
        "./dataset/ETT-small",
        "folder of the data file (default: the data set's)",
        decides="place",
        needs="file",
        path=True,
    )
    data_path: str | None = setting(
        None, "data file inside root_path (default: the data set's)", needs="file", path=True
    )
    features: Literal["M", "S", "MS"] = setting(
        "M", "M: all variables; S: the targets, each from itself; MS: the targets, each from all variables"
    )
    target: tuple[str, ...] = setting(
        ("OT",), "target columns, used with --features S and MS, and of a panel", needs=("table", "selection")
    )
    id_column: tuple[str, ...] = setting(
        (),
        "columns that tell the series of a long file apart (default: unique_id or item_id)",
        needs=("file", "table"),
    )
    date_column: str | None = setting(
        None, "column of the times of a long file (default: ds, timestamp or date)", needs=("file", "table")
    )
    panel_scaler: Literal["series", "global"] = setting(
        "series", "series of a panel are standardised each by itself, or all together", needs="panel"
    )
    sampling: Literal["window", "series"] = setting(
        "window",
        "training draws among all windows of a panel, or a series and then its window",
        needs="panel",
    )
    enc_in: int | None = setting(
        None, "expected number of variables read (default: the file's)", at_least=1, decides="course"
    )
    freq: str | None = setting(
        None, "frequency of the rows, a pandas alias or MS-15 for each 15th; accepts gaps (default: inferred)"
    )
    date_format: str | None = setting(
        None,
        "how dates are written: strptime's format (1949%y: from 1949 on), or ISO8601 (default: found)",
        on_resume="free",
        needs=("file", "table"),
    )
    time_zone: str | None = setting(
        None,
        "zone of the dates, such as Europe/Berlin; offsets are brought into it (default: the file's)",
        on_resume="free",
        needs=("file", "table"),
    )
    round_dates: bool = setting(
        False, "round times that jitter around regular ones", on_resume="free", needs=("file", "table")
    )
    repeated_times: Literal["first", "last"] | None = setting(
        None,
        "row that is kept of those of one time (default: an error)",
        on_resume="free",
        needs=("file", "table"),
    )
    seasonal_patterns: Literal["Yearly", "Quarterly", "Monthly", "Weekly", "Daily", "Hourly", "Other"] = (
        setting("Monthly", "group of a competition's series (M4, M1, M3, Tourism)", needs="m4")
    )
    fill_missing: Literal["interpolate", "ffill"] | None = setting(
        None,
        "missing and infinite numbers: interpolate between rows, or ffill (default: an error)",
        needs="table",
    )
    non_negative: bool = setting(
        False, "forecasts have a floor of 0 in the targets' own units, by a link", needs="table"
    )
    known_covariates: tuple[str, ...] = setting(
        (), "columns that are known for the horizon too and not forecast, such as price", needs="table"
    )
    past_covariates: tuple[str, ...] = setting(
        (), "columns that are known up to the forecast alone and not forecast", needs="table"
    )
    static_path: str | None = setting(
        None,
        "table inside root_path of what holds of a whole variable, whose names are its first column",
        path=True,
        needs="table",
    )
    static: tuple[str, ...] = setting((), "columns of categories in --static_path", needs="table")
    static_numbers: tuple[str, ...] = setting((), "columns of numbers in --static_path", needs="table")
    static_width: int | None = setting(
        None,
        "expected number of --static_numbers and of different categories (default: the table's)",
        at_least=1,
        decides="course",
    )
    seq_len: int = setting(512, "lookback window L, rows", at_least=1)
    label_len: int = setting(
        48, "decoder start length, rows (read by encoder-decoder models only)", at_least=0
    )
    pred_len: int = setting(96, "horizon H, rows", at_least=1)
    percent: int = setting(100, "share of the training part that is used, percent", at_least=1, at_most=100)
    eval_data: str | None = setting(
        None,
        "data set to test on, in place of --data: zero-shot transfer (default: --data itself)",
        decides="test",
    )
    eval_root_path: str | None = setting(
        None, "folder of --eval_data's file (default: the data set's)", decides="test", path=True
    )
    eval_data_path: str | None = setting(
        None, "file of --eval_data (default: the data set's)", decides="test", path=True
    )
    channel_sampling: Literal["joint", "single"] = setting(
        "joint", "training sample: all variables of a window, or one variable", needs="table"
    )
    season: int | None = setting(
        None, "rows of one season (default: the data set's, 24 if hourly)", at_least=1
    )
    eval_stride: int = setting(1, "validate on every N-th window", at_least=1)
    test_stride: int = setting(
        1,
        "test on every N-th window: for studies, not for scores to publish",
        at_least=1,
        decides="test",
        needs="table",
    )
    num_workers: int = setting(0, "data loading processes", at_least=0, decides="place")

    def targets_of(self, variables: int) -> int:
        """M, how many of so many variables are forecast: the last ones."""
        return len(self.target) if self.features == "MS" else variables

    @property
    def is_panel(self) -> bool:
        """Whether a run's data are series told apart by an id; known once its data are read."""
        return bool(self.id_column)

    @property
    def has_statics(self) -> bool:
        """Whether something is known of whole variables."""
        return bool(self.static or self.static_numbers)

    @property
    def has_covariates(self) -> bool:
        """Whether anything is known beside the variables."""
        return bool(self.known_covariates or self.past_covariates or self.has_statics)

    @property
    def file_name(self) -> str:
        """The data file's name inside ``root_path``."""
        files = DATA_SETS[self.data].files
        return self.data_path or (files[0].name if files else f"{self.data}.csv")


@dataclass(frozen=True)
class LLMConfig:
    """Which frozen language model."""

    needs: ClassVar[tuple[Need, ...]] = ("llm",)
    llm_model: str = setting(
        "auto",
        "GPT2, SMOLLM2, LLAMA, QWEN, BERT, MINILM, auto, or a hub id",
        on_resume="llm",
        needs="llm_by_name",
    )
    llm_model_path: str | None = setting(
        None, "local folder, GGUF file or hub id of the LLM", on_resume="llm", path=True
    )
    llm_layers: int = setting(12, "transformer layers kept, from the input side", at_least=1, needs="layers")
    llm_dim: int | None = setting(
        None, "expected hidden size (default: read from the LLM)", at_least=1, on_resume="llm"
    )
    llm_ablation: Literal["pretrained", "random", "attention", "none"] = setting(
        "pretrained",
        "study control: LLM layers pretrained, of random weights, one trained attention layer, or none",
    )
    llm_device_map: Literal["auto", "balanced", "sequential", "cpu"] | None = setting(
        None,
        "spread the LLM over this process's devices: auto, balanced, sequential, cpu (default: one)",
        decides="course",
    )
    shard_llm: bool = setting(
        False,
        "divide the LLM's frozen layers among the processes: less memory, more between them",
        decides="course",
    )
    peft: Literal["none", "lora"] = setting("none", "train low-rank adapters on the LLM's frozen layers")
    lora_rank: int = setting(8, "rank of the adapters", at_least=1, needs="lora")
    lora_alpha: int = setting(
        16, "the adapters' part is scaled by this / lora_rank", at_least=1, needs="lora"
    )
    lora_dropout: float = setting(
        0.0, "dropout rate on the adapters' input", at_least=0, below=1, needs="lora"
    )
    lora_targets: tuple[str, ...] = setting(
        (),
        "linear maps that get adapters, by name, or all-linear (none: PEFT's own for the architecture)",
        needs="lora",
    )
    llm_weights: Literal["auto", "fp32", "bf16", "int8"] = setting(
        AUTO,
        "what the LLM's linear maps are kept in: int8 by torchao (auto: what the run computes in)",
        needs="layers",
    )
    load_in_4bit: bool = setting(
        False, "the LLM's linear maps in 4 bits, by bitsandbytes on a GPU, else by torchao"
    )
    trust_remote_code: bool = setting(
        False, "allow an LLM that ships its own code to run it", on_resume="llm"
    )


@dataclass(frozen=True)
class BackboneConfig:
    """Sizes of the Time-LLM parts that are trained."""

    needs: ClassVar[tuple[Need, ...]] = ("part",)
    d_model: int = setting(64, "width of a patch embedding", at_least=1)
    d_ff: int = setting(128, "width per reprogramming head, and LLM features read by the head", at_least=1)
    n_heads: int = setting(8, "heads of the reprogramming attention", at_least=1)
    patch_len: int = setting(16, "patch length, rows", at_least=1)
    stride: int = setting(8, "distance between patches, rows", at_least=1)
    padding_patch: Literal["end", "none"] = setting("end", "pad one stride at the end, or not")
    num_tokens: int = setting(1000, "source tokens the vocabulary is mapped to", at_least=1)
    source_tokens: Literal["mapping", "prototypes"] = setting(
        "mapping", "source tokens: a learned map of the vocabulary, or learned vectors (faster)"
    )
    token_order: Literal["document", "prompt_first"] = setting(
        "document",
        "trend and retrieval tokens before the prompt, or behind it (faster)",
        needs=("tokens", "modules"),
    )
    dropout: float = setting(0.15, "dropout rate of the trained parts", at_least=0, below=1)
    input_dropout: float = setting(0.0, "dropout rate on the normalised lookback", at_least=0, below=1)
    start: Literal["auto", "solved", "none"] = setting(
        "none",
        "begin at linear maps in closed form, which the LLM adds to (auto: unless begun without)",
    )
    start_refine: bool = setting(
        False, "go on from the solved maps by steps on absolute errors, without the LLM", needs="start"
    )
    use_time_marks: bool = setting(
        False, "known time marks of lookback and future reach the model (Time-LLM ignores them)"
    )
    prompt_domain: int = setting(
        1,
        "1: the prompt describes this data set; 0: it speaks of any series",
        at_least=0,
        at_most=1,
        needs="tokens",
    )
    prompt_file: str | None = setting(
        None,
        "text file that describes the data to the LLM (default: the prompt bank's)",
        on_resume="free",
        path=True,
    )
    prompt_digits: int = setting(3, "decimals of the statistics in the prompt", at_least=0, needs="tokens")

    def patch_count(self, seq_len: int) -> int:
        """Number of patches P of a lookback of ``seq_len`` rows."""
        return (seq_len - self.patch_len) // self.stride + 1 + (self.padding_patch == "end")


@dataclass(frozen=True)
class BaselineConfig:
    """Sizes of the baselines that `BackboneConfig` has no name for; the family's defaults."""

    needs: ClassVar[tuple[Need, ...]] = ("part",)
    e_layers: int | None = setting(None, "encoder layers (default: Autoformer 2, PatchTST 3)", at_least=1)
    d_layers: int = setting(1, "decoder layers of Autoformer", at_least=1)
    moving_avg: int = setting(25, "moving average of Autoformer and DLinear, rows", at_least=1)
    factor: float = setting(1.0, "Autoformer keeps factor * ln(length) delays per head", at_least=1e-6)


@dataclass(frozen=True)
class TAPRConfig:
    """The trend-aware patch router and its losses."""

    needs: ClassVar[tuple[Need, ...]] = ("llm", "tapr")
    use_tapr: bool = setting(False, "switch TAPR on", switch=True)
    n_scales: int = setting(3, "scales of the decomposition: 1x, 4x, 16x, 64x, ...", at_least=1)
    scale_mixing: Literal["apart", "together"] = setting(
        "apart",
        "seasons mixed from fine to coarse and trends from coarse to fine, or both as one",
        then="together",
    )
    lambda_trend: float = setting(0.5, "weight of all TAPR losses", at_least=0)
    lambda_dir: float = setting(0.3, "inner weight of the direction loss", at_least=0)
    lambda_mag: float = setting(0.3, "inner weight of the magnitude loss", at_least=0)
    lambda_hcl: float = setting(0.1, "inner weight of the consistency loss", at_least=0)
    lambda_ord: float = setting(0.1, "inner weight of the ordinal (threshold) loss", at_least=0)
    lambda_path: float = setting(0.3, "inner weight of the path's regression loss", then=0.0, at_least=0)
    label_smoothing: float = setting(0.1, "label smoothing of the two classifications", at_least=0, below=1)
    trend_label: Literal["level", "relative"] = setting(
        "level", "label: change of level in deviations, or relative change of the end points"
    )
    trend_fusion: Literal["always", "train", "off"] = setting(
        "always", "when the trend corrects the forecast"
    )
    thresholds_in: Literal["forecast", "loss"] = setting(
        "forecast",
        "learnable thresholds: they part the forecast's trend for its correction, or are in a loss alone",
        then="loss",
    )


@dataclass(frozen=True)
class GRAMConfig:
    """The retrieval-augmented memory and its losses."""

    needs: ClassVar[tuple[Need, ...]] = ("llm", "gram")
    use_gram: bool = setting(False, "switch GRA-M on", switch=True)
    top_k: int | None = setting(
        None,
        f"neighbours retrieved (default: {NEIGHBOURS}; the start also reads 32 of the same phase)",
        then=5,
        at_least=1,
    )
    lambda_retrieval: float = setting(0.3, "weight of all GRA-M losses", at_least=0, needs="choice")
    gate_loss: Literal["errors", "document"] = setting(
        "errors",
        "the gate learns which forecast errs less, with history or without; document: its gate and losses",
        then="document",
    )
    build_memory: bool = setting(False, "rebuild the memory (empty ones are built anyway)", decides="course")
    d_repr: int = setting(128, "width of the learned retrieval key", at_least=1, needs="learned_key")
    temperature: float | None = setting(
        None,
        "softmax temperature over distances (default: 0.1 for learned keys, equal weights for raw ones)",
        then=0.1,
        at_least=1e-6,
    )
    memory_size: int | Literal["all"] = setting(
        MEMORY_ROWS,
        "most memory rows, drawn from the training rows, or all of those",
        then=5000,
        at_least=1,
        needs="own_memory",
    )
    max_memory_size: int = setting(
        MEMORY_ROWS,
        "most rows that --memory_size may ask for as a number",
        then=10000,
        at_least=1,
        needs=("memory_limit", "own_memory"),
    )
    memory_dtype: Literal["fp32", "fp16"] = setting(
        "fp32", "numbers of the memory's keys and futures", needs="own_memory"
    )
    retrieval_key: Literal["raw", "learned", "hybrid"] = setting(
        "raw", "what is compared: the latest shape as it is, an encoder's key, or both", then="auto"
    )
    retrieval_fusion: Literal["feature", "prediction", "both"] = setting(
        "feature", "where the retrieved futures enter"
    )
    retrieval_scope: Literal["variable", "series", "all"] = setting(
        "variable",
        "neighbours of the same variable (of a panel: of all its series), of the same series, or of any",
    )
    retrieval_mask: Literal["time", "series"] = setting(
        "time",
        "a panel's windows whose future overlaps in time are never neighbours; series: but of another series",
    )
    retrieval_control: Literal["none", "random", "same_phase", "oracle"] = setting(
        "none", "study control: replace the neighbours found by these"
    )

    @property
    def neighbours(self) -> int:
        """How many are retrieved."""
        return NEIGHBOURS if self.top_k is None else self.top_k

    @property
    def softmax_temperature(self) -> float:
        """That of the neighbours' weights; infinite where all weigh the same.

        A control's do too: weighing them by distance would be half a retrieval.
        """
        if self.retrieval_control != "none":
            return math.inf
        if self.temperature is not None:
            return self.temperature
        return math.inf if self.retrieval_key == "raw" else LEARNED_TEMPERATURE


@dataclass(frozen=True)
class TextConfig:
    """Dated texts that a forecast reads."""

    needs: ClassVar[tuple[Need, ...]] = ("llm", "text")
    text_file: str | None = setting(
        None,
        "table of texts with their times; the start's calendar is in beside them (default: none are read)",
        on_resume="free",
        path=True,
        switch=True,
    )
    text_columns: tuple[str, ...] = setting(
        (), "columns of the texts, joined (default: text, fact, or the only one)"
    )
    text_lag: str = setting("1", "how long after its end a text is known: rows, such as 1, or days, 7D")
    text_count: int = setting(4, "texts that a window sees at most, the latest known ones", at_least=1)
    text_tokens: int = setting(128, "tokens of each text that are read, its first ones", at_least=1)
    text_fusion: Literal["none", "prompt", "asked"] = setting(
        "asked", "texts unread, in every prompt, or each read once with a question behind it"
    )
    text_question: tuple[str, ...] = setting(
        (), "what stands behind each text, in as many ways as given (default: by the target)", needs="asked"
    )
    text_llm_layers: int | None = setting(
        None,
        "layers of the LLM that reads texts, whatever --llm_layers (default: all)",
        at_least=1,
        needs="asked",
    )
    text_control: Literal["none", "shuffled", "constant", "other_series", "undated"] = setting(
        "none", "study control: texts of other times, one for all, of another series, or without dates"
    )

    @property
    def reads(self) -> bool:
        """Whether a forecast reads texts."""
        return self.text_file is not None and self.text_fusion != "none"

    @property
    def in_prompt(self) -> bool:
        """Whether they stand in its prompts."""
        return self.reads and self.text_fusion == "prompt"

    @property
    def asked(self) -> bool:
        """Whether each is read once, with a question behind it."""
        return self.reads and self.text_fusion == "asked"


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is fitted and judged."""

    loss: Literal["MSE", "MAE", "Huber", "SMAPE"] = setting(
        "MSE", "main loss; SMAPE for M4 (its default)", needs="steps"
    )
    loss_scale: Literal["none", "std"] = setting(
        "none", "std: errors in deviations of the window", needs="steps"
    )
    aux_warmup_steps: int = setting(
        500,
        "optimizer steps until the module losses have full weight",
        at_least=0,
        needs=("modules", "steps"),
    )
    train_epochs: int = setting(50, "most epochs", at_least=1, on_resume="free", needs="steps")
    max_steps: int | None = setting(
        None, "stop after N optimizer steps (default: by epochs)", at_least=1, on_resume="free", needs="steps"
    )
    batch_size: int = setting(32, "windows per process and forward pass", at_least=1, on_resume="batch")
    auto_batch_size: bool = setting(
        False,
        "lower batch_size until it fits into memory, with more passes: the same effective batch",
        decides="course",
    )
    max_channels_per_step: int | None = setting(
        None,
        "variables per forward pass, for many of them: the same result in less memory (default: all)",
        at_least=1,
        on_resume="free",  # the same sums, other dropout
    )
    eval_batch_size: int | None = setting(
        None,
        "windows per evaluation pass (default: about 4,096 tokens through the LLM, 65,536 on a GPU)",
        at_least=1,
        decides="course",
    )
    gradient_accumulation_steps: int = setting(
        1, "forward passes per optimizer step", at_least=1, on_resume="batch", needs="steps"
    )
    learning_rate: float = setting(0.0005, "peak learning rate", at_least=1e-12, needs="steps")
    lradj: Literal["COS", "constant", "type1", "type2", "type3", "PEMS", "TST"] = setting(
        "COS", "learning-rate schedule, in optimizer steps", needs="steps"
    )
    lr_warmup_steps: int = setting(
        0, "optimizer steps of linear warm-up of the learning rate", at_least=0, needs="steps"
    )
    weight_decay: float = setting(0.0, "decoupled weight decay", at_least=0, needs="steps")
    max_grad_norm: float = setting(0.0, "clip the gradient to this norm (0: off)", at_least=0, needs="steps")
    patience: int = setting(
        15,
        "validations without improvement until training stops",
        at_least=1,
        decides="course",
        needs="steps",
    )
    eval_steps: int | None = setting(
        None, "validate every N optimizer steps (default: each epoch)", at_least=1, needs="steps"
    )
    eval_test_each_epoch: bool = setting(
        False, "also test at each validation (never selects)", decides="course", needs="steps"
    )
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = setting(
        "no",
        "frozen LLM and matrix products in this precision; auto: bf16 where it is 1.3 times as fast",
        on_resume="machine",
    )
    matmul_precision: Literal["auto", "highest", "medium"] = setting(
        "auto",
        "float32 products: torch's highest or medium; auto: medium where as exact, and faster",
        on_resume="machine",
    )
    gradient_checkpointing: bool = setting(
        False,
        "keep less for the backward pass and compute it again: less memory, more time",
        decides="course",
        needs=("llm", "steps"),
    )
    levels: tuple[float, ...] = setting(
        (0.8, 0.95),
        "levels of the prediction intervals, several numbers (none: no calibration)",
        decides="course",
    )
    interval_score: Literal["auto", "absolute", "scaled"] = setting(
        "auto",
        "intervals by absolute errors, or scaled by the window's deviation; auto: by validation",
        decides="course",
    )
    cpu: bool = setting(False, "do not use a GPU", decides="course")
    deterministic: bool = setting(False, "deterministic kernels only (slower on a GPU)")
    seed: int = setting(2021, "seed of weights, data order and dropout", at_least=0)


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, what it resumes."""

    task_name: Literal["long_term_forecast", "short_term_forecast"] = setting(
        "long_term_forecast", "long_term_forecast, or short_term_forecast for M4 (its default)"
    )
    model: str | None = setting(None, "model without TAPR and GRA-M, by name (default: TimeLLM)")
    itr: int = setting(
        1,
        "runs, with the seeds --seed, --seed + 1, ...; mean and spread at the end",
        at_least=1,
        decides="course",
    )
    is_training: int = setting(
        1, "1: train and test; 0: test a checkpoint", at_least=0, at_most=1, decides="course"
    )
    model_id: str = setting("", "free text in the run's name (default: data and lengths)", decides="name")
    model_comment: str = setting("run", "last part of the run's folder name", decides="name")
    des: str = setting("", "free description, part of the run's name", decides="name")
    checkpoints: str = setting("./checkpoints", "folder of the run folders", decides="place", path=True)
    save_steps: int | None = setting(
        None, "step checkpoint every N optimizer steps (0: off)", at_least=0, decides="course", needs="steps"
    )
    save_total_limit: int = setting(
        3, "step checkpoints kept (0: all)", at_least=0, decides="course", needs=("steps", "step_files")
    )
    resume_from_checkpoint: str | None = setting(
        None, "file, folder or auto: go on from there", decides="course", path=True
    )
    resume_counter: int | None = setting(
        None, "early-stopping counter to resume with", at_least=0, decides="course"
    )
    init_from: str | None = setting(
        None, "checkpoint whose weights to start from (not a resume)", on_resume="free", path=True
    )
    log_steps: int = setting(
        50, "optimizer steps between lines of the training log", at_least=1, decides="place", needs="steps"
    )
    report_to: Literal["none", "tensorboard", "wandb"] = setting(
        "none", "tracker that gets the metrics too; wandb obeys WANDB_MODE, e.g. offline", decides="place"
    )
    debug_shapes: bool = setting(
        False, "print the shapes of one forward pass before the run", decides="course"
    )
    dump_prompt: bool = setting(
        False, "print the prompt of the first window before the run", decides="course"
    )
    max_minutes: float | None = setting(
        None, "save and stop (status 75) before this many minutes", at_least=0.0, decides="course"
    )


GROUPS: dict[str, type] = {
    "data": DataConfig,
    "llm": LLMConfig,
    "backbone": BackboneConfig,
    "baseline": BaselineConfig,
    "tapr": TAPRConfig,
    "gram": GRAMConfig,
    "text": TextConfig,
    "training": TrainingConfig,
    "run": RunConfig,
}


def iter_settings() -> Iterator[tuple[str, str, dataclasses.Field[Any]]]:
    """``(group, name, field)`` of every setting, in the order of ``--help``."""
    for group, part in GROUPS.items():
        for item in dataclasses.fields(part):
            yield group, item.name, item


@cache
def settings_where(fact: str, *values: Any) -> frozenset[str]:
    """Settings of which this fact, a word of `setting`, is one of ``values``."""
    return frozenset(name for _, name, item in iter_settings() if item.metadata[fact] in values)


IDENTITY = settings_where("decides", "training")
"""Settings that change what is trained: two runs that differ only in others share a hash."""


def left_to_machine(*runs: Mapping[str, Any]) -> frozenset[str]:
    """Settings that are still ``auto`` in one of these and decided by the machine: whatever it comes to."""
    by_machine = settings_where("on_resume", "machine")
    return frozenset(name for name in by_machine for values in runs if values.get(name) == AUTO)


def free_on_resume(*runs: Mapping[str, Any]) -> frozenset[str]:
    """Settings in which these, a run and the checkpoint that it resumes from, may differ."""
    return settings_where("on_resume", "free", "llm") | left_to_machine(*runs) | unread_settings(*runs)


@dataclass(frozen=True)
class Config:
    """All settings of a run, by part."""

    data: DataConfig = field(default_factory=DataConfig)
    llm: LLMConfig = field(default_factory=LLMConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    tapr: TAPRConfig = field(default_factory=TAPRConfig)
    gram: GRAMConfig = field(default_factory=GRAMConfig)
    text: TextConfig = field(default_factory=TextConfig)
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

    @property
    def shares_search(self) -> bool:
        """Whether GRA-M's neighbours are those of the start: one search and one memory serve both."""
        is_same = self.gram.retrieval_key == "raw" and self.gram.retrieval_scope == "variable"
        return self.begins_solved and self.gram.use_gram and is_same

    @property
    def apart(self) -> int:
        """Rows by which the starts of a window and its neighbours must differ, of whichever series."""
        by_time = self.data.is_panel and self.gram.retrieval_mask == "time"
        return self.data.pred_len if by_time else 0

    def identity(self) -> dict[str, Any]:
        """The settings that change what is trained, but for those that a run counts as having unsaid.

        So a setting that is added later, or a default that changes, leaves what was trained before the same;
        and so do the defaults of a module that is off.
        """
        flat, unsaid = self.flat(), settings_then()
        unread = unread_settings(flat)
        unsaid |= {name: item.default for _, name, item in iter_settings() if name in unread}
        said = {k: v for k, v in flat.items() if k in IDENTITY and v != unsaid[k]}
        return {k: v[0] if k in ONCE_ONE_WORD and len(v) == 1 else v for k, v in said.items()}

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
        wrong = _own_problems(self)
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


def unread_settings(*runs: Mapping[str, Any]) -> frozenset[str]:
    """Settings of the modules that are off in all of these: whatever they are, the same is trained."""
    switches = settings_where("switch", True)
    off = {
        group for group, name, _ in iter_settings() if name in switches and not any(r.get(name) for r in runs)
    }
    return frozenset(name for group, name, _ in iter_settings() if group in off) - switches


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
    if name in ONCE_ONE_WORD and isinstance(value, str):
        return (value,)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if is_whole and float in setting_type(group, name)[0] else value


def _is_empty_path(name: str, value: Any) -> bool:
    """Whether a setting that names a path says nothing, as ``--data_path "$UNSET"`` does."""
    return isinstance(value, str) and not value.strip() and name in settings_where("path", True)


def _own_problems(config: Config) -> dict[str, str]:
    """What is wrong with each setting by itself, by name."""
    found = {}
    for group, name, item in iter_settings():
        value = getattr(getattr(config, group), name)
        types, choices = setting_type(group, name)
        accepted = types + ((int,) if float in types else ())
        is_stray_bool = isinstance(value, bool) and bool not in types
        expected, shown = None, repr(value)
        if value not in choices and (is_stray_bool or not isinstance(value, accepted)):
            names = (t.__name__ for t in types if t is not type(None))
            expected = " or ".join([*names, *map(str, choices)])
        elif isinstance(value, tuple):
            expected, shown = expected_items(value, item_type(group, name)), spaced(value)
        elif isinstance(value, int | float):
            expected = expected_number(value, item.metadata)
        if expected is not None:
            found[name] = f"--{name}: expected {expected}, found {shown}"
    return found

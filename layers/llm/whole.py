"""Whether a model's files are all there and whole, before transformers reads them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from utils.errors import UserError

POINTER = b"version https://git-lfs"
"""How the file begins that git leaves in the place of a large one."""
ADAPTERS = "adapter_config.json"
ANEW = "fetch it again, whole"


def require_whole(files: list[Path], *, name: str) -> None:
    """Raise where one of a model's weight files is a git-lfs pointer, or cut short.

    Raises:
        ValueError: which names the file.
    """
    for file in files:
        wrong = _wrong_with(file)
        if wrong:
            raise UserError(f"--llm_model {name}: expected weights in {file}, found {wrong}")


def _wrong_with(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        head = stream.read(64)
    if head.startswith(POINTER):
        return (
            f"a git-lfs pointer of {size} bytes in their place; run `git lfs pull` in its folder, or {ANEW}"
        )
    if file.suffix == ".bin" and not zipfile.is_zipfile(file) and head[:2] not in (b"\x80\x02", b"PK"):
        return f"{size} bytes that are no PyTorch file; {ANEW}"
    if file.suffix == ".bin" and head[:2] == b"PK" and not zipfile.is_zipfile(file):
        return f"{size} bytes, the beginning of a PyTorch file alone; {ANEW}"
    if file.suffix != ".safetensors":
        return ""
    try:
        with safe_open(file, framework="pt"):
            return ""
    except SafetensorError as error:
        wanted = _promised(file, head)
        if wanted is not None and wanted > size:
            return f"{size} of the {wanted} bytes that its head promises; {ANEW}"
        return f"{size} bytes that are no whole safetensors file ({error}); {ANEW}"


def _promised(file: Path, head: bytes) -> int | None:
    """How long a safetensors file is by its head; None where the head is not whole itself."""
    length = int.from_bytes(head[:8], "little")
    if not 0 < length < 1 << 27:
        return None
    with file.open("rb") as stream:
        stream.seek(8)
        try:
            tensors = json.loads(stream.read(length))
            ends = [part["data_offsets"][1] for key, part in tensors.items() if key != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError):
            return None
    return 8 + length + max(ends, default=0)


def missing_from(folder: Path, weight_names: tuple[str, ...]) -> str:
    """What a folder lacks to be a model, in words, and what to do."""
    if (folder / ADAPTERS).is_file() and not any((folder / name).is_file() for name in weight_names):
        base = _read(folder / ADAPTERS).get("base_model_name_or_path") or "their base model"
        return f"adapters alone ({ADAPTERS}); give the folder or id of {base}, or of both merged"
    for name in weight_names:
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = sorted(set(_read(index).get("weight_map", {}).values()))
            lacking = [shard for shard in shards if not (folder / shard).is_file()]
            if lacking:
                return f"no {', '.join(lacking[:3])} ({len(lacking)} of {len(shards)} shards); fetch them too"
    return str(sorted(p.name for p in folder.iterdir()))


def _read(file: Path) -> dict[str, Any]:
    """A JSON file's object; empty where it is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def require_finite(llm: nn.Module, files: list[Path], *, name: str) -> None:
    """Raise where a weight is NaN or infinite: every state would be, and training would be blamed.

    Raises:
        ValueError: which names the file, where it can be told.
    """
    for key, weight in llm.named_parameters():
        if weight.device.type == "meta" or not weight.is_floating_point():
            continue
        finite = all(bool(part.isfinite().all()) for part in weight.detach().reshape(-1).split(1 << 24))
        if not finite:
            count = int((~weight.detach().isfinite()).sum())
            raise UserError(
                f"--llm_model {name}: expected finite weights in {_file_of(key, files)}, found {count} of "
                f"{key} ({weight.numel()} in all) NaN or infinite; {ANEW}"
            )


def _file_of(key: str, files: list[Path]) -> str:
    """The file that holds a weight of this name."""
    for file in files:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as tensors:
                names = tensors.keys()
                if any(other == key or other.endswith(f".{key}") for other in names):
                    return str(file)
    return ", ".join(map(str, files)) or "its files"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out, not that a file is at fault."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)

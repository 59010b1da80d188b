"""What memory this process holds, can still take, and can give back."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

STATUS = Path("/proc/self/status")
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
CGROUP_USE = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


SCARCE = 2 * 2**30
"""Bytes: where less is left to take, what was freed is given back in every step."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""glibc's numbers of its settings; source: malloc.h."""


@functools.cache
def _c_library(name: str) -> Callable[..., int] | None:
    """A function of the C library; None where it has none of this name."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):  # another C library, another system
        return None


def give_back_freed() -> None:
    """Return what was freed to the system now, so that the peak of what comes next does not add to it."""
    trim = _c_library("malloc_trim")
    if trim is not None:
        trim(0)


def give_back_where_scarce() -> None:
    """`give_back_freed` where the machine has less than `SCARCE` left: new pages cost a training step 5%."""
    if available_bytes() < SCARCE:
        give_back_freed()


def keep_freed() -> None:
    """From now on what is freed stays with this process, for the next step's tensors of the same sizes.

    By default large ones are asked of the system each time, which clears every page of them.
    """
    option = _c_library("mallopt")
    if option is not None:
        option(MMAP_THRESHOLD, 2**30)
        option(TRIM_THRESHOLD, -1)  # never by itself


def mib(size: float) -> str:
    """Bytes in a unit that fits."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def resident_bytes() -> int:
    """Memory that this process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """The most memory that this process has held; 0 where the system does not say."""
    if not STATUS.is_file():
        return 0
    line = next(text for text in STATUS.read_text().splitlines() if text.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def held_bytes(device: torch.device) -> int:
    """On a GPU the most memory that tensors have held at once; elsewhere what this process holds now."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident_bytes()


def available_bytes() -> int:
    """Memory that this process can still take without swapping.

    The least of what the machine and the container around the process have left.
    """
    found = [int(psutil.virtual_memory().available)]
    for limit, use in zip(CGROUP_LIMITS, CGROUP_USE, strict=True):
        known = [Path(name).read_text().strip() for name in (limit, use) if Path(name).is_file()]
        if len(known) == 2 and all(word.isdigit() for word in known):
            found.append(int(known[0]) - int(known[1]))
    return max(0, min(found))

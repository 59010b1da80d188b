"""How many threads a process computes with: as many as it has cores of its own.

torch begins with one for each logical processor that it sees. Two of those on one core share its arithmetic,
and a container's quota of processor time is seen by nobody: the threads above it wait, and those that wait
for them too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

SAID = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
"""Variables by which a user, or a launcher, says the number."""
TOPOLOGY = Path("/sys/devices/system/cpu")
CGROUP = Path("/sys/fs/cgroup")


def fit_threads(wanted: Callable[[], int] | None = None) -> str:
    """Lower torch's number of threads to `own_cores`, and say so; empty where it stays.

    A number that was said, or that is lower already, stays.
    """
    now = torch.get_num_threads()
    if any(os.environ.get(name) for name in SAID):
        return ""
    cores = (wanted or own_cores)()
    if cores >= now:
        return ""
    torch.set_num_threads(cores)
    return f"threads: {cores}, one for each core of this process ({now} by default; {SAID[0]} says another)"


def own_cores() -> int:
    """Physical cores that this process may use, at most its container's quota, and one at least."""
    logical = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return max(1, math.ceil(min(physical_cores(logical, TOPOLOGY), quota(CGROUP))))


def physical_cores(logical: Iterable[int], topology: Path) -> int:
    """Cores behind these logical processors; one for each where the system does not say."""
    cores = set()
    for number in logical:
        siblings = topology / f"cpu{number}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(number))
    return len(cores)


def quota(cgroup: Path) -> float:
    """Processors' worth of time that a container is given, infinite without a limit."""
    try:
        given, period = (cgroup / "cpu.max").read_text().split()  # version 2
        return math.inf if given == "max" else int(given) / int(period)
    except (OSError, ValueError):
        pass
    try:
        given = (cgroup / "cpu" / "cpu.cfs_quota_us").read_text()
        period = (cgroup / "cpu" / "cpu.cfs_period_us").read_text()
        return int(given) / int(period) if int(given) > 0 else math.inf
    except (OSError, ValueError):
        return math.inf

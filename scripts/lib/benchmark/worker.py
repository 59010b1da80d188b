"""One case of the benchmark in a process of its own: builds its subject, then answers requests.

A line of JSON in, a line of JSON out; what a subject prints goes to stderr. The process imports
nothing of this project by itself: a peer's folder has modules of the same names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BEGAN = time.perf_counter()
HERE = Path(__file__).resolve().parent
BY_FILE = ("peer", "packaged_peer")
"""Roles of other projects, whose modules may have the names of ours."""
STATUS = Path("/proc/self/status")
RESET_PEAK = Path("/proc/self/clear_refs")


def resident_bytes() -> int:
    """Memory of this process now, bytes; 0 where the system does not say."""
    return _status("VmRSS")


def peak_bytes() -> int:
    """Largest memory of this process since `reset_peak`, or since it began where that is not offered."""
    if STATUS.is_file():
        return _status("VmHWM")
    import resource  # not on every system

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def reset_peak() -> bool:
    """Forget the largest memory so far; False where the system does not offer it."""
    try:
        RESET_PEAK.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    if not STATUS.is_file():
        return 0
    line = next(text for text in STATUS.read_text().splitlines() if text.startswith(name))
    return int(line.split()[1]) * 1024


class Worker:
    """A subject, and what can be asked of it."""

    def __init__(self, request: dict[str, Any]) -> None:
        """Import torch and build what the request names."""
        import torch

        self.torch = torch
        torch.set_num_threads(request.get("threads", 1))
        torch.manual_seed(request.get("seed", 0))
        role = _load(request["role"], request["root"])
        self.imported = time.perf_counter() - BEGAN
        self.interpreter = resident_bytes()
        self.subject: Any = role.build(request)
        self.on_gpu = request.get("device", "cpu") != "cpu"
        self.ready = time.perf_counter() - BEGAN

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a request asks for; timed methods of the subject are asked for by name."""
        what = request["do"]
        if what == "facts":
            seconds = {"import_seconds": self.imported, "ready_seconds": self.ready}
            return {**seconds, "interpreter_bytes": self.interpreter, **self.subject.facts()}
        if what == "time":
            self.torch.set_num_threads(request["threads"])
            return {"seconds": self._timed(getattr(self.subject, request["method"]))}
        if what == "peak":
            return self._peak(getattr(self.subject, request["method"]))
        return getattr(self.subject, what)(**request.get("with", {}))

    def _timed(self, call: Callable[[], Any]) -> float:
        self._wait()
        began = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - began

    def _peak(self, call: Callable[[], Any]) -> dict[str, Any]:
        """Largest memory during two calls, bytes: the second one finds what the first has left."""
        if self.on_gpu:
            self.torch.cuda.reset_peak_memory_stats()
        exact = reset_peak()
        call()
        call()
        self._wait()
        found = {"bytes": peak_bytes(), "reset": exact}
        if self.on_gpu:
            found["gpu_bytes"] = self.torch.cuda.max_memory_allocated()
        return found

    def _wait(self) -> None:
        if self.on_gpu:
            self.torch.cuda.synchronize()


def _load(role: str, root: str) -> Any:
    """The module that builds the subject: a peer's by its file, ours as part of the project in ``root``."""
    sys.path.insert(0, root)
    if role not in BY_FILE:
        return importlib.import_module(f"scripts.lib.benchmark.{role}")
    spec = importlib.util.spec_from_file_location("benching_peer", HERE / f"{role}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Answer until the requests end."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a subject prints must not be taken for an answer
    worker: Worker | None = None
    for line in sys.stdin:
        try:
            request = json.loads(line)
            if worker is None:
                worker = Worker(request)
                answer: dict[str, Any] = {"ready": True}
            else:
                answer = worker.answer(request)
        except Exception as error:  # whatever a subject raises is the parent's to tell
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()

"""The benchmark's side of a worker process: start it, ask it, end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from utils.paths import PROJECT_ROOT

WORKER = Path(__file__).with_name("worker.py")
LAST_WORDS = 1500
"""Characters of a worker's stderr shown when it fails."""


class WorkerError(RuntimeError):
    """A case could not be built, or failed; the message says which and why."""


class Worker:
    """A case in a process of its own."""

    def __init__(self, label: str, request: dict[str, Any], *, root: Path = PROJECT_ROOT) -> None:
        """Start the process; `wait_until_ready` before anything is asked.

        Args:
            label: the case's name, for messages.
            request: what to build, see `scripts.lib.benchmark.subject` and `scripts.lib.benchmark.peer`; also
                ``python``, the interpreter, and ``environment``, variables beside those of this process.
            root: the folder whose modules it imports.
        """
        self.label = label
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  closed by `close`
        self.process = subprocess.Popen(
            [request.get("python", sys.executable), "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=root,
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "TOKENIZERS_PARALLELISM": "false",
                **request.get("environment", {}),
            },
        )
        self._send({**request, "root": str(root)})

    def wait_until_ready(self) -> Worker:
        """Return once the subject is built.

        Raises:
            WorkerError: it could not be.
        """
        self._receive()
        return self

    def ask(self, what: str, **words: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            WorkerError: the case failed.
        """
        self._send({"do": what, **words})
        return self._receive()

    def seconds(self, method: str, threads: int) -> float:
        """One call of a method of the subject, timed inside the process."""
        return float(self.ask("time", method=method, threads=threads)["seconds"])

    def close(self) -> None:
        """End the process and wait for it."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self._said.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its end is told where the answer is missing

    def _receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended, status {self.process.wait()}"}
        if "error" in answer:
            self._said.seek(0)
            words = self._said.read().decode(errors="replace").strip()[-LAST_WORDS:]
            raise WorkerError(f"{self.label}: {answer['error']}" + (f"\n{words}" if words else ""))
        return answer


@contextmanager
def workers(
    requests: dict[str, dict[str, Any]], roots: dict[str, Path] | None = None, *, at_once: bool = False
) -> Iterator[dict[str, Worker]]:
    """One worker for each request.

    Args:
        requests: by label.
        roots: folders of those that are not ours, by label.
        at_once: build them all at the same time: sooner ready, and none of their starts can be timed.
    """
    started: dict[str, Worker] = {}
    try:
        for label, request in requests.items():
            started[label] = Worker(label, request, root=(roots or {}).get(label, PROJECT_ROOT))
            if not at_once:
                started[label].wait_until_ready()
        if at_once:
            for worker in started.values():
                worker.wait_until_ready()
        yield started
    finally:
        for worker in started.values():
            worker.close()

"""Progress bars are for people: in a pipe and in the log there are lines, and no control characters."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from utils.paths import PROJECT_ROOT
from utils.training.run_folder import LOG_FILE

pytestmark = pytest.mark.slow
STEP = re.compile(r"^step (\d+)/11 \| loss \d", re.M)


def command(tiny) -> list[str]:
    words = [f"--{name}={value}" for name, value in tiny.items() if not isinstance(value, bool)]
    return [sys.executable, str(PROJECT_ROOT / "run_main_enhanced.py"), *words, "--cpu", "--use_gram"]


def environment() -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}


def run_log(tiny) -> str:
    (folder,) = Path(tiny["checkpoints"]).glob("long_term*")
    return (folder / LOG_FILE).read_text(encoding="utf-8")


def test_in_a_pipe_there_is_no_bar(tiny):
    done = subprocess.run(command(tiny), capture_output=True, text=True, check=True, env=environment())
    for text in (done.stdout, done.stderr, run_log(tiny)):
        assert "\r" not in text and "\x1b" not in text and "%|" not in text
    assert STEP.findall(done.stdout) == [str(step) for step in range(1, 12)]
    assert "validation: 5 windows in 1 batches" in done.stdout


def test_on_a_terminal_bars_and_lines_do_not_mix(tiny):
    """A line written through a bar leaves half of the bar in the line."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    process = subprocess.Popen(command(tiny), stdout=theirs, stderr=theirs, env=environment())
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:  # how a terminal says that its other end is closed
        pass
    assert process.wait() == 0, shown.decode()
    text = shown.decode()
    assert "training:" in text and "%|" in text and "11/11" in text, text
    lines = [line.rsplit("\r", 1)[-1] for line in text.split("\r\n")]
    written = [line for line in lines if re.match(r"(\x1b\[\w)?step \d+/11 \|", line)]
    assert len(written) == 11 and not any("%|" in line for line in written)
    log = run_log(tiny)
    assert "\r" not in log and "\x1b" not in log and "%|" not in log

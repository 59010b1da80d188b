"""Python in a process of its own, as a user's would be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from utils.paths import PROJECT_ROOT


def python(*words: Any, cwd: Path = PROJECT_ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    """What this Python ended with and said, given these words, on one thread."""
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

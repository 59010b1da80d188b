"""Train and test Time-LLM with TAPR and GRA-M: ``python run_main_enhanced.py --use_tapr --use_gram``."""

from __future__ import annotations

from collections.abc import Sequence

import run_main
from models.registry import ENHANCED_FLAGS
from utils.training.experiment import RunResult


def main(argv: Sequence[str] | None = None) -> RunResult:
    """Parse ``argv`` (default: the command line) and run."""
    return run_main.main(argv, model="TimeLLM_Enhanced", first=ENHANCED_FLAGS)


if __name__ == "__main__":
    main()

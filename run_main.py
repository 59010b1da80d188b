"""Train and test Time-LLM, the baseline: ``python run_main.py --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models import MODELS
from utils.cli import parse_config
from utils.config import Config
from utils.training import experiment
from utils.training.trainer import NonFiniteLossError

USER_ERRORS = (ValueError, OSError, NonFiniteLossError)


def train(config: Config, *, model: str) -> experiment.RunResult:
    """One run of the model of this name."""
    builders = experiment.Builders(
        model_name=model,
        model=MODELS[model],
        data=build_data,
        training_loader=training_loader,
        evaluation_loader=evaluation_loader,
    )
    return experiment.run(config, builders)


def main(argv: Sequence[str] | None = None, *, model: str = "TimeLLM") -> experiment.RunResult:
    """Parse ``argv`` (default: the command line) and run; exits with 2 where a user can mend it."""
    config = parse_config(argv)
    if model == "TimeLLM" and (config.tapr.use_tapr or config.gram.use_gram):
        print(
            "--use_tapr, --use_gram: run_main.py is the baseline; use run_main_enhanced.py", file=sys.stderr
        )
        sys.exit(2)
    try:
        return train(config, model=model)
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

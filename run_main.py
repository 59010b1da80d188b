"""Train and test Time-LLM, or a baseline by ``--model``: ``python run_main.py --help``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from logging import getLogger
from typing import NoReturn

from data_provider.data_factory import build_data, evaluation_loader, training_loader
from models import MODELS, llm_outline
from models.inspection import inspection_lines
from utils.cli import parse_config
from utils.config import Config
from utils.reporting.report import spread_text
from utils.training import experiment
from utils.training.auto_batch import MemoryShortError
from utils.training.trainer import NonFiniteLossError

log = getLogger(__name__)
USER_ERRORS = (ValueError, OSError, NonFiniteLossError, MemoryShortError)


def train(config: Config, *, model: str) -> experiment.RunResult:
    """One run of the model of this name."""
    builders = experiment.Builders(
        model_name=model,
        model=MODELS[model],
        data=build_data,
        training_loader=training_loader,
        evaluation_loader=evaluation_loader,
        inspect=inspection_lines,
        llm=llm_outline(model),
    )
    return experiment.run(config, builders)


def main(argv: Sequence[str] | None = None, *, model: str = "TimeLLM") -> experiment.RunResult:
    """Parse ``argv`` (default: the command line) and run; exits with 2 where a user can mend it.

    ``model`` is what the entry point stands for; only the baseline's lets ``--model`` choose another.
    """
    config = parse_config(argv)
    if model != "TimeLLM" and config.run.model is not None:
        _refuse(f"--model: this entry point trains {model}; {config.run.model} is run_main.py's")
    if model == "TimeLLM" and (config.tapr.use_tapr or config.gram.use_gram):
        _refuse("--use_tapr, --use_gram: run_main.py is for baselines; use run_main_enhanced.py")
    model = config.run.model or model
    try:
        results = [train(one, model=model) for one in repetitions(config)]
    except USER_ERRORS as error:
        _refuse(f"error: {error}")
    if len(results) > 1:
        log.info("%s", spread_text([r.results["best"]["test"] for r in results]))
    return results[-1]


def repetitions(config: Config) -> list[Config]:
    """The runs that ``--itr`` asks for: the same settings with successive seeds."""
    seed = config.training.seed
    return [config.replace(seed=seed + i, itr=1) for i in range(config.run.itr)]


def _refuse(message: str) -> NoReturn:
    """One message and exit status 2."""
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()

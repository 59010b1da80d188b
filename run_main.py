"""Train and test Time-LLM, or a baseline by ``--model``: ``python run_main.py --help``."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from models.fitting import train
from models.registry import MODELS, parse_run
from utils.cli import parse_config
from utils.config import Config
from utils.ending import ending
from utils.errors import UserError
from utils.reporting.text_tables import spread_text
from utils.training import experiment

log = getLogger(__name__)


def main(
    argv: Sequence[str] | None = None, *, model: str = "TimeLLM", first: Sequence[str] = ()
) -> experiment.RunResult:
    """Parse ``argv`` (default: the command line) and run; exits as `utils.ending` has it where that fails.

    ``model`` is what the entry point stands for, with the flags ``first`` before all others; only the
    baseline's lets ``--model`` choose another.
    """
    with ending():
        return _main(parse_config(argv, models=MODELS, first=first), model)


def _main(config: Config, model: str) -> experiment.RunResult:
    """Run what the command line asks for; the last of its runs."""
    if model != "TimeLLM" and config.run.model is not None:
        raise UserError(f"--model: this entry point trains {model}; {config.run.model} is run_main.py's")
    if model == "TimeLLM" and (config.tapr.use_tapr or config.gram.use_gram):
        raise UserError("--use_tapr, --use_gram: run_main.py is for baselines; use run_main_enhanced.py")
    return _train_all(config, config.run.model or model)


def command(argv: Sequence[str] | None = None) -> None:
    """``timellm-train`` of the installed package: either entry point, by the flags; ends as `main` does."""
    with ending():
        config, model = parse_run(argv)
        if config.run.model not in (None, model):
            raise UserError(
                f"--model {config.run.model}: expected no --model beside --use_tapr or --use_gram, which are "
                f"parts of {model}; leave one of them out"
            )
        _train_all(config, model)


def _train_all(config: Config, model: str) -> experiment.RunResult:
    """The runs that ``--itr`` asks for; the last of them."""
    results = [train(one, model=model) for one in repetitions(config)]
    if len(results) > 1:
        log.info("%s", spread_text([r.results["best"]["test"] for r in results]))
    return results[-1]


def repetitions(config: Config) -> list[Config]:
    """The runs that ``--itr`` asks for: the same settings with successive seeds."""
    seed = config.training.seed
    return [config.replace(seed=seed + i, itr=1) for i in range(config.run.itr)]


if __name__ == "__main__":
    main()

"""A run of a model by name, on the data that its settings name or on a table that a caller has."""

from __future__ import annotations

from functools import partial

from data_provider.data_factory import GivenTables, build_data, evaluation_loader, training_loader
from models.inspection import inspection_lines
from models.registry import MODELS, llm_outline
from utils.config import Config
from utils.training import experiment


def train(config: Config, *, model: str, given: GivenTables | None = None) -> experiment.RunResult:
    """One run of the model of this name; ``given`` tables are taken in place of files."""
    builders = experiment.Builders(
        model_name=model,
        model=MODELS[model],
        data=partial(build_data, model=MODELS[model], given=given),
        training_loader=training_loader,
        evaluation_loader=evaluation_loader,
        inspect=inspection_lines,
        llm=llm_outline(model),
    )
    return experiment.run(config, builders)

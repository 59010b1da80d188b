"""The table of language models that fit a machine, told without reading their weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from layers.llm import sources
from layers.llm.load import load_llm
from scripts import preflight
from scripts.lib import llms_at_hand
from tests.layers.test_llm import at, nowhere  # noqa: F401
from tests.scripts.test_preflight import FLAGS
from utils.config import Config
from utils.reporting.peak_memory import llm_sizes


@pytest.fixture
def base_models(nowhere: Path, tiny_gpt2: Path, tiny_llama: Path, monkeypatch) -> Path:  # noqa: F811
    """A model by its short name, another folder, and one whose config is of no known kind."""
    monkeypatch.setattr(sources, "FOLDER_PACKAGES", {})
    shutil.copytree(tiny_gpt2, nowhere / "gpt2")
    for name in ("mine", "unknown"):
        shutil.copytree(tiny_llama, nowhere / name)
    settings = json.loads((nowhere / "unknown/config.json").read_text()) | {"model_type": "no_such_kind"}
    (nowhere / "unknown/config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(preflight, "BASE_MODELS", nowhere)
    return nowhere


def test_models_by_name_and_by_folder_are_found_once(base_models: Path) -> None:
    found = [(source.name, source.folder.name) for source in sources.at_hand(base_models)]
    named = [("GPT2", "gpt2")]
    assert found == named + [(str(base_models / name), name) for name in ("mine", "unknown")]


def test_the_table_has_a_row_for_the_layers_asked_for_and_for_all(
    base_models: Path, capsys, monkeypatch
) -> None:
    """No weight is read; a model that can not be told of is named."""
    for file in base_models.glob("*/model.safetensors"):
        file.write_bytes(b"")
    assert preflight.main([*FLAGS, "--list_llms"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [(row[0].rpartition("/")[2], row[1]) for row in rows[2:6]] == [
        ("| GPT2", "1 of 3"), ("| GPT2", "3 of 3"), ("mine", "1 of 3"), ("mine", "3 of 3"),
    ]  # fmt: skip
    assert "unknown: not told of, since" in rows[6][0] and "!" not in "".join(rows[2])


def test_sizes_without_weights_are_those_of_the_model(tiny_llama: Path) -> None:
    config = Config.from_flat({"llm_model_path": str(tiny_llama)})
    found, _ = llms_at_hand._sizes(sources.Source("it", tiny_llama), config)
    assert found._replace(largest=0) == llm_sizes(load_llm(at(tiny_llama, layers=3)).model)


@pytest.mark.parametrize("kind", ["bf16", "int8"])
def test_a_column_holds_what_its_weights_take(kind: str, tiny_llama: Path) -> None:
    config = Config.from_flat({"llm_model_path": str(tiny_llama)})
    llm, _ = llms_at_hand._sizes(sources.Source("it", tiny_llama), config)
    large = llm._replace(layer_weights=10**9, weights=llm.weights + 3 * 4 * 10**9)
    run = llms_at_hand._run(config, large, 2, variables=1, memory_rows=0)
    told: dict[str, Any] = {
        name: llms_at_hand._cell(run, name, llms_at_hand.Machine(torch.device("cpu"), 4e9))
        for name in ("fp32", kind)
    }
    sizes = {name: float(cell.split()[0]) for name, cell in told.items()}
    assert sizes["fp32"] - sizes[kind] == pytest.approx(
        2 * (4 - {"bf16": 2, "int8": 1}[kind]) * 1e9 / 2**30, abs=0.2
    )
    assert told["fp32"].endswith(" !")

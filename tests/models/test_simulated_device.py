"""What a GPU would be asked to do, on a device that computes nothing: see `utils.simulated_device`."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from layers.retrieval.memory import COLUMNS, RetrievalMemory
from layers.retrieval.search import SEARCH_BLOCK
from models.registry import MODELS
from models.trained import TrainedModel
from tests.models.test_timellm_enhanced import BOTH
from tests.pairwise import pairwise
from tests.utils.training.test_channel_parts import trainer_of
from utils.config import Config
from utils.simulated_device import NAME, Watch, simulated
from utils.training.trainer import Trainer
from utils.types import Batch, FitSource, WindowRows, unsolved

L, H, VARIABLES, WINDOWS = 32, 8, 2, 4
SETTINGS = pairwise(
    {
        "modules": [None, {}, {"use_tapr": True}, {"use_gram": True}, BOTH],  # None: the baseline
        "llm": ["tiny_llama", "tiny_gpt2"],
        "peft": ["none", "lora"],
        "gradient_checkpointing": [False, True],
        "mixed_precision": ["no", "bf16"],
        "token_order": ["prompt_first", "document"],
        "source_tokens": ["mapping", "prototypes"],
        "gradient_accumulation_steps": [1, 2],
    }
)
OTHERS = sorted(set(MODELS) - {"TimeLLM", "TimeLLM_Enhanced", "PanelAverage"})
"""PanelAverage's Theta is computed on the CPU, series by series."""
STEP = "read utils/training/agreement.py agree"
"""The one look of an optimizer step: whether a loss is not finite, and whether anyone asked to stop."""
EVALUATION = "read utils/training/metrics.py reduce"
"""The scores of a whole evaluation."""


class Windows(list[Batch]):
    """A loader's batches, which are their own data set."""

    @property
    def dataset(self) -> Windows:
        return self


class Source:
    """Made-up training rows."""

    num_windows, num_variables, series_id = 50, VARIABLES, 12345
    num_rows = num_windows * num_variables

    def rows(self, index: Tensor) -> WindowRows:
        series = torch.full((len(index),), self.series_id)
        place = index // self.num_windows, index % self.num_windows * 200
        return WindowRows(torch.randn(len(index), L), torch.randn(len(index), H), series, *place)

    def holds(self, series_id: Tensor) -> bool:
        return True

    def lookbacks(self, *, series_id: Tensor, variable: Tensor, start: Tensor) -> Tensor:
        return torch.randn(len(start), L)


def windows(model: Any) -> Batch:
    """A batch as loaders hand it over, with its prompts where the model reads any."""
    start = torch.arange(WINDOWS)
    x = torch.randn(WINDOWS, L, VARIABLES)
    batch = Batch(
        x=x,
        y=torch.randn(WINDOWS, H, VARIABLES),
        x_mark=torch.randn(WINDOWS, L, 4),
        y_mark=torch.randn(WINDOWS, H, 4),
        start=start,
        series_id=torch.full_like(start, 9),
        variable=torch.arange(VARIABLES).expand(WINDOWS, -1),
    )
    if model.uses_llm:
        batch = batch._replace(prompt=model.prompts(x))
    return batch


def built(**flags: Any) -> Any:
    """The model of these flags, tiny in all sizes; with modules, its statistics counted, the memory large."""
    name = flags.pop("model", "TimeLLM")
    config = Config.from_flat(
        {
            "seq_len": L, "pred_len": H, "label_len": 8, "enc_in": VARIABLES, "d_model": 16, "d_ff": 16,
            "n_heads": 2, "num_tokens": 20, "d_repr": 16, "llm_layers": 2, "season": 24,
            "max_grad_norm": 1.0, "retrieval_key": "hybrid", "retrieval_fusion": "both", **flags,
        }
    )  # fmt: skip
    model: Any = MODELS[name](config)
    if model.is_trainable:  # others need validation windows
        model.fit_statistics(FitSource(Source(), once=unsolved))
    if config.gram.use_gram:
        for column in COLUMNS:
            rows = getattr(model.gram.retriever, column)
            setattr(model.gram.retriever, column, rows.new_zeros((SEARCH_BLOCK + 100, *rows.shape[1:])))
    return model


def trainer(model: Any, folder: Path) -> Trainer:
    return trainer_of(model, model.config, folder, device=NAME)


def looks(watch: Watch) -> list[str]:
    """What was noted since the last call; pytest shows the lines of a test that fails."""
    found = [f"{look.kind} {look.where}" for look in watch.looks]
    print(*watch.looks, sep="\n")
    watch.looks.clear()
    return found


def predicted(model: Any, batch: Batch) -> Tensor:
    """What `Forecaster.predict` computes, up to the forecast on the device."""
    run = TrainedModel.__new__(TrainedModel)
    run.config, run.model, run.device = model.config, model, torch.device(NAME)
    run._lock = threading.Lock()
    model.eval()
    return run._pass(batch).prediction


def check(model: Any, tmp_path: Path, *, steps: int = 2) -> None:
    """Training steps, an evaluation and a forecast look at the device where they must, and nowhere else."""
    passes = model.config.training.gradient_accumulation_steps
    if model.uses_llm:
        assert model.prompt.width  # found once a run, by the tokenizer
    made = windows(model)
    with simulated() as watch:
        watch.move(model)
        batch = Batch(*map(watch.put, made))
        loop = trainer(model, tmp_path)
        assert looks(watch) == []
        if model.is_trainable:
            for _ in range(steps):
                loop.train_step([batch] * passes)
            assert looks(watch) == [STEP] * steps
        loader: Any = Windows([batch])
        loop.evaluate(loader, name="test")
        assert looks(watch) == [EVALUATION]
        forecast = predicted(model, batch)
        assert forecast.shape == (WINDOWS, H, VARIABLES) and forecast.device.type == NAME
        assert looks(watch) == []


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_step_waits_for_the_device_once(setting, request, tmp_path):
    """Prompts, masks, empty caches and lists as an index were each read or copied, in every pass."""
    number = SETTINGS.index(setting)
    flags = {
        **setting,
        "loss": ["MSE", "MAE", "Huber"][number % 3],
        "loss_scale": ["none", "std"][number % 2],
    }
    modules, llm = flags.pop("modules"), str(request.getfixturevalue(flags.pop("llm")))
    name = "TimeLLM" if modules is None else "TimeLLM_Enhanced"
    check(built(model=name, llm_model_path=llm, **(modules or {}), **flags), tmp_path, steps=1)


@pytest.mark.parametrize("name", OTHERS)
def test_a_baseline_stays_on_the_device(name, tmp_path):
    check(built(model=name), tmp_path)


def test_an_encoder_stays_on_the_device(tiny_bert, tmp_path):
    """Its pass is another one, with other masks."""
    check(built(llm_model_path=str(tiny_bert)), tmp_path, steps=1)


def test_keys_that_are_encoded_anew_go_to_the_device_in_blocks(tiny_llama):
    """Between two trainings of an epoch, so what it copies is named here, and only here."""
    model = built(
        model="TimeLLM_Enhanced",
        llm_model_path=str(tiny_llama),
        use_gram=True,
        llm_layers=1,
        retrieval_key="hybrid",
    )
    with simulated(answer=1) as watch:
        watch.move(model)
        RetrievalMemory.refresh(model.gram.retriever, Source())  # beside them, what the log compares
        found = [look for look in watch.looks if look.kind != "stray"]
        assert {look.where for look in found} == {"layers/retrieval/memory.py _encode"}


# The device itself.


def read_value(x: Tensor) -> Tensor:
    return x * x.sum().item()


def add_from_cpu(x: Tensor) -> Tensor:
    return x + torch.ones(())


@pytest.mark.parametrize(
    ("fault", "kind"), [(read_value, "read"), (add_from_cpu, "stray")], ids=["item", "cpu scalar"]
)
def test_a_planted_fault_is_named(fault, kind, tmp_path):
    """A check that never fails proves nothing."""
    model = built(model="PatchTST")
    model.head.register_forward_hook(lambda module, args, found: fault(found))
    made = windows(model)
    with simulated() as watch:
        watch.move(model)
        trainer(model, tmp_path).train_step([Batch(*map(watch.put, made))])
        assert f"{kind} tests/models/test_simulated_device.py {fault.__name__}" in looks(watch)


def test_a_tensor_that_a_hook_left_on_the_cpu_is_refused(tmp_path):
    model = built(model="PatchTST")
    model.head.register_forward_hook(lambda module, args, found: found + torch.ones(H))
    made = windows(model)
    with simulated() as watch:
        watch.move(model)
        with pytest.raises(RuntimeError, match="on the same device"):
            trainer(model, tmp_path).train_step([Batch(*map(watch.put, made))])


def left_on_cpu(gradient: Tensor) -> Tensor:
    return gradient + torch.ones(gradient.shape)


def test_a_gradient_that_meets_the_cpu_is_named(tmp_path):
    """Backward passes are followed too; an error in their thread would end the process."""
    model = built(model="PatchTST")
    made = windows(model)
    with simulated() as watch:
        watch.move(model)
        model.head.linear.weight.register_hook(left_on_cpu)
        trainer(model, tmp_path).train_step([Batch(*map(watch.put, made))])
        assert "stray tests/models/test_simulated_device.py left_on_cpu" in looks(watch)


def test_a_mask_as_an_index_is_refused():
    """Its size would have to be read first."""
    with simulated(), pytest.raises(Exception, match="nonzero"):
        x = torch.randn(3, device=NAME)
        x[x > 0]


def test_bytes_are_those_of_the_tensors_that_live():
    with simulated() as watch:
        x = torch.zeros(250, device=NAME)
        y = (x.view(10, 25) + 1).to(torch.bfloat16)
        assert (watch.held, watch.peak) == (1500, 2500)
        del x, y
        assert watch.held == 0
        watch.restart_peak()
        assert watch.peak == 0


def test_autocast_takes_cudas_precisions():
    with simulated(), torch.autocast(NAME, dtype=torch.bfloat16):
        x = torch.randn(4, 8, device=NAME)
        assert torch.nn.functional.linear(x, x).dtype == (x @ x.T).dtype == torch.bfloat16
        assert torch.nn.functional.layer_norm((x @ x.T), (4,)).dtype == torch.float32
        assert torch.nn.functional.gelu(x).dtype == torch.float32

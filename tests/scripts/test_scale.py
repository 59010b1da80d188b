"""The model of a step's cost: its operations against a count, its fit against costs that are known."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from torch.utils.flop_counter import FlopCounterMode

from scripts import scale
from scripts.lib.benchmark.subject import Subject
from scripts.lib.scale.cost import Measurement, StepFlops, TimeModel, step_flops
from scripts.lib.scale.tables import markdown, training_windows
from utils.reporting.peak_memory import sizes_of


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("TimeLLM", {}),
        ("TimeLLM", {"source_tokens": "prototypes", "batch_size": 3}),
        ("TimeLLM_Enhanced", {"use_tapr": True}),
        ("TimeLLM_Enhanced", {"use_tapr": True, "token_order": "prompt_first"}),
    ],
)
def test_operations_are_those_counted(model: str, settings: dict[str, Any], tiny_llama: Path) -> None:
    """Within 10%: the modules' own operations, and those of TAPR's attention, are left out."""
    flags = {"data": "synthetic", "llm_model_path": str(tiny_llama), "llm_layers": 3, "d_ff": 16, "cpu": True}
    subject = Subject(
        {**flags, "batch_size": 2, "num_tokens": 200, "d_model": 16, **settings},
        model=model, plain=False, description=None, device="cpu",
    )  # fmt: skip
    for _ in range(2):
        subject.train_step()
    with FlopCounterMode(display=False) as counter:
        subject.train_step()
    sizes = sizes_of(subject.model, config=subject.config, forecast=7)
    assert step_flops(sizes).total == pytest.approx(counter.get_total_flops(), rel=0.1)


def made_up(patches: int, llm: float, source: float) -> Measurement:
    seconds = 0.01 + 0.002 * patches + 2e-11 * llm + 1e-11 * source
    setting = {"hidden": 8, "layers": 1, "batch_size": 1, "source_tokens": "prototypes"}
    return Measurement(setting, patches, StepFlops(llm, source, 0.0), seconds, (seconds, seconds))


SIZES = [(7, 5, 1), (7, 50, 1), (28, 20, 60), (14, 90, 60), (56, 9, 5)]
MADE_UP = [made_up(patches, 1e9 * llm, 1e9 * source) for patches, llm, source in SIZES]


def test_the_fit_finds_costs_that_are_known() -> None:
    model = TimeModel.fitted(MADE_UP)
    found = [model.step, model.patch, model.llm, model.source]
    assert found == pytest.approx([0.01, 0.002, 2e-11, 1e-11], rel=1e-6)
    other = made_up(21, 33e9, 2e9)
    assert model.seconds(other.patches, other.flops) == pytest.approx(other.seconds)


def test_no_cost_is_below_zero() -> None:
    cheap = [Measurement(m.setting, m.patches, m.flops, 0.1, (0.1, 0.1)) for m in MADE_UP]
    model = TimeModel.fitted(cheap)
    assert min(model.step, model.patch, model.llm, model.source) >= 0


def test_training_windows_are_the_published_ones() -> None:
    """Lookback 512, horizon 96."""
    assert training_windows("ETTh1") == 8033 and training_windows("ETTm1") == 33953


def test_kept_measurements_give_the_same_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {part: [m.__dict__ | {"flops": list(m.flops)} for m in MADE_UP] for part in ("fitted", "held_out")}
    (tmp_path / "kept.json").write_text(json.dumps(kept))
    document = tmp_path / "scale.md"
    document.write_text(f"before\n{scale.MARKERS[0]}\nold\n{scale.MARKERS[1]}\nafter\n")
    assert scale.main(["--measured", str(tmp_path / "kept.json"), "--docs", str(document)]) == 0
    text = markdown(TimeModel.fitted(MADE_UP), MADE_UP, MADE_UP, threads=1)
    assert capsys.readouterr().out == text + "\n"
    assert document.read_text() == f"before\n{scale.MARKERS[0]}\n{text}{scale.MARKERS[1]}\nafter\n"
    assert "The largest error on sizes that were not fitted is 0%" in text
    shares = dict(re.findall(r"\| SmolLM2-135M \| (\w+) \|.*\| (\d+)% \|", text))
    assert int(shares["mapping"]) > 90 and int(shares["prototypes"]) < 50


def test_a_case_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "VOCABULARY", 400)
    case = {"hidden": 32, "layers": 2, "batch_size": 1, "source_tokens": "prototypes", "d_ff": 16}
    found = scale.measure(case, steps=3)
    assert found.patches == 7 * 64 and 0 < found.spread[0] <= found.seconds <= found.spread[1]
    assert found.flops.llm > found.flops.source > 0

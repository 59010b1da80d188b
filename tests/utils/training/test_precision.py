"""The choice of the kernel for float32 products."""

from __future__ import annotations

import pytest
import torch

from tests.processes import python
from utils.training import experiment, precision
from utils.training.precision import FP32_GRADE, matmul_precision, medium_error, subnormals_flushed

CPU = torch.device("cpu")


def test_auto_takes_medium_only_where_it_is_as_exact(monkeypatch):
    """On a CPU whose medium is bfloat16 the results would change without a word."""
    for error, expected in ((FP32_GRADE / 2, "medium"), (4e-3, "highest"), (float("nan"), "highest")):
        monkeypatch.setattr(precision, "medium_error", lambda device, error=error: error)
        with matmul_precision("auto", CPU) as chosen:
            assert chosen == torch.get_float32_matmul_precision() == expected


def test_the_check_tells_the_precisions_apart():
    """What it measures here, and what bfloat16 and float32 themselves would give."""
    left, right = torch.randn(256, 512), torch.randn(512, 256)
    exact = left.double() @ right.double()
    grade = {
        dtype: float(((left.to(dtype) @ right.to(dtype)).double() - exact).abs().max() / exact.abs().max())
        for dtype in (torch.float32, torch.bfloat16)
    }
    assert grade[torch.float32] < FP32_GRADE < grade[torch.bfloat16]
    assert 0 < medium_error(CPU) < 0.05


@pytest.mark.parametrize("wanted", ["highest", "medium", "auto"])
def test_the_setting_before_is_restored_even_after_an_error(wanted):
    before = torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), matmul_precision(wanted, CPU):
        raise KeyError
    medium_error(CPU)
    assert torch.get_float32_matmul_precision() == before


def test_a_run_uses_it_and_leaves_no_trace(start_run):
    before = torch.get_float32_matmul_precision()
    result = start_run(matmul_precision="medium", max_steps=1)
    saved = torch.load(result.run_dir / "checkpoint", weights_only=True)
    assert saved["config"]["matmul_precision"] == "medium"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("before", [False, True])
def test_subnormals_are_zero_inside_and_as_before_afterwards(before):
    smallest = torch.tensor(1e-40)
    if not torch.set_flush_denormal(before):
        pytest.skip("this processor can not flush subnormals")
    try:
        with pytest.raises(KeyError), subnormals_flushed():
            assert float(smallest + smallest) == 0
            raise KeyError
        assert (float(smallest + smallest) == 0) is before
    finally:
        torch.set_flush_denormal(False)


def test_a_run_flushes_subnormals_while_it_trains(start_run, monkeypatch):
    sums: list[float] = []
    smallest = torch.tensor(1e-40)
    monkeypatch.setattr(experiment, "_train", lambda *_: sums.append(float(smallest + smallest)))
    start_run(max_steps=1)
    assert sums == [0.0] and float(smallest + smallest) > 0


@pytest.mark.slow
def test_all_threads_of_a_command_flush_subnormals():
    """torch 2.13.0 flushes them in the calling thread; others do only if they begin afterwards."""
    script = (
        "import torch, run_main\n"
        "from utils.threads import fit_threads\n"
        "from utils.training.precision import subnormals_flushed\n"
        "fit_threads()\n"
        "torch.set_num_threads(2)\n"
        "with subnormals_flushed():\n"
        "    print(bool((torch.full((1024, 1024), 1e-39) @ torch.eye(1024) == 0).all()))\n"
    )
    done = python("-c", script)
    assert done.stdout.strip() == "True", done.stderr

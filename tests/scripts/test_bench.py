"""The benchmark: its plain path is the same model, its formula counts right, its parts fit together."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts import bench
from scripts.lib.benchmark import kinds, measure, table, tiny
from scripts.lib.benchmark.cases import ALL, DEFAULT, PLAIN, Floor, cases, floors, scenarios
from scripts.lib.benchmark.client import Worker, WorkerError
from scripts.lib.benchmark.machine import Retrieval
from scripts.lib.benchmark.measure import peer_request
from scripts.lib.benchmark.plain import make_plain
from scripts.lib.benchmark.rounds import compared, groups, interleave, spread
from scripts.lib.benchmark.subject import Subject
from scripts.lib.benchmark.table import BEGIN, END, floor_rows, place
from tests.models.test_fast_paths import assert_alike, count_calls, gradients, model_of, state_of
from utils.paths import PROJECT_ROOT
from utils.process_memory import resident_bytes

SMALL = {"data": "synthetic", "batch_size": 1, "llm_layers": 2, **tiny.SETTINGS}
MODELS = ["tiny_gpt2", "tiny_llama", "tiny_bert"]


@pytest.fixture
def settings(tiny_llama: Path) -> dict[str, Any]:
    return {**SMALL, "llm_model_path": str(tiny_llama)}


def subject(settings: dict[str, Any], *, model: str = "TimeLLM", plain: bool = False) -> Subject:
    torch.manual_seed(0)
    return Subject(settings, model=model, plain=plain, description=None, device="cpu")


@pytest.mark.parametrize("folder", MODELS)
def test_the_plain_path_is_the_same_model(folder, request):
    """A straw man with other forecasts or gradients would prove nothing."""
    path = request.getfixturevalue(folder)
    default, plain = model_of(path), make_plain(model_of(path))
    torch.testing.assert_close(state_of(plain).prediction, state_of(default).prediction, rtol=1e-4, atol=1e-5)
    assert_alike(gradients(plain), gradients(default))


def test_the_plain_path_keeps_its_attention_maps_and_maps_in_every_pass(settings, monkeypatch):
    """As published: what it costs is part of the comparison."""
    plain = subject(settings, plain=True)
    maps: list[int] = []
    monkeypatch.setattr(
        plain.model.llm_model, "forward", _watch(plain.model.llm_model.forward, maps), raising=True
    )
    mapped = count_calls(plain.model, "_map_words")
    plain.evaluate()
    plain.evaluate()
    assert maps == [2, 2] and len(mapped) == 2


def _watch(forward: Any, seen: list[int]) -> Any:
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append(len(out.attentions))
        return out

    return watched


@pytest.mark.parametrize("folder", ["tiny_gpt2", "tiny_llama"])
def test_the_formula_counts_the_plain_paths_operations(folder, request):
    """Within 2%, forward and backward of the published code, at a tiny size too."""
    path = request.getfixturevalue(folder)
    found = subject({**SMALL, "llm_model_path": str(path)}, plain=True).flops()
    assert found["counted"] == pytest.approx(found["formula"], rel=0.02)
    assert 0 < found["formula_llm"] < found["formula"]


def test_the_default_takes_fewer_operations_and_no_llm_in_its_checkpoint(settings, tmp_path):
    plain, default = subject(settings, plain=True), subject(settings)
    assert default.flops()["counted"] < plain.flops()["counted"]
    sizes = [s.checkpoint(str(tmp_path))["weight_bytes"] for s in (plain, default)]
    llm = sum(p.numel() * p.element_size() for p in plain.model.llm_model.parameters())
    assert sizes[0] - sizes[1] == pytest.approx(llm, rel=0.01)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{}, {"mixed_precision": "bf16"}, {"use_tapr": True, "use_gram": True}])
def test_a_subject_trains_and_evaluates(settings, changes):
    made = subject({**settings, **changes}, model="TimeLLM_Enhanced")
    before = made.model.output_projection.linear.weight.clone()
    made.train_step()
    made.evaluate()
    assert not torch.equal(before, made.model.output_projection.linear.weight)
    assert made.facts()["series"] == 7 and len(made.forecast()["values"]) == 7 * 24
    assert min(made.expected_memory().values()) > resident_bytes() / 2


def test_both_ways_of_retrieval_find_the_same():
    found = Retrieval(300, seed=1).agreement()
    assert found["futures"] < 1e-4 and found["gradient"] < 1e-3


def test_all_choices_are_offered_and_those_that_are_not_are_left_out():
    names = [case.name for case in cases(quick=False, all_choices={})]
    assert names[:3] == [PLAIN, DEFAULT, ALL] and {"bf16", "prototypes", "matmul highest"} <= set(names)
    four = scenarios(base=SMALL, layers=(2, 3), quick=False)
    assert {floor.scenario for floor in floors(layers=(2, 3))} <= {s.name for s in four} | {"retrieval"}
    assert four[1].only(PLAIN).cases == (four[1].cases[0],)


# What the numbers amount to.


def test_ratios_are_taken_within_a_round():
    """A machine that slows down between rounds must not change them."""
    found = compared({PLAIN: [2.0, 20.0, 4.0], DEFAULT: [1.0, 10.0, 2.0]}, PLAIN)
    assert found[DEFAULT]["ratio"] == {"median": 2.0, "q1": 2.0, "q3": 2.0, "n": 3}
    assert spread([3.0])["median"] == 3.0


def test_every_group_has_the_plain_path():
    assert list(groups([PLAIN, "a", "b", "c"], anchor=PLAIN, most=3)) == [[PLAIN, "a", "b"], [PLAIN, "c"]]
    assert list(groups([PLAIN], anchor=PLAIN, most=2)) == [[PLAIN]]


class _Instant:
    def __init__(self) -> None:
        self.calls = 0

    def seconds(self, method: str, threads: int) -> float:
        self.calls += 1
        return 1.0


def test_a_budget_ends_the_rounds_but_two_are_made():
    workers: Any = {PLAIN: _Instant(), DEFAULT: _Instant()}
    times = interleave(workers, "train_step", threads=1, rounds=9, budget=0.0)
    assert {len(own) for own in times.values()} == {2} and workers[PLAIN].calls == 3


def results(train: float, peak: float) -> dict[str, Any]:
    def case(ratio: float, share: float) -> dict[str, Any]:
        return {
            "train": {"1": {"ratio": {"median": ratio}}},
            "peak_train": {"bytes": 5.0 + share},
            "peak_evaluate": {"bytes": 1.0},
            "facts": {"interpreter_bytes": 5.0},
        }

    ways = {PLAIN: case(1.0, 1.0), DEFAULT: case(train, peak), ALL: case(9.0, 0.1)}
    return {"scenarios": {"s": {"cases": ways}}}


@pytest.mark.parametrize(("train", "peak", "missed"), [(2.1, 0.6, [False, False]), (1.9, 0.7, [True, True])])
def test_a_floor_is_missed_from_a_fifth_on(train, peak, missed):
    wanted = [
        Floor("step", "s", "train", 2.5, 6),
        Floor("memory", "s", "peak_train", 0.55, 0.22, at_most=True),
        Floor("not measured", "other", "train", 9, 9),
    ]
    assert [row["missed"] for row in floor_rows(results(train, peak), wanted)] == missed


def test_floors_of_steps_are_those_of_the_kind_of_processor():
    """AMD's, shown on an Intel, said MISSED of steps as quick as they can be there."""

    def expected(processor: str) -> dict[str, list[float | None]]:
        found = floors(layers=(6, 12), processor=processor)
        return {f"{floor.scenario} {floor.measure}": [floor.default, floor.all] for floor in found}

    amd, intel = expected("AMD EPYC"), expected("Intel(R) Xeon(R) Processor")
    assert amd.keys() == intel.keys()
    train = "baseline-6 train"
    assert (amd[train], intel[train]) == ([2.5, 6], [1.9, None])
    assert intel["enhanced-document train"] == [1.3, None]
    assert intel["baseline-6 evaluate"] == [None, None]
    assert amd["baseline-6 checkpoint"] == intel["baseline-6 checkpoint"]


def test_tables_take_their_place_in_a_document(tmp_path):
    path = tmp_path / "performance.md"
    path.write_text(f"# Speed\n{BEGIN}\nold\n{END}\nafter\n")
    place("new\n", path)
    assert path.read_text() == f"# Speed\n{BEGIN}\nnew\n{END}\nafter\n"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="expected the lines"):
        place("new\n", path)


def test_parts_that_were_not_compared_leave_their_cells_empty():
    def timed(seconds: float) -> dict[str, Any]:
        return {"seconds": {"median": seconds}, "ratio": {"median": 100.0}}

    both = {"search": timed(0.01), "broadcast": timed(1.0)}
    sizes = {"search": 2**21, "broadcast": 2**22}
    found = {
        "10000": {
            "threads": {"1": both}, "peak": sizes, "resident": dict.fromkeys(sizes, 2**20),
            "agreement": {"futures": 1e-6, "gradient": 2e-6},
        },
        "1000000": {"threads": {"2": {"search": timed(2.0)}}, "peak": {"search": 2**22},
                    "resident": {"search": 2**20}},
    }  # fmt: skip
    text = table._retrieval_table(found)
    assert "| 10,000 | 1 | 0.01 | 1 | 100 | search 1, broadcast 3 |" in text
    assert "| 1,000,000 | 2 | 2 |  |  | search 3 |" in text and "1.0e-06" in text
    assert "no CUDA GPU" in table._gpu_text({"skipped": "no CUDA GPU in this process"})
    measured = {
        "samples_per_second": 100.0,
        "peak_bytes": 2**30,
        "roofline_share": 0.6,
        "roofline_flops": 3e14,
    }
    gpu = {"baseline-6": {DEFAULT: measured, "prototypes": {"failed": "memory: no\nmore"}}}
    text = table._gpu_text(gpu)
    assert "| baseline-6 | default | 100 | 1024 | 60% of 300 TFLOP/s |" in text and "memory: no |" in text


# Processes.


PEER = """
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel, LlamaTokenizer

class Model(nn.Module):
    def __init__(self, configs):
        super().__init__()
        print("peers print")
        config = LlamaConfig.from_pretrained("huggyllama/llama-7b")
        config.num_hidden_layers = configs.llm_layers
        self.llm = LlamaModel.from_pretrained("huggyllama/llama-7b", local_files_only=True, config=config)
        self.tokenizer = LlamaTokenizer.from_pretrained("huggyllama/llama-7b", trust_remote_code=True)
        assert self.tokenizer.pad_token is not None and configs.llm_dim == 32 and configs.content
        for p in self.llm.parameters():
            p.requires_grad = False
        self.map = nn.Linear(configs.seq_len, configs.pred_len)

    def forward(self, x_enc, x_mark_enc, x_dec, x_mark_dec, mask=None):
        assert len(self.llm.layers) == 2
        return self.map(x_enc.to(torch.bfloat16).transpose(1, 2)).transpose(1, 2)
"""


@pytest.fixture
def peer(tmp_path: Path) -> Path:
    folder = tmp_path / "peer"
    (folder / "models").mkdir(parents=True)
    (folder / "models" / "__init__.py").touch()
    (folder / "models" / "TimeLLM.py").write_text(textwrap.dedent(PEER))
    return folder


@pytest.mark.slow
def test_a_peer_is_measured_with_its_own_modules_and_our_llm(peer, settings):
    """Its modules have the names of ours; it asks for a 7B model, and casts to bfloat16 by itself."""
    (scenario, *_) = scenarios(base=settings, layers=(2, 3), quick=True)
    worker = Worker("peer", peer_request(scenario), root=peer)
    try:
        worker.wait_until_ready()
        assert worker.seconds("train_step", 1) > 0 and worker.seconds("evaluate", 1) > 0
        facts = worker.ask("facts")
        assert facts["trained_parameters"] == 96 * 24 + 24 and facts["precision"].startswith("bfloat16")
        assert worker.ask("peak", method="train_step")["bytes"] > 0
        with pytest.raises(WorkerError, match="no_such_method"):
            worker.ask("time", method="no_such_method", threads=1)
    finally:
        worker.close()


def test_a_case_that_can_not_be_built_says_why():
    worker = Worker("mine", {"role": "machine", "dtype": "int3"})
    try:
        with pytest.raises(WorkerError, match="mine: KeyError: 'int3'"):
            worker.wait_until_ready()
    finally:
        worker.close()


@pytest.mark.gpu
def test_a_gpu_is_measured_where_there_is_one(settings):
    (scenario, *_) = scenarios(base={**settings, **bench.GPU_SETTINGS}, layers=(2, 3), quick=True)
    effort = measure.Effort(threads=(1,), rounds=2)
    found = measure.measure_gpu([scenario.only(DEFAULT)], effort)[scenario.name][DEFAULT]
    assert found["samples_per_second"] > 0 and found["peak_bytes"] > 0 and found["roofline_share"] > 0


@pytest.mark.slow
def test_a_quick_smoke_run_completes(tmp_path, capsys, monkeypatch):
    """What CI runs: it must complete, whatever the machine is busy with."""
    out, document = tmp_path / "bench.json", tmp_path / "performance.md"
    document.write_text(f"{BEGIN}\n{END}\n")
    flags = ["--smoke", "--quick", "--threads", "1", "--out", str(out), "--docs", str(document)]
    assert bench.main(flags) == 0
    found = json.loads(out.read_text())
    assert set(found["scenarios"]) == {"baseline-2", "enhanced-document"}
    exact = found["scenarios"]["baseline-2"]["cases"][DEFAULT]
    assert exact["difference"] < 1e-4 and exact["train"]["1"]["ratio"]["median"] > 0
    assert "### Baseline, 2 layers" in document.read_text()
    assert "| enhanced training step, document order" in capsys.readouterr().out
    other = {**found["scenarios"]["enhanced-document"], "measured": "again"}
    monkeypatch.setattr(bench.measure, "measure_scenario", lambda *_: other)
    assert bench.main([*flags, "--again", "enhanced-document"]) == 0
    kept = {"baseline-2": found["scenarios"]["baseline-2"], "enhanced-document": other}
    assert json.loads(out.read_text())["scenarios"] == kept
    assert "Measured again afterwards: enhanced-document (commit" in document.read_text()
    assert bench.main([*flags, "--again", "nothing"]) == 2
    assert "expected some of baseline-2, enhanced-document, kinds, found nothing" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["--again", "retrieval", "--out", str(tmp_path / "none.json")])


# Kinds of processor.


def test_a_machine_stands_for_the_kinds_that_can_do_less():
    """The tables of one processor held for it alone: a laptop without bf16 was twelve times slower."""
    amx = frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16"})
    found = kinds.stood_for("Intel(R) Xeon(R) Processor", amx)
    assert list(found) == ["Intel Xeon, AMX", "Intel Xeon, avx512_bf16", "AVX-512 without bf16", "AVX2"]
    assert found["Intel Xeon, AMX"] == {} and found["AVX2"]["ATEN_CPU_CAPABILITY"] == "avx2"
    found = kinds.stood_for("AMD EPYC", amx - {"amx_bf16"})
    assert list(found) == ["AMD EPYC, avx512_bf16", "AVX-512 without bf16", "AVX2"]
    assert kinds.stood_for("Intel(R) Core(TM)", frozenset({"avx2"})) == {"AVX2": {}}
    assert kinds.stood_for("aarch64", frozenset()) == {}


def column(ratio: float, took: str = "no") -> dict[str, Any]:
    spread_of = {"median": ratio, "q1": ratio, "q3": ratio + 0.01}
    step = {"ratio": spread_of, "seconds": {"median": 2.5}}
    choice = {
        "took": {"mixed_precision": took, "matmul_precision": "highest"},
        "gflops": {"bf16": {"training": 5.0, "evaluation": 15.0}},
    }
    ways = dict.fromkeys([PLAIN, DEFAULT, "auto", "matmul highest"], step)
    scenario = {"title": "a step", "train": ways, "auto": choice, "hopeless": ["bf16"]}
    return {
        "processor": "Intel", "environment": {"A": "1"}, "when": "2026", "git_commit": "abcdefgh",
        "scenarios": {"s": scenario},
    }  # fmt: skip


def test_a_kind_that_was_not_at_hand_says_so_and_auto_s_choice_is_marked():
    text = kinds.kinds_table({"AVX2": column(1.4)})
    rows = {line.split(" | ")[0]: line for line in text.splitlines() if line.startswith("| ")}
    assert rows["| a step: plain"].endswith("| not run | not run | not run | not run | 2.5 s |")
    assert "1.40 [1.40, 1.41] * |" in rows["| a step: matmul highest"]
    assert "*" not in rows["| a step: default"]
    assert "hopeless: 5 / 15 GFLOP/s" in rows["| a step: bf16"]
    assert "AVX2: 2026 on Intel, by A=1, commit abcdefg." in text


def test_a_default_or_a_preset_below_the_plain_path_is_told():
    assert not kinds.slower_than_plain({"AVX2": column(1.0)})
    told = kinds.slower_than_plain({"AVX2": column(0.9)})
    assert [line.split(", ")[1].split(":")[0] for line in told] == [DEFAULT, "auto"]


def test_the_kept_benchmark_is_its_machine_s_column():
    """The numbers of the AMD machine stay where another one measures."""
    kept = json.loads((PROJECT_ROOT / "results" / "bench" / "performance.json").read_text())
    found = kinds.of_earlier(kept)
    assert list(found) == ["AMD EPYC, avx512_bf16"]
    assert found["AMD EPYC, avx512_bf16"]["scenarios"]["baseline-6"]["train"][DEFAULT]["ratio"]["median"] > 2
    assert kinds.of_earlier({**kept, "kinds": found}) == {}
    assert "AMD EPYC" in kinds.kinds_table(found)


def test_the_presets_of_a_cpu_are_measured_beside_their_plain_path():
    found = kinds.preset_scenarios()
    assert [s.name for s in found] == [f"preset-{name}" for name in kinds.CPU_PRESETS]
    assert all(s.settings["mixed_precision"] == "auto" and s.cases[0].plain for s in found)


# neuralforecast.

PACKAGE = """
import torch
from torch import nn

class TimeLLM(nn.Module):
    def __init__(self, h, input_size, llm, llm_num_hidden_layers, d_llm, **others):
        super().__init__()
        from transformers import AutoModel
        self.llm = AutoModel.from_pretrained(llm).requires_grad_(False)
        self.map = nn.Linear(input_size, h)
        self.into = nn.Linear(1, d_llm)

    def forward(self, windows_batch):
        x = windows_batch["insample_y"]
        states = self.llm(inputs_embeds=self.into(x)).last_hidden_state
        return self.map(x[..., 0]) + states.mean()
"""


@pytest.mark.slow
def test_a_packaged_peer_runs_the_layers_that_are_told_or_fails(settings, tmp_path):
    """It never uses the number of layers that it is asked for: 5.5 times was measured where 1.7 was true."""
    package = tmp_path / "neuralforecast"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0'")
    (package / "models.py").write_text(textwrap.dedent(PACKAGE))
    (scenario, *_) = scenarios(base=settings, layers=(2, 3), quick=True)
    with measure.packaged_requests(scenario, Path(sys.executable)) as requests:
        cut, asked = requests
        assert "cut to 2" in cut and "asked for 2 of 3" in asked
        ran = {name: request["layers"]["has"] for name, request in requests.items()}
        assert list(ran.values()) == [2, 3]
        for name, request in requests.items():
            worker = Worker(name, request, root=tmp_path)
            try:
                facts = worker.wait_until_ready().ask("facts")
                assert facts["layers"] == ran[name] and facts["series"] == 7
                assert worker.seconds("train_step", 1) > 0
            finally:
                worker.close()
        wrong = requests[asked] | {"layers": {"asked": 2, "has": 2}}
        worker = Worker("wrong", wrong, root=tmp_path)
        with pytest.raises(WorkerError, match="expected 2 layers to run, found 3"):
            worker.wait_until_ready()
        worker.close()


def test_a_packaged_peer_needs_an_interpreter(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--peer", "neuralforecast"])
    assert (
        "--peer_python with the interpreter of an environment that has it, found None"
        in capsys.readouterr().err
    )


def test_memory_beside_a_peer_alone_is_no_row_of_the_floors():
    """The quick benchmark with a peer measured everything, then ended in a KeyError."""
    measured: dict[str, Any] = {PLAIN: {}, DEFAULT: {"peak_train": {"bytes": 1}}, ALL: {}}
    assert floor_rows({"scenarios": {"baseline-6": {"cases": measured}}}, floors(layers=(6, 12))) == []

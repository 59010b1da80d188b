"""What the benchmark measures, part by part; each returns plain values for the JSON file."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from statistics import median, pstdev
from typing import Any

import torch
from transformers import AutoConfig

from data_provider.data_factory import build_data
from layers.llm.files import quiet_transformers
from layers.llm.load import load_llm
from layers.llm.sources import find_source
from scripts.lib.benchmark.cases import DEFAULT, PLAIN, Case, Scenario
from scripts.lib.benchmark.client import Worker, WorkerError, workers
from scripts.lib.benchmark.rounds import compared, groups, interleave, spread, timed
from utils.config import Config
from utils.paths import BASE_MODELS, PROJECT_ROOT
from utils.process_memory import available_bytes
from utils.reporting.run_header import environment

log = getLogger(__name__)
WORKER_BYTES = 2.5e9
"""Memory that one case may take, for how many of them are held at once."""
PRODUCTS = 5
"""Matrix products of which the fastest is the peak, a round."""
NEURALFORECAST = "neuralforecast"
"""The peer that is a package, in place of a folder."""
FAMILY_NAMES = {"llama": "LLAMA", "gpt2": "GPT2", "bert": "BERT"}
"""transformers' architecture to the family's name for it."""


@dataclass(frozen=True)
class Effort:
    """How much is measured."""

    threads: tuple[int, ...]
    rounds: int
    budget: float | None = None
    """Seconds for the rounds of one scenario and number of threads."""
    costs: bool = True
    """Whether memory and checkpoints are measured as well."""
    at_once: bool = False
    """Build all cases of a scenario at the same time."""
    peers: dict[str, Path] = field(default_factory=dict)
    """Other projects' folders, by the name to show."""
    neuralforecast: Path | None = None
    """The interpreter of an environment that has it, to measure it as well."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables for the cases' processes."""


def machine() -> dict[str, Any]:
    """Processor, memory and packages."""
    return {
        **environment(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": available_bytes(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def request_of(scenario: Scenario, case: Case, *, device: str = "cpu") -> dict[str, Any]:
    """What a worker is told to build."""
    return {
        "role": "subject",
        "model": scenario.model,
        "settings": {**scenario.settings, **case.settings},
        "plain": case.plain,
        "description": scenario.description,
        "device": device,
    }


def peer_request(scenario: Scenario) -> dict[str, Any]:
    """The same model of another project."""
    config = Config.from_flat(scenario.settings)
    source = find_source(config.llm, BASE_MODELS)
    settings = transformers_config(source.folder)
    return {
        "role": "peer",
        "settings": {**config.flat(), "enc_in": config.data.enc_in or 7, "description": scenario.description},
        "llm_folder": str(source.folder),
        "llm": {
            "name": FAMILY_NAMES.get(settings["model_type"], settings["model_type"].upper()),
            "hidden_size": settings["hidden_size"],
        },
    }


@contextmanager
def packaged_requests(scenario: Scenario, python: Path) -> Iterator[dict[str, dict[str, Any]]]:
    """Neuralforecast's model at the scenario's sizes, twice, by the name to show.

    It never uses the number of layers it is asked for: once its LLM's folder is cut to them, which lasts
    as long as the context, and once it is as a user has it.
    """
    config = Config.from_flat(scenario.settings)
    data = build_data(config)
    source, layers = find_source(config.llm, BASE_MODELS), config.llm.llm_layers
    whole = int(AutoConfig.from_pretrained(source.folder, local_files_only=True).num_hidden_layers)
    b, d = config.backbone, config.data
    with tempfile.TemporaryDirectory() as place, quiet_transformers():
        llm = load_llm(config.llm)
        llm.model.save_pretrained(place)
        llm.tokenizer.save_pretrained(place)
        settings = {
            "seq_len": d.seq_len, "pred_len": d.pred_len, "patch_len": b.patch_len, "stride": b.stride,
            "d_ff": b.d_ff, "d_model": b.d_model, "n_heads": b.n_heads, "dropout": b.dropout,
            "d_llm": llm.identity.hidden_size, "description": scenario.description,
            "series": config.training.batch_size * len(data.targets),
        }  # fmt: skip
        common = {"role": "packaged_peer", "python": str(python), "settings": settings}
        folders = {
            f"{NEURALFORECAST}, folder cut to {layers} layers": (place, layers),
            f"{NEURALFORECAST}, asked for {layers} of {whole} layers": (str(source.folder), whole),
        }
        yield {
            name: {**common, "llm_folder": folder, "layers": {"asked": layers, "has": ran}}
            for name, (folder, ran) in folders.items()
        }


def transformers_config(folder: Path) -> dict[str, Any]:
    """What an LLM's folder says of it."""
    found = AutoConfig.from_pretrained(folder, local_files_only=True)
    return {"model_type": found.model_type, "hidden_size": found.hidden_size}


def measure_scenario(scenario: Scenario, effort: Effort) -> dict[str, Any]:
    """Every case of a scenario against its plain path.

    Gives, by case: facts, seconds and ratios of a training step (and of an evaluation) for each number
    of threads, peak memory, the checkpoint, and how far an exact case's forecast is from the plain one.
    """
    log.info("%s", scenario.title)
    requests = {case.name: request_of(scenario, case) for case in scenario.cases}
    roots = dict(effort.peers) if scenario.model == "TimeLLM" else {}
    requests |= {name: peer_request(scenario) for name in roots}
    most = max(2, int(available_bytes() / WORKER_BYTES))
    found: dict[str, Any] = {}
    with ExitStack() as lasting:
        if effort.neuralforecast is not None and scenario.model == "TimeLLM":
            packaged = packaged_requests(scenario, effort.neuralforecast)
            requests |= lasting.enter_context(packaged)
        for request in requests.values():
            request["environment"] = effort.environment
        peers = set(requests) - {case.name for case in scenario.cases}
        for names in groups(list(requests), anchor=PLAIN, most=most):
            chosen = {name: requests[name] for name in names}
            with workers(chosen, roots, at_once=effort.at_once) as started:
                measured = _measure_group(started, scenario, effort, peers=peers)
            found = {**measured, **found}
    forecasts = {name: case.pop("forecast") for name, case in found.items() if "forecast" in case}
    for case in (case for case in scenario.cases if case.exact):
        found[case.name]["difference"] = _difference(forecasts[case.name], forecasts[PLAIN])
    return {"title": scenario.title, "settings": scenario.settings, "cases": found}


def _measure_group(
    started: Mapping[str, Worker], scenario: Scenario, effort: Effort, *, peers: set[str]
) -> dict[str, dict[str, Any]]:
    """Everything of the cases that are up together; ``peers`` are other projects'."""
    found: dict[str, dict[str, Any]] = {
        name: {"facts": worker.ask("facts")} for name, worker in started.items()
    }
    for name, worker in started.items():
        if scenario.evaluates:  # before training, whose gradients and optimizer would be counted
            found[name]["peak_evaluate"] = worker.ask("peak", method="evaluate")
        if name not in peers:
            found[name]["forecast"] = worker.ask("forecast")["values"]
    methods = {"train": "train_step", **({"evaluate": "evaluate"} if scenario.evaluates else {})}
    for measure, method in methods.items():
        for threads in effort.threads:
            times = interleave(started, method, threads=threads, rounds=effort.rounds, budget=effort.budget)
            numbers = compared(times, PLAIN)
            if DEFAULT in started:
                for name in peers & set(started):
                    numbers[name]["of_default"] = compared(times, name)[DEFAULT]["ratio"]
            for name in started:
                found[name].setdefault(measure, {})[str(threads)] = numbers[name]
            said = ", ".join(f"{name} {own['seconds']['median']:.3g} s" for name, own in numbers.items())
            log.info("  %s, %d thread(s): %s", measure, threads, said)
    if effort.costs:
        _measure_costs(started, found, peers=peers)
    else:  # a peer's memory beside its time, in any case
        for name in (peers | {DEFAULT} if peers else set()) & set(started):
            found[name]["peak_train"] = started[name].ask("peak", method="train_step")
    return found


def _measure_costs(
    started: Mapping[str, Worker], found: dict[str, dict[str, Any]], *, peers: set[str]
) -> None:
    """Peak memory of training, and the checkpoint, into what was found of each case."""
    with tempfile.TemporaryDirectory() as folder:
        for name, worker in started.items():
            found[name]["peak_train"] = worker.ask("peak", method="train_step")
            if name not in peers:
                found[name]["checkpoint"] = worker.ask("checkpoint", **{"with": {"folder": folder}})


def _difference(values: Sequence[float], wanted: Sequence[float]) -> float:
    """Largest difference, in deviations of what is wanted."""
    largest = max(abs(a - b) for a, b in zip(values, wanted, strict=True))
    return largest / (pstdev(wanted) or 1.0)


def measure_plain_path(scenario: Scenario, effort: Effort) -> dict[str, Any]:
    """The plain path's arithmetic, and its speed beside the machine's fastest matrix product.

    Gives operations counted and by the formula, and for each number of threads the share of the
    measured peak that the training step and its LLM alone reach.
    """
    log.info("the plain path of %s beside the machine's peak", scenario.title)
    plain = next(case for case in scenario.cases if case.plain)
    requests = {PLAIN: request_of(scenario, plain), "products": {"role": "machine"}}
    with workers(requests) as started:
        flops = started[PLAIN].ask("flops")
        product = started["products"].ask("facts")["flops"]
        shares = {
            str(threads): _shares(started[PLAIN], started["products"], flops, product, threads, effort.rounds)
            for threads in effort.threads
        }
    ratio = flops["counted"] / flops["formula"]
    return {"scenario": scenario.title, "flops": flops, "counted_by_formula": ratio, "shares": shares}


def _shares(
    plain: Worker, products: Worker, flops: Mapping[str, float], product: float, threads: int, rounds: int
) -> dict[str, Any]:
    """Shares of the peak, each a spread over rounds."""
    peaks, steps, llm = [], [], []
    plain.seconds("llm_step", threads)
    for _ in range(rounds):
        peak = product / min(products.seconds("product", threads) for _ in range(PRODUCTS))
        peaks.append(peak)
        steps.append(flops["formula"] / plain.seconds("train_step", threads) / peak)
        llm.append(flops["formula_llm"] / plain.seconds("llm_step", threads) / peak)
    return {"peak_flops": spread(peaks), "step_share": spread(steps), "llm_share": spread(llm)}


def measure_retrieval(sizes: Sequence[int], effort: Effort, *, compared_at: int) -> dict[str, Any]:
    """Search with backward among each number of keys; at ``compared_at`` against broadcast differences."""
    found: dict[str, Any] = {}
    for size in sizes:
        log.info("retrieval among %d keys", size)
        requests = {"search": {"role": "machine", "keys": size}}
        if size == compared_at:
            requests["broadcast"] = {"role": "machine", "keys": size}
        with workers(requests) as started:
            found[str(size)] = _retrieval_among(started, effort)
    return found


def _retrieval_among(started: Mapping[str, Worker], effort: Effort) -> dict[str, Any]:
    by_threads: dict[str, Any] = {}
    for threads in effort.threads:
        own: dict[str, list[float]] = {name: [] for name in started}
        for turn in range(effort.rounds + 1):
            for name, worker in started.items():
                seconds = worker.seconds(name, threads)
                if turn:
                    own[name].append(seconds)
        by_threads[str(threads)] = compared(own, "broadcast" if "broadcast" in own else "search")
    found: dict[str, Any] = {"threads": by_threads}
    found["peak"] = {name: worker.ask("peak", method=name)["bytes"] for name, worker in started.items()}
    found["resident"] = {name: worker.ask("facts")["interpreter_bytes"] for name, worker in started.items()}
    if "broadcast" in started:
        found["agreement"] = started["broadcast"].ask("agreement")
    return found


def measure_gpu(scenarios: Sequence[Scenario], effort: Effort) -> dict[str, Any]:
    """Samples per second, memory and the share of the roofline on a GPU; elsewhere why not.

    The roofline is the time of the step's operations at the speed of the LLM's own widest product,
    measured: tokens of the batch times hidden size times the width of the feed-forward part.
    """
    if not torch.cuda.is_available():
        return {"skipped": "no CUDA GPU in this process"}
    return {scenario.name: _on_gpu(scenario, effort) for scenario in scenarios}


def _on_gpu(scenario: Scenario, effort: Effort) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for case in scenario.cases:
        log.info("GPU: %s, %s", scenario.title, case.name)
        try:
            with workers({case.name: request_of(scenario, case, device="cuda")}) as started:
                found[case.name] = _gpu_case(started[case.name], effort)
        except WorkerError as error:
            found[case.name] = {"failed": str(error)}
    return found


def _gpu_case(worker: Worker, effort: Effort) -> dict[str, Any]:
    facts, flops = worker.ask("facts"), worker.ask("flops")["counted"]
    width, inner = worker.ask("widths")["widths"]
    tokens = facts["series"] * facts["patches"]
    shape = [tokens, width, inner]
    worker.seconds("train_step", 1)
    seconds = [worker.seconds("train_step", 1) for _ in range(effort.rounds)]
    request = {"role": "machine", "device": "cuda", "dtype": "bf16", "shape": shape}
    with workers({"product": request}) as started:
        product = started["product"]
        speed = 2 * math.prod(shape) / min(product.seconds("product", 1) for _ in range(4 * PRODUCTS))
    return {
        "seconds": spread(seconds),
        "samples_per_second": facts["windows"] / median(seconds),
        "peak_bytes": worker.ask("peak", method="train_step")["gpu_bytes"],
        "flops": flops,
        "roofline_flops": speed,
        "roofline_share": flops / median(seconds) / speed,
    }


def measure_start(rounds: int) -> dict[str, Any]:
    """Seconds until this project's command line is parsed, in a new process."""
    command = [sys.executable, "run_main.py", "--help"]
    seconds = [
        timed(lambda: subprocess.run(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, check=True))[0]
        for _ in range(rounds)
    ]
    return {"help": spread(seconds)}

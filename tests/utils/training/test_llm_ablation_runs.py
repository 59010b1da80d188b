"""--llm_ablation in whole runs: recorded, saved, resumed bit for bit, and never mixed up."""

from __future__ import annotations

import pytest
import torch

from utils.training.checkpoint import CheckpointError
from utils.training.run_folder import CONFIG_FILE, read_json

KINDS = ["random", "attention", "none"]
BOTH = {"use_tapr": True, "use_gram": True, "dropout": 0.2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_as_one_that_was_not_cut_off(start_run, kind):
    """The drawn weights are the same again, and the trained layer with its moments is in the checkpoint."""
    settings = {**BOTH, "llm_ablation": kind, "save_steps": 4, "save_total_limit": 0}
    whole = start_run(**settings)
    resumed = start_run(
        **settings,
        resume_from_checkpoint=str(whole.run_dir / "checkpoint_step_4" / "checkpoint.pt"),
        model_comment="again",
    )
    assert resumed.results["last"] == whole.results["last"]
    one, two = (torch.load(r.run_dir / "checkpoint", weights_only=True) for r in (whole, resumed))
    assert all(torch.equal(weight, two["model"][name]) for name, weight in one["model"].items())
    saved = {name for name in one["model"] if name.startswith("llm_attention.")}
    assert bool(saved) == (kind == "attention") and not any(n.startswith("llm_model.") for n in one["model"])
    start = torch.load(whole.run_dir / "checkpoint_step_4" / "checkpoint.pt", weights_only=True)["model"]
    assert all(not torch.equal(start[name], one["model"][name]) for name in saved)
    assert read_json(whole.run_dir / CONFIG_FILE)["llm_ablation"] == kind
    assert whole.results["llm"]["note"]


def test_a_checkpoint_of_another_kind_is_refused(start_run):
    """Weights that were trained around other layers would be judged by these."""
    result = start_run(llm_ablation="none", save_steps=4)
    for kind in ("pretrained", "random"):
        with pytest.raises(CheckpointError, match="llm_ablation"):
            start_run(llm_ablation=kind, resume_from_checkpoint=str(result.run_dir))


def test_random_weights_of_another_seed_are_another_llm(start_run):
    one, two = (start_run(llm_ablation="random", seed=seed).results["llm"] for seed in (1, 2))
    plain = start_run().results["llm"]
    assert len({run["content_hash"] for run in (one, two, plain)}) == 3 and one["note"] and not plain["note"]

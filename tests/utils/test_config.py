from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from models.registry import MODELS
from utils.cli import parse_config
from utils.config import GROUPS, IDENTITY, Config, ConfigError, iter_settings, setting_type, settings_where

ANOTHER: dict[str, Any] = {
    "llm_dim": 32, "season": 7, "max_steps": 3, "eval_steps": 2, "levels": (0.5,), "lora_targets": ("k",),
    "target": ("k",),
}  # fmt: skip
"""A value for settings whose default tells nothing of their type."""


def another(name: str, default: Any, types: tuple[type, ...], choices: tuple[Any, ...]) -> Any:
    """A value for this setting that is not its default."""
    if name in ANOTHER:
        return ANOTHER[name]
    if types == (bool,):
        return not default
    if choices and not types:
        return next((c for c in choices if c != default), default)
    if str in types:
        return "other"
    if name == "is_training":
        return 0
    if name == "percent":
        return 50
    if float in types:
        return (default or 0) / 2 + 0.01
    return (default or 0) + 4


def test_the_defaults_are_one_configuration_without_a_problem():
    """The family has three sources of one default; that it is the documented one: test_technical_document."""
    assert Config.from_flat({}) == Config() and not Config().problems()


def test_every_setting_is_named_once_and_explained_in_a_line():
    names = [name for _, name, _ in iter_settings()]
    assert len(names) == len(set(names))
    for _, name, item in iter_settings():
        text = item.metadata["help"]
        assert 3 < len(text) < 100 and "\n" not in text, name


def test_the_documents_patch_counts():
    """The document has 63 patches, the published model 64."""
    assert Config().patch_count == 64
    assert Config.from_flat({"padding_patch": "none"}).patch_count == 63


WRONG: dict[str, Any] = {
    "seq_len": 0,
    "percent": 101,
    "is_training": 2,
    "dropout": 1.0,
    "input_dropout": -0.1,
    "label_smoothing": 2,
    "learning_rate": 0.0,
    "n_heads": "8",
    "top_k": 2.5,
    "patience": True,
    "use_tapr": 1,
    "lradj": "type9",
    "llm_layers": None,
    "data": None,
    "memory_size": "some",
    "lambda_hcl": float("nan"),
    "max_grad_norm": float("inf"),
    "n_scale": 3,
}


def test_all_problems_are_reported_at_once_each_naming_its_flag():
    """One mistake per attempt is one queue on a cluster per mistake; NaN passes every comparison."""
    with pytest.raises(ConfigError) as caught:
        Config.from_flat({**WRONG, "build_memory": True, "d_repr": 6, "use_gram": False})
    named = [problem.split(":")[0] for problem in caught.value.problems]
    assert sorted(named) == sorted([*(f"--{name}" for name in WRONG), "--build_memory"])
    assert all(
        "expected" in p and "found" in p
        for p in caught.value.problems
        if "no such" not in p and "--use" not in p
    )
    assert str(caught.value).count("\n") == len(WRONG)


@pytest.mark.parametrize(
    ("values", "flags"),
    [
        ({"patch_len": 600}, ["--patch_len", "--seq_len"]),
        ({"memory_size": 100001}, ["--memory_size", "--max_memory_size"]),
        ({"build_memory": True}, ["--build_memory", "--use_gram"]),
        ({"use_gram": True, "d_repr": 6, "retrieval_key": "learned"}, ["--d_repr"]),
        ({"use_tapr": True, "d_model": 6}, ["--d_model"]),
        ({"mixed_precision": "fp16", "cpu": True}, ["--mixed_precision", "--cpu"]),
        ({"resume_from_checkpoint": "auto", "init_from": "x"}, ["--init_from", "--resume_from_checkpoint"]),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(values, flags):
    (problem,) = _problems(values)
    assert all(flag in problem for flag in flags)


def _problems(values: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Config.from_flat(values)
    return caught.value.problems


def test_memory_size_all_is_free_of_the_limit():
    assert Config.from_flat({"memory_size": "all"}).gram.memory_size == "all"


def test_a_whole_number_is_a_float_where_one_is_wanted():
    """1 and 1.0 are the same run: they must not differ in type or in the folder's hash."""
    whole, point = Config.from_flat({"max_grad_norm": 1}), Config.from_flat({"max_grad_norm": 1.0})
    assert whole == point and isinstance(whole.training.max_grad_norm, float)
    assert whole.training_hash() == point.training_hash()


@pytest.mark.parametrize("name", ["patience", "learning_rate", "memory_size", "max_steps"])
def test_a_boolean_is_no_number(name):
    """In Python True is an int: --patience True would be a patience of 1."""
    assert _problems({name: True})[0].startswith(f"--{name}")


class FamilyArgs:
    """Section 7.3 of the document: class attributes, which vars() does not see."""

    task_name = "long_term_forecast"
    seq_len = 96
    pred_len = 24
    label_len = 24
    use_tapr = True
    n_scales = 2
    enc_in = 7
    embed = "timeF"
    moving_avg = 25


def test_class_attributes_are_read_and_the_familys_others_passed_over():
    config = Config.from_namespace(FamilyArgs())
    assert (config.data.seq_len, config.data.pred_len, config.tapr.n_scales) == (96, 24, 2)
    assert config.tapr.use_tapr and config.training == Config().training
    assert Config.from_namespace(FamilyArgs) == config


def test_a_bad_attribute_is_refused_as_a_bad_flag_is():
    FamilyBad = type("FamilyBad", (), {"lradj": "type9", "dropout": 3})
    with pytest.raises(ConfigError) as caught:
        Config.from_namespace(FamilyBad())
    assert [p.split(":")[0] for p in caught.value.problems] == ["--dropout", "--lradj"]


def test_replace_checks_again():
    assert Config().replace(seed=3).training.seed == 3
    with pytest.raises(ConfigError, match="--seed"):
        Config().replace(seed=-1)


def test_a_configuration_survives_json():
    """config.json must give back the run it describes."""
    config = Config.from_flat({"use_gram": True, "memory_size": "all", "max_steps": 7})
    assert Config.from_flat(json.loads(json.dumps(config.flat()))) == config


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, name, _ in iter_settings()])
def test_the_hash_changes_with_what_changes_training_and_with_nothing_else(group, name):
    """Two different trainings in one folder, or one training in two, are both wrong."""
    base = Config.from_flat({"use_tapr": True, "use_gram": True})
    default = getattr(getattr(base, group), name)
    value = another(name, default, *setting_type(group, name))
    if value == default:
        pytest.skip("one choice only")
    part = dataclasses.replace(getattr(base, group), **{name: value})
    changed = dataclasses.replace(base, **{group: part}).training_hash() != base.training_hash()
    assert changed == (name in IDENTITY)


def test_a_default_that_changes_leaves_runs_without_its_module_what_they_were():
    """Each new default of TAPR renamed every baseline's folder, and every cell of every study."""
    assert not Config().identity().keys() & {
        f.name for g in ("tapr", "gram") for f in dataclasses.fields(GROUPS[g])
    }
    on = Config.from_flat({"use_tapr": True}).identity()
    assert on.keys() == {"use_tapr"} | {
        f.name for f in dataclasses.fields(GROUPS["tapr"]) if f.default != f.metadata["then"]
    }


def test_what_trains_another_model_is_not_excused_from_the_hash():
    """A frozen list: adding a name here lets a resumed run change it silently."""
    assert sorted({name for _, name, _ in iter_settings()} - IDENTITY) == sorted(
        "root_path num_workers checkpoints save_steps save_total_limit resume_from_checkpoint "
        "resume_counter log_steps patience is_training eval_test_each_epoch cpu "
        "build_memory model_id model_comment des eval_batch_size enc_in static_width itr max_minutes "
        "auto_batch_size gradient_checkpointing levels interval_score report_to debug_shapes "
        "dump_prompt eval_data eval_root_path eval_data_path llm_device_map shard_llm test_stride".split()
    )
    assert sorted(settings_where("on_resume", "free", "llm", "batch", "machine") & IDENTITY) == sorted(
        "llm_model llm_model_path llm_dim trust_remote_code max_steps train_epochs init_from prompt_file "
        "text_file max_channels_per_step date_format time_zone round_dates repeated_times batch_size "
        "gradient_accumulation_steps mixed_precision matmul_precision".split()
    )


def test_the_run_name_ends_in_seed_llm_switches_hash_and_comment():
    """Names of the family lack seed, LLM and switches: ablations overwrote one another."""
    config = Config.from_flat({"use_tapr": True, "use_gram": True, "seed": 7, "des": "trial"})
    name = config.run_name(model="TimeLLM_Enhanced", llm_name="/models/tiny-gpt2/")
    assert name.startswith("long_term_forecast_ETTh1_512_96_TimeLLM_Enhanced_")
    assert name.endswith(f"_trial_s7_tiny-gpt2_tapr+gram_{config.training_hash()}-run")
    plain = Config.from_flat({"model_comment": "a b"})
    assert plain.run_name(model="TimeLLM", llm_name="GPT2").endswith(
        f"_s2021_GPT2_plain_{plain.training_hash()}-a b"
    )


@pytest.mark.parametrize("model", [None, "TimeLLM", "Ridge", "PatchTST"])
def test_a_label_length_that_no_model_reads_refuses_no_lookback(model):
    """--seq_len 24 was refused for the default of --label_len, which this model never reads."""
    short = {"seq_len": 24, "patch_len": 16}
    assert Config.from_flat({"model": model, **short}, models=MODELS).data.seq_len == 24
    with pytest.raises(ConfigError, match="--seq_len .24., of which Autoformer reads .*--label_len 12"):
        Config.from_flat({"model": "Autoformer", **short}, models=MODELS)
    Config.from_flat({"model": "Autoformer", **short, "label_len": 12}, models=MODELS)


PATHS = {name for _, name, item in iter_settings() if item.metadata["path"]}


@pytest.mark.parametrize("name", sorted(PATHS))
@pytest.mark.parametrize("blank", ["", " "])
def test_an_empty_path_is_one_that_is_not_given(name, blank):
    """--llm_model_path '' was taken for the current folder, and --resume_from_checkpoint '' for a file."""
    assert Config.from_flat({name: blank}) == Config()
    for data in ("Weather", "M4"):
        assert Config.from_flat({"data": data, name: blank}) == Config.from_flat({"data": data})
    assert parse_config([f"--{name}", "elsewhere", f"--{name}", blank]) == Config()


def test_every_setting_that_names_a_path_says_so():
    """A new one is treated like the others only where it is declared."""
    text = {name for group, name, _ in iter_settings() if str in setting_type(group, name)[0]}
    named = {name for name in text if name.endswith(("_path", "_file", "_dir", "_from"))}
    assert named | {"checkpoints", "resume_from_checkpoint"} == PATHS

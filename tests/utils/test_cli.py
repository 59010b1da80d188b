from __future__ import annotations

import argparse
import dataclasses
import re
from pathlib import Path

import pytest

from models.registry import MODELS
from utils import cli
from utils.cli import PathFlag, build_parser, parse_config
from utils.config import Config, iter_settings, setting_type
from utils.config_checks import spaced
from utils.family_flags import REFUSED
from utils.paths import PRESETS


def test_help_prints_every_flag_its_default_and_its_choices(capsys):
    with pytest.raises(SystemExit) as caught:
        parse_config(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    words = " ".join(shown.split())
    for group, name, item in iter_settings():
        assert f"--{name}" in words
        types, choices = setting_type(group, name)
        assert all(str(choice) in words for choice in choices)
        if types != (bool,) and item.default not in (None, "", ()):
            shown = spaced(item.default) if types == (tuple,) else item.default
            assert f"[{shown}]" in words


def test_no_flags_are_the_defaults():
    assert parse_config([]) == Config()


def test_every_value_comes_through_with_its_type():
    words = "--learning_rate 1 --max_steps 5 --memory_size all --use_tapr --des none --freq none --llm_dim 64"
    config = parse_config(words.split())
    assert isinstance(config.training.learning_rate, float) and config.training.learning_rate == 1.0
    assert (config.training.max_steps, config.gram.memory_size, config.llm.llm_dim) == (5, "all", 64)
    assert config.tapr.use_tapr and config.run.des == "none" and config.data.freq is None
    assert parse_config(["--memory_size", "77"]).gram.memory_size == 77


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What a mistaken command line prints; it must exit with status 2 and no traceback."""
    with pytest.raises(SystemExit) as caught:
        parse_config(words, prog="run_main.py", models=MODELS)
    printed = capsys.readouterr()
    assert caught.value.code == 2 and not printed.out and "Traceback" not in printed.err
    return printed.err


def test_all_mistakes_are_named_at_once(capsys):
    """argparse alone stops at the first one."""
    words = "--learning_rate fast --lradj type9 --seed 1.5 --percent 200 --dropout 1 --patch_len 600"
    said = refused(capsys, *words.split())
    for flag in ("learning_rate", "lradj", "seed", "percent", "dropout", "patch_len"):
        assert f"--{flag}: " in said
    assert "COS or constant" in said and "'fast'" in said and "--help" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--no_such_flag", "3"], "--no_such_flag"),
        (["--batch_siz", "3"], "--batch_siz"),
        (["--batch_size"], "--batch_size"),
        (["--preset", "none_such"], "cpu"),
        (["@no_such_file"], "no_such_file"),
        (["stray"], "stray"),
        (["--learning_rate", "nan"], "--learning_rate"),
    ],
)
def test_a_mistake_exits_with_2_and_names_itself(capsys, words, expected):
    """Abbreviations are off: --batch_siz would begin to fail on the day a second flag shares it."""
    assert expected in refused(capsys, *words)


def test_later_flags_win():
    """Scripts set defaults and then append the user's own flags."""
    words = "--seed 1 --use_tapr --use_gram --no-use_tapr --seed 2"
    config = parse_config(words.split())
    assert config.training.seed == 2 and config.gram.use_gram and not config.tapr.use_tapr


def test_a_file_of_flags_takes_its_place_in_the_order(tmp_path):
    file = tmp_path / "my.args"
    file.write_text("# a comment\n--seed 5 --d_model 32  # two on a line\n\n--use_tapr\n")
    assert parse_config([f"@{file}", "--seed", "6"]).training.seed == 6
    config = parse_config(["--seed", "6", f"@{file}"])
    assert (config.training.seed, config.backbone.d_model, config.tapr.use_tapr) == (5, 32, True)


def test_a_preset_comes_before_all_other_flags_wherever_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "mine.args").write_text("--seed 5\n--d_model 32\n")
    monkeypatch.setattr(cli, "PRESETS", tmp_path)
    for words in (["--preset", "mine", "--seed", "6"], ["--seed", "6", "--preset", "mine"]):
        config = parse_config(words)
        assert (config.training.seed, config.backbone.d_model) == (6, 32)


@pytest.mark.parametrize("path", sorted(Path(PRESETS).glob("*.args")), ids=lambda p: p.stem)
def test_each_preset_is_a_valid_configuration_and_documents_its_command(path):
    config = parse_config(["--preset", path.stem])
    assert config != Config() and config.llm.llm_model != "auto"
    assert f"--preset {path.stem}" in path.read_text() and path.read_text().startswith("#")


def test_preset_document_keeps_trends_as_the_document_has_them():
    """A default that moves on would take the document's own preset along."""
    config = parse_config(["--preset", "document"]).tapr
    for item in dataclasses.fields(config):
        if item.default != item.metadata["then"]:
            assert getattr(config, item.name) == item.metadata["then"], item.name


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_flag_of_the_family_is_refused_with_what_to_do(capsys, name):
    """Taken and ignored, a user would believe in it."""
    for words in ([f"--{name}"], [f"--{name}", "1"]):
        said = refused(capsys, *words, "--seed", "x")
        assert f"--{name}: not offered; {REFUSED[name]}" in said and "--seed: " in said
    assert name not in {setting for _, setting, _ in iter_settings()}


def test_what_a_refusal_recommends_is_a_flag():
    flags = {flag for action in build_parser()._actions for flag in action.option_strings}
    for text in REFUSED.values():
        assert set(re.findall(r"--\w+", text)) <= flags


def test_a_misspelt_flag_is_told_its_neighbour_and_its_value_is_not_a_mistake(capsys):
    said = refused(capsys, "--batch_siz", "3", "--use_grm")
    assert "--batch_siz: no such flag; did you mean --batch_size?" in said
    assert "did you mean --use_gram?" in said and "\n3:" not in said


def test_the_command_line_of_the_family_is_understood(capsys):
    """A script of the Time-LLM repository, but for what is refused; what has no effect is said in a line."""
    words = """--task_name long_term_forecast --is_training 1 --root_path ./dataset/ETT-small --data_path
    ETTh1.csv --model_id ETTh1_512_96 --model TimeLLM --data ETTh1 --features M --seq_len 512 --label_len
    48 --pred_len 96 --factor 3 --enc_in 7 --dec_in 7 --c_out 7 --des Exp --itr 1 --d_model 32 --d_ff 128
    --batch_size 24 --learning_rate 0.01 --llm_layers 32 --train_epochs 100 --model_comment TimeLLM-ETTh1
    --embed timeF --freq h --patch_len 16 --stride 8 --prompt_domain 1 --llm_model LLAMA --llm_dim 4096
    --num_workers 10 --e_layers 2 --d_layers 1 --moving_avg 25 --dropout 0.1 --patience 10 --percent 100
    --loss MSE --lradj type1"""
    config = parse_config(words.split(), prog="run_main.py")
    assert config.data.enc_in == 7 and config.llm.llm_dim == 4096
    assert capsys.readouterr().err == "run_main.py: without effect: --embed, --dec_in, --c_out\n"
    assert "--embed: taken out; time features are always numbers" in refused(capsys, "--embed", "fixed")


def test_ms_needs_joint_samples_and_a_model_that_mixes_variables(capsys):
    assert "joint" in refused(capsys, "--features", "MS", "--channel_sampling", "single")
    for name, model in MODELS.items():
        if model.is_named_by_flag and not model.offers_ms:
            assert "--features S" in refused(capsys, "--features", "MS", "--model", name)


def test_an_empty_word_for_a_path_is_none_and_needed_paths_say_what_they_lack(capsys):
    """--output '' was the current folder, and --results '' a study's results beside the sources."""
    parser = argparse.ArgumentParser(prog="x")
    parser.add_argument("run", action=PathFlag, metavar="RUN")
    parser.add_argument("--out", action=PathFlag, kind=Path, default=Path("there"))
    parser.add_argument("--where", action=PathFlag)
    parser.add_argument("--docs", action=PathFlag, kind=Path, nargs="?", const=Path("const"))
    parser.add_argument("--input", action=PathFlag, kind=Path, required=True)
    words = parser.parse_args("r --input a --out".split() + ["", "--where", "", "--docs"])
    assert words == argparse.Namespace(
        run="r", input=Path("a"), out=Path("there"), where=None, docs=Path("const")
    )
    for needed in (["r", "--input", ""], ["", "--input", "a"]):
        with pytest.raises(SystemExit):
            parser.parse_args(needed)
        assert "expected a path, found ''" in capsys.readouterr().err

from __future__ import annotations

from pathlib import Path

import pytest

from utils import cli
from utils.cli import build_parser, parse_config
from utils.config import Config, iter_settings, setting_type
from utils.paths import PRESETS

FLAGS = """
--aux_warmup_steps --batch_size --build_memory --channel_sampling --checkpoints --cpu --d_ff --d_model
--d_repr --data --data_path --des --deterministic --dropout --eval_batch_size --eval_steps --eval_stride
--eval_test_each_epoch --features --freq --gradient_accumulation_steps --help --init_from
--input_dropout --is_training --label_len --label_smoothing --lambda_dir --lambda_hcl --lambda_mag
--lambda_ord --lambda_retrieval --lambda_trend --learning_rate --llm_dim --llm_layers --llm_model
--llm_model_path --log_steps --loss --loss_scale --lr_warmup_steps --lradj --max_grad_norm
--max_memory_size --max_steps --memory_size --mixed_precision --model --model_comment --model_id
--n_heads --n_scales --no-build_memory --no-cpu --no-deterministic --no-eval_test_each_epoch
--no-trust_remote_code --no-use_gram --no-use_tapr --num_tokens --num_workers --padding_patch
--patch_len --patience --percent --pred_len --preset --prompt_digits --resume_counter
--resume_from_checkpoint --retrieval_control --retrieval_fusion --retrieval_key --retrieval_scope
--root_path --save_steps --save_total_limit --season --seed --seq_len --stride --target --task_name
--temperature --top_k --train_epochs --trend_fusion --trend_label --trust_remote_code --use_gram
--use_tapr --weight_decay -h
""".split()


def test_the_command_line_is_frozen():
    """A flag that is renamed breaks every user's script: change this list knowingly."""
    flags = [flag for action in build_parser()._actions for flag in action.option_strings]
    assert sorted(flags) == sorted(FLAGS)


def test_every_setting_has_a_flag_with_its_help_line():
    actions = {a.dest: a for a in build_parser()._actions}
    for _, name, item in iter_settings():
        assert actions[name].option_strings[0] == f"--{name}"
        assert (actions[name].help or "").replace("%%", "%").startswith(item.metadata["help"])


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
        if types != (bool,) and item.default not in (None, ""):
            assert f"[{item.default}]" in words


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
        parse_config(words, prog="run_main.py")
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

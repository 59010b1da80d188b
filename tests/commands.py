"""Command lines as documents show them, parsed by the real parser of what they call; nothing is run."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from typing import NoReturn
from unittest.mock import patch

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser as torchrun_parser

from models.registry import MODELS
from scripts import start_table
from utils.cli import parse_config
from utils.paths import PROJECT_ROOT
from utils.training import experiment

PROGRAMS = {"python", ".venv/bin/python", "bash", "accelerate", "torchrun", "pip"}
"""What this module knows how to check."""
OF_THE_SYSTEM = {"source", "cd", "git", "head", "kill", "pre-commit", "tensorboard", "wandb"}
"""Programs that are not this project's: their words are taken as they are."""
INSTALLED = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
"""The commands of the installed package, each with module and function."""
PACKAGE = "timellm_enhanced."
LAUNCHERS = {"accelerate.commands.launch": launch_command_parser, "torch.distributed.run": torchrun_parser}
"""Modules that start a script of ours, each with what builds its parser."""
MEANT = {"N": "1", "NAME": "ETTh1", "<name>": "modules", "FILE": "x.csv"}
"""What stands for a value of the reader's own, and one that could."""
LEFT_OUT = {"...", "…"}
VARIABLE = re.compile(r"([A-Z][A-Z_0-9]*)=(.*)")


class ParsedError(BaseException):
    """Not an error: everything before the work itself went well."""


def is_command(text: str) -> bool:
    """Whether a piece of inline code calls a program that is checked here, and says what it shall run."""
    words = [word for word in text.split() if not VARIABLE.fullmatch(word)]
    run = any(word.endswith((".py", ".sh")) or word in ("-m", "install") for word in words[1:])
    return run and words[0] in PROGRAMS


def check(command: str) -> None:
    """Parse one line as its program would; an empty one, or a comment, is fine.

    Raises:
        AssertionError: the program is not known, a file is missing, or its parser refuses the words.
    """
    first = re.sub(r"(?<=\w)(\|\w+)+", "", command).split(" | ")[
        0
    ]  # the first of some choices, and of a pipe
    words = [MEANT.get(w, w) for w in shlex.split(first, comments=True) if w not in LEFT_OUT]
    words = [re.sub("<name>|<名称>", "modules", w) for w in words]
    variables = {}
    while words and (match := VARIABLE.fullmatch(words[0])):
        variables[match[1]] = match[2]
        words.pop(0)
    if not words or words[0] in OF_THE_SYSTEM:
        return
    program, words = words[0], words[1:]
    if program in INSTALLED:
        module, function = INSTALLED[program].removeprefix(PACKAGE).split(":")
        if function == "main":
            _python(["-m", module, *words])
        else:
            _accepted(lambda: _begin(module, words, function), program)
        return
    assert program in PROGRAMS, f"{command}: {program} is not a program that is checked"
    if program == "bash":
        _shell(words[0], words[1:], variables)
    elif program == "pip":
        _pip(words)
    elif program == "accelerate":
        assert words[0] == "launch", command
        _python(["-m", "accelerate.commands.launch", *words[1:]])
    elif program == "torchrun":
        _python(["-m", "torch.distributed.run", *words])
    else:
        _python(words)


def _python(words: list[str]) -> None:
    """``script.py words`` or ``-m module words``; a launcher's own words are parsed by it."""
    if words[0] == "-m":
        module, words = words[1].removeprefix(PACKAGE), words[2:]
        if module in LAUNCHERS:
            launched = LAUNCHERS[module]().parse_args(words)
            _python([launched.training_script, *launched.training_script_args])
            return
        if module == "pip":
            _pip(words)
            return
        if module == "pytest":
            paths = [w for w in words if "/" in w or w.endswith(".py")]
            assert paths and all((PROJECT_ROOT / path.split("::")[0]).exists() for path in paths), words
            return
    else:
        assert (PROJECT_ROOT / words[0]).is_file(), words[0]
        module, words = words[0].removesuffix(".py").replace("/", "."), words[1:]
    for path in (w for w in words if w.startswith(("scripts/", "tests/", "docs/"))):
        assert (PROJECT_ROOT / path).exists(), path
    if module in ("scripts.preflight", "scripts.quickstart"):
        _accepted(lambda: parse_config([w for w in words if w not in ("--no_timing", "--trace")]), module)
    elif module == "scripts.start_table":
        _accepted(
            lambda: parse_config(start_table.parser().parse_known_args(words)[1], models=MODELS), module
        )
    else:
        _accepted(lambda: _begin(module, words), module)


def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser that the ``main`` of a module builds."""
    if hasattr(importlib.import_module(module), "parser"):  # it hands on what is not its own
        own: argparse.ArgumentParser = importlib.import_module(module).parser()
        return own
    found: list[argparse.ArgumentParser] = []

    def seen(parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        found.append(parser)
        raise ParsedError

    with patch.object(argparse.ArgumentParser, "parse_args", seen), pytest.raises(ParsedError):
        _call_main(module, [])
    return found[0]


def _begin(module: str, words: list[str], function: str = "main") -> None:
    """Call ``main`` of a module, or another function, up to where its words are parsed."""
    parse = argparse.ArgumentParser.parse_args

    def stop(*_: object) -> NoReturn:
        raise ParsedError

    def parse_and_stop(parser: argparse.ArgumentParser, *args: list[str]) -> NoReturn:
        parse(parser, *args)
        raise ParsedError

    with (
        patch.object(argparse.ArgumentParser, "parse_args", parse_and_stop),
        patch.object(experiment, "run", stop),
        pytest.raises(ParsedError),
    ):
        _call_main(module, words, function)


def _call_main(module: str, words: list[str], function: str = "main") -> None:
    main: Callable[..., object] = getattr(importlib.import_module(module), function)
    if inspect.signature(main).parameters:
        main(words)
    else:
        with patch.object(sys, "argv", [module, *words]):
            main()


def _accepted(parse: Callable[[], object], name: str) -> None:
    """Run a parser, whose exit is a failure."""
    try:
        parse()
    except SystemExit as refusal:
        if refusal.code:
            raise AssertionError(f"{name} refuses these words") from refusal


def _shell(script: str, words: list[str], variables: dict[str, str]) -> None:
    """A script of this project: a training script's flags are parsed, of others the words that are flags."""
    path = PROJECT_ROOT / script
    assert path.is_file(), script
    if path.name.startswith("TimeLLM_"):
        known = set(_variables()) | {"PRINT_COMMAND", "CUDA_VISIBLE_DEVICES"}
        assert variables.keys() <= known, f"{script} reads no {', '.join(variables.keys() - known)}"
        kept = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "PRINT_COMMAND": "1"}
        done = subprocess.run(
            ["bash", str(path), *words],
            env=kept | variables | {"PRINT_COMMAND": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        _, *rest = shlex.split(done.stdout)
        _python(rest)
    elif path.name == "quickstart.sh":
        _accepted(lambda: parse_config(words), script)
    elif path.name == "test.sh":
        assert all((PROJECT_ROOT / w.split("::")[0]).exists() for w in words if not w.startswith("-")), words


def _variables() -> Iterator[str]:
    """The environment variables that the heads of the training scripts document."""
    for name in ("TimeLLM_ETTh1_enhanced.sh", "launch.sh"):
        text = (PROJECT_ROOT / "scripts" / name).read_text(encoding="utf-8")
        for names in re.findall(r"^# ([A-Z][A-Z_, ]+)(?:  +\S.*)?$", text, flags=re.MULTILINE):
            yield from re.split(r",? +", names.strip())


def _pip(words: list[str]) -> None:
    """Only what the project itself declares is recommended for installation."""
    assert words[0] == "install", words
    declared = "".join(
        (PROJECT_ROOT / name).read_text(encoding="utf-8")
        for name in ("pyproject.toml", "requirements.txt", "scripts/common.sh", ".pre-commit-config.yaml")
    )
    for word in (w for w in words[1:] if not w.startswith("-")):
        name = re.split(r"[=<>\[]", word)[0]
        assert name in declared or name == "pre-commit" or (PROJECT_ROOT / word).is_file(), word

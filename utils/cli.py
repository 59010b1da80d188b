"""Flags to configuration: the parser is built from the fields of `utils.config`."""

from __future__ import annotations

import argparse
import difflib
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from utils.config import GROUPS, Config, ConfigError, item_type, iter_settings, setting_type
from utils.config_checks import Models, spaced
from utils.ending import USER_STATUS, first_of_machine
from utils.family_flags import REFUSED
from utils.flag_history import REMOVED, removed_line
from utils.paths import PRESETS


class _Parser(argparse.ArgumentParser):
    """argparse with files of arguments: ``@file``, one or more per line, # begins a comment."""

    def convert_arg_line_to_args(self, arg_line: str) -> list[str]:
        return shlex.split(arg_line, comments=True)

    def error(self, message: str) -> NoReturn:
        self.exit(USER_STATUS, self._said(message) if first_of_machine() else None)

    def _said(self, message: str) -> str:
        return f"{self.prog}: {message}\n(see {self.prog} --help)\n"


class PathFlag(argparse.Action):
    """A word that names a file or a folder: blanks alone, as of an unset variable, count as not given.

    ``kind`` makes the value of a word, by default the word itself. Where a path is needed, its lack is said.
    """

    def __init__(self, *args: Any, kind: Callable[[Any], Any] = str, **options: Any) -> None:
        """As any action."""
        super().__init__(*args, **options)
        self.kind = kind

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Keep the path, or paths, or what stands where the flag is left out."""
        arguments = values if isinstance(values, list) else [values]
        if all(word is None or str(word).strip() for word in arguments):
            made = [None if word is None else self.kind(word) for word in arguments]
            setattr(namespace, self.dest, made if isinstance(values, list) else made[0])
        elif self.required:
            parser.error(f"{option_string or self.metavar or self.dest}: expected a path, found ''")
        else:
            setattr(namespace, self.dest, self.default)


def build_parser(prog: str | None = None, models: Models | None = None) -> argparse.ArgumentParser:
    """A parser with one flag per setting, grouped as the configuration is."""
    parser = _Parser(
        prog=prog,
        fromfile_prefix_chars="@",
        allow_abbrev=False,
        epilog="@file reads further flags from a file. Later flags win over earlier ones.",
    )
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help=f"flags from scripts/presets/NAME.args, before all others: {', '.join(preset_names())}",
    )
    switches = {name for name, gone in REMOVED.items() if isinstance(gone.default, bool)}
    for name in (*REFUSED, *REMOVED):
        kind: dict[str, Any] = (
            {"action": argparse.BooleanOptionalAction} if name in switches else {"nargs": "*"}
        )
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)
    groups = {g: parser.add_argument_group(g, (part.__doc__ or "").strip()) for g, part in GROUPS.items()}
    for group, name, item in iter_settings():
        types, choices = setting_type(group, name)
        text = item.metadata["help"]
        if name == "model" and models is not None:
            text += ": " + ", ".join(known for known, model in models.items() if model.is_named_by_flag)
        shown = spaced(item.default) if types == (tuple,) else item.default
        if types != (bool,) and shown not in (None, ""):
            text += f" [{shown}]"
        word = name.rsplit("_", 1)[-1].upper() if types else "{" + ",".join(choices) + "}"
        options: dict[str, Any] = {"type": _converter(types, choices), "metavar": word}
        if types == (bool,):
            options = {"action": argparse.BooleanOptionalAction}
        elif types == (tuple,):
            each = _converter((item_type(group, name),), ())
            options = {"nargs": "*", "type": each, "metavar": word.removesuffix("S")}
        groups[group].add_argument(
            f"--{name}", default=argparse.SUPPRESS, help=text.replace("%", "%%"), **options
        )
    return parser


def parse_config(
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    models: Models | None = None,
    first: Sequence[str] = (),
) -> Config:
    """The configuration that a command line asks for; all mistakes in one message, and exit status 2.

    ``models`` are those that ``--model`` may name: what does not fit the one named is a mistake too.
    ``first`` are flags that the entry point stands for, before all others.
    """
    arguments = [*first, *(sys.argv[1:] if argv is None else argv)]
    parser = build_parser(prog, models)
    preset = parser.parse_known_args(arguments)[0].preset
    if preset is not None:
        path = PRESETS / f"{preset}.args"
        if not path.is_file():
            parser.error(f"--preset: expected one of {', '.join(preset_names())}, found {preset}")
        arguments = [*first, f"@{path}", *arguments[len(first) :]]
    namespace, strays = parser.parse_known_args(arguments)
    values = vars(namespace)
    values.pop("preset")
    problems = [
        f"--{name}: not offered; {REFUSED[name]}" for name in REFUSED if values.pop(name, None) is not None
    ]
    problems += _removed(values, parser.prog)
    problems += _unknown(strays)
    try:
        config = Config.from_flat(values, models=models)
    except ConfigError as error:
        problems += error.problems
    if problems:
        parser.error("\n".join(problems))
    return config


def _removed(values: dict[str, Any], prog: str) -> list[str]:
    """What to say of flags that were taken out, which leave ``values``; those passed over are named here."""
    lines = {name: removed_line(name, values.pop(name)) for name in REMOVED if name in values}
    passed = [f"--{name}" for name, line in lines.items() if line is None]
    if passed and first_of_machine():
        print(f"{prog}: without effect: {', '.join(passed)}", file=sys.stderr)
    return [line for line in lines.values() if line is not None]


def _unknown(strays: list[str]) -> list[str]:
    """What to say of words that are no flags; the values behind an unknown flag need no line."""
    flags = [f"--{name}" for _, name, _ in iter_settings()]
    problems = []
    for before, word in zip([""] + strays, strays, strict=False):
        if word.startswith("-") or not before.startswith("-"):
            near = difflib.get_close_matches(word.split("=")[0], flags, n=1)
            problems.append(f"{word}: no such flag" + (f"; did you mean {near[0]}?" if near else ""))
    return problems


def preset_names() -> list[str]:
    """The presets that lie in ``scripts/presets``."""
    return sorted(p.stem for p in Path(PRESETS).glob("*.args"))


def _converter(types: tuple[type, ...], choices: tuple[Any, ...]) -> Any:
    """A function from a word of the command line to a value of these types.

    A word that is none is handed on as it is: the configuration names all such mistakes at once.
    """
    number = next((t for t in (int, float) if t in types), None)

    def convert(word: str) -> Any:
        if word in choices:
            return word
        if word.lower() == "none" and type(None) in types:
            return None
        if number is None:
            return word
        try:
            return number(word)
        except ValueError:
            return word

    return convert

"""What the documents show can be typed, and what they point at is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from utils.cli import parse_config
from utils.config import iter_settings
from utils.family_flags import REFUSED
from utils.paths import PROJECT_ROOT

DOCUMENTS = [PROJECT_ROOT / name for name in ("README.md", "claude3.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((PROJECT_ROOT / "docs").glob("*.md"))
OTHER_FLAGS = {"preset", "help", "all", "deps", "nproc_per_node"}
"""Flags of the shell scripts, and of other programs, that the documents name."""
OTHER_FLAGS |= {
    flag
    for script in (PROJECT_ROOT / "scripts").rglob("*.py")
    for flag in re.findall(r"[\"']--(\w+)[\"']", script.read_text(encoding="utf-8"))
}


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def commands(path: Path) -> list[str]:
    """Lines and inline code that call an entry point."""
    text = text_of(path)
    blocks = [line for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    return [c for c in [*blocks, *inline] if re.search(r"\brun_main(_enhanced)?\.py\s+[-@]", c)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_command_of_an_entry_point_parses(path):
    for command in commands(path):
        words = shlex.split(re.sub(r"(\|\w+)+", "", command), comments=True)  # the first of some choices
        entry = next(i for i, word in enumerate(words) if word.endswith(".py"))
        flags = [w for w in words[entry + 1 :] if w not in ("...", "…")]
        if "--help" not in flags:
            parse_config(flags)


def test_the_documents_show_commands():
    assert sum(len(commands(path)) for path in DOCUMENTS) >= 10


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_and_picture_is_there(path):
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(path)):
        if not re.match(r"[a-z]+:", target):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_flag_that_is_named_exists(path):
    known = {name for _, name, _ in iter_settings()} | set(REFUSED) | OTHER_FLAGS
    shown = re.sub(r"```\n.*?```", "", text_of(path), flags=re.S)  # without what a program printed
    for flag in set(re.findall(r"(?<![\w-])--(?:no-)?([a-z_][a-z_0-9]*)\b(?!-)", shown)):
        assert flag in known, flag

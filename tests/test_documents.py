"""What the documents show can be typed, and what they point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.commands import check, is_command
from utils.config import iter_settings
from utils.family_flags import REFUSED
from utils.paths import PROJECT_ROOT

DOCUMENTS = [PROJECT_ROOT / name for name in ("README.md", "claude3.md", "CONTRIBUTING.md")]
DOCUMENTS += sorted((PROJECT_ROOT / "docs").glob("*.md"))
OTHER_FLAGS = {"preset", "help", "all", "cov", "deps", "nproc_per_node", "config_file", "num_processes"}
"""Flags of the shell scripts, and of other programs, that the documents name."""
OTHER_FLAGS |= {
    flag
    for place in ("scripts", "data_provider")
    for script in (PROJECT_ROOT / place).rglob("*.py")
    for flag in re.findall(r"[\"']--(\w+)[\"']", script.read_text(encoding="utf-8"))
}
FLOORS = "models layers data_provider utils scripts tests docs results .ci .github".split()


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8").replace("\\\n", " ")


def inline(path: Path) -> list[str]:
    """Every piece of inline code."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text_of(path), flags=re.S))


def commands(path: Path) -> list[str]:
    """Lines of the blocks to be typed, and inline code that calls a program."""
    blocks = re.findall(r"```bash\n(.*?)```", text_of(path), re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [*lines, *(code for code in inline(path) if is_command(code))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_command_parses(path):
    for command in commands(path):
        check(command)


def anchors(path: Path) -> set[str]:
    """What a link may name behind # in a document: its headings, as a forge writes them."""
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"```.*?```", "", text_of(path), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_link_and_picture_is_there(path):
    for target, _, anchor in re.findall(r"\]\(([^)#\s]*)(#([^)\s]+))?\)", text_of(path)):
        if re.match(r"[a-z]+:", target):
            continue
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_the_documents_are_linked():
    """A page that nothing points at is not found."""
    for page in sorted((PROJECT_ROOT / "docs").glob("*.md")):
        for document in (PROJECT_ROOT / "README.md", PROJECT_ROOT / "claude3.md"):
            assert f"](docs/{page.name}" in text_of(document), f"{document.name} does not link {page.name}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_file_that_is_named_is_there(path):
    """Files move; a document that names the old place sends its reader nowhere."""
    for code in inline(path):
        name = code.split("::")[0].rstrip("/").replace("NAME", "cpu")  # NAME is a preset's
        if re.fullmatch(rf"({'|'.join(map(re.escape, FLOORS))})/[\w./-]+", name):
            assert (PROJECT_ROOT / name).exists(), name


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_every_flag_that_is_named_exists(path):
    known = {name for _, name, _ in iter_settings()} | set(REFUSED) | OTHER_FLAGS
    shown = re.sub(r"```\n.*?```", "", text_of(path), flags=re.S)  # without what a program printed
    for flag in set(re.findall(r"(?<![\w-])--(?:no-)?([a-z_][a-z_0-9]*)\b(?!-)", shown)):
        assert flag in known, flag

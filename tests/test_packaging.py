"""Pins, ranges, licence, citation and the versions of Python say the same."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from utils.paths import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]


def pins() -> dict[str, Version]:
    """``{package: version}`` of requirements.txt."""
    lines = (PROJECT_ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {name: Version(version) for name, version in pinned}


@pytest.mark.parametrize("wanted", RANGES, ids=lambda r: r.name)
def test_every_range_is_pinned_to_a_version_within_it(wanted):
    assert wanted.specifier.contains(pins()[wanted.name]), wanted


def test_torch_is_asked_for_from_2_11_on():
    (torch,) = (r for r in RANGES if r.name == "torch")
    assert torch.specifier.contains("2.11.0") and not torch.specifier.contains("2.10.1")


def test_the_workflow_runs_every_python_that_is_claimed():
    text = (PROJECT_ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    found = re.search(r"python: \[(.*)\]", text)
    assert found is not None
    versions = re.findall(r'"([\d.]+)"', found[1])
    assert versions == ["3.11", "3.12", "3.13"]
    assert all(version in SpecifierSet(PROJECT["requires-python"]) for version in versions)
    assert "3.10" not in SpecifierSet(PROJECT["requires-python"]) and "bash .ci/run" in text


def test_licence_and_citation_are_the_packages():
    citation = (PROJECT_ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"version: {PROJECT['version']}" in citation and f"license: {PROJECT['license']}" in citation
    licence = (PROJECT_ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0" and "Apache License" in licence and "Version 2.0" in licence

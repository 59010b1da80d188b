"""Pins, ranges, licence, citation and the versions of Python say the same; the wheel works anywhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from utils.paths import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = [Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]]

USED = """
import sys
from importlib import import_module
from importlib.metadata import distribution
from pathlib import Path

words = sys.argv[1:]
package = distribution("timellm-enhanced")
commands = {entry.name: entry.load() for entry in package.entry_points}
assert commands["timellm-train"](words) is None
(run,) = Path("checkpoints").glob("long_term*")
forecast = ["--checkpoint", str(run), "--input", "waves.csv", "--output", "forecast.csv", "--cpu"]
assert commands["timellm-predict"](forecast) == 0
assert commands["timellm-preflight"]([*words, "--no_timing"]) == 0

import pandas as pd
from timellm_enhanced import Forecaster

forecaster = Forecaster.load(run, device="cpu")
assert forecaster.model.name == "TimeLLM_Enhanced"
written = pd.read_csv("forecast.csv", parse_dates=["date"])
pd.testing.assert_frame_equal(forecaster.predict("waves.csv"), written, check_dtype=False, rtol=1e-6)

for file in package.files:
    if file.suffix == ".py":
        import_module(".".join(file.with_suffix("").parts).removesuffix(".__init__"))
from timellm_enhanced.utils.paths import BASE_MODELS
assert not BASE_MODELS.is_absolute()
"""
"""What a user does with the installed package."""


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


@pytest.mark.slow
def test_the_wheel_is_one_package_that_works_beside_folders_of_the_same_names(
    tmp_path, write_series, tiny_settings, as_words
):
    """Installed as it is, `utils` is everybody's; a user's own folder was imported in its place."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    wheels, site, home = (tmp_path / name for name in ("wheels", "site", "home"))
    build = ["wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), "."]
    subprocess.run([*pip, *build], cwd=PROJECT_ROOT, check=True, capture_output=True)
    assert not (PROJECT_ROOT / "build").exists() and not list(PROJECT_ROOT.glob("*.egg-info"))
    (wheel,) = wheels.iterdir()
    install = ["install", "--no-index", "--no-deps", "--no-compile", "--target", str(site), str(wheel)]
    subprocess.run([*pip, *install], cwd=tmp_path, check=True, capture_output=True)
    installed = {path for path in site.rglob("*") if path.is_file()}
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"timellm_enhanced", "bin"}
    assert {path.name for path in (site / "bin").iterdir()} == set(PROJECT["scripts"])

    for name in ("utils", "models", "layers", "data_provider", "scripts"):
        (home / name).mkdir(parents=True)
        (home / name / "__init__.py").write_text("raise ImportError('a folder of the user')")
    series = write_series(home / "waves.csv")
    settings = {**tiny_settings(series, Path("checkpoints")), "root_path": ".", "max_steps": 2}
    words = ["--preset", "cpu", *as_words(settings), "--use_tapr", "--use_gram"]
    places = {**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    use = [sys.executable, "-c", USED, *words]
    done = subprocess.run(use, cwd=home, env=places, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test" in done.stdout and "steps: " in done.stdout, "our own lines are shown"
    assert {path for path in site.rglob("*") if path.is_file()} == installed, "written into the package"

"""The wheel as a user has it: built, installed alone, used where other packages of its parts' names lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.processes import python
from utils.paths import PROJECT_ROOT

pytestmark = pytest.mark.slow
SIZES = (
    "--data custom --data_path series.csv --seq_len 48 --label_len 0 --pred_len 12 --d_model 16 --n_heads 2 "
    "--d_ff 16 --llm_layers 1 --num_tokens 20 --batch_size 8 --cpu"
).split()


def done(*words: str | Path, cwd: Path, site: Path | None = None) -> str:
    """What a command says; it must succeed."""
    ran = python(*words, cwd=cwd, **({"PYTHONPATH": str(site)} if site else {}))
    assert ran.returncode == 0, ran.stderr[-3000:]
    return ran.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages that holds the wheel alone."""
    folder = tmp_path_factory.mktemp("wheel")
    quiet = ("-m", "pip", "--disable-pip-version-check", "-q")
    done(*quiet, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, ".", cwd=PROJECT_ROOT)
    (wheel,) = folder.glob("*.whl")
    done(*quiet, "install", "--no-deps", "--target", folder / "site", wheel, cwd=folder)
    return folder / "site"


def test_one_package_is_installed_and_works_beside_others_of_its_parts_names(site, tiny_llama, tmp_path):
    """A wheel of `models` and `utils` would break every project that has modules of these names."""
    assert {path.name for path in site.iterdir() if path.suffix != ".dist-info"} == {
        "bin",
        "timellm_enhanced",
    }
    before = {path for path in site.rglob("*") if path.suffix != ".pyc"}
    for name in ("utils", "models", "layers", "scripts", "data_provider"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('the user\\'s own')")
    done(
        "-m",
        "timellm_enhanced.data_provider.synthetic",
        "series.csv",
        "--rows",
        "600",
        cwd=tmp_path,
        site=site,
    )
    llm = ("--root_path", tmp_path, "--llm_model_path", tiny_llama)
    said = done(site / "bin/timellm-preflight", *SIZES, *llm, "--no_timing", cwd=tmp_path, site=site)
    assert "lookback 48, horizon 12" in said
    steps = ("--use_tapr", "--use_gram", "--max_steps", "2", "--eval_steps", "2", "--aux_warmup_steps", "1")
    done(site / "bin/timellm-train", *SIZES, *llm, *steps, cwd=tmp_path, site=site)
    (run,) = (tmp_path / "checkpoints").iterdir()
    told = ("--checkpoint", run, "--input", "series.csv", "--output", "forecast.csv", "--cpu")
    done(site / "bin/timellm-predict", *told, cwd=tmp_path, site=site)
    script = (
        "import pandas as pd\n"
        "from timellm_enhanced import Forecaster\n"
        f"frame = Forecaster.load({str(run)!r}, device='cpu').predict('series.csv')\n"
        "written = pd.read_csv('forecast.csv', parse_dates=['date'])\n"
        "pd.testing.assert_frame_equal(frame, written, check_dtype=False, rtol=1e-5)\n"
        "print(len(frame))\n"
    )
    assert done("-c", script, cwd=tmp_path, site=site).strip() == "12"
    assert {
        path for path in site.rglob("*") if path.suffix != ".pyc" and path.name != "__pycache__"
    } <= before

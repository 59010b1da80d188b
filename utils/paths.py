"""Where the project lies on disk, as a checkout or as the installed package `timellm_enhanced`."""

from pathlib import Path

PACKAGE = __name__.rpartition(".utils")[0]
"""Name of the installed package, to whose folder nothing is written; nothing in a checkout."""
PROJECT_ROOT = Path(__file__).resolve().parents[1]
"""The checkout, or the package's folder."""
BASE_MODELS = Path("base_models") if PACKAGE else PROJECT_ROOT / "base_models"
"""Where LLMs are looked for and converted to; of an installed package in the current folder."""
PROMPT_BANK = PROJECT_ROOT / "data_provider" / "prompt_bank"
PRESETS = PROJECT_ROOT / "scripts" / "presets"

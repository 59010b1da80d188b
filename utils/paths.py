"""Where the project lies on disk."""

from pathlib import Path

PROJECT_ROOT = Path(__file__).resolve().parents[1]
BASE_MODELS = PROJECT_ROOT / "base_models"
PROMPT_BANK = PROJECT_ROOT / "data_provider" / "prompt_bank"
PRESETS = PROJECT_ROOT / "scripts" / "presets"

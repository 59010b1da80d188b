"""Draw every learning-rate schedule into a picture: ``python scripts/plot_schedules.py docs/schedules.png``.

The curves are those that training uses (`utils.training.optim.rate_factor`), for a run of ten epochs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file: its own folder is on the path, the project's is not
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from matplotlib.axes import Axes

from utils.cli import PathFlag
from utils.config import TrainingConfig, setting_type
from utils.reporting.plots import panels
from utils.training.optim import rate_factor

STEPS_PER_EPOCH = 251
"""ETTh1 at batch 32, all variables of a window at once."""
EPOCHS = 10
WARM_UP = 250


def curves(lr_warmup_steps: int) -> dict[str, list[float]]:
    """The learning rate at every optimizer step, by schedule, for the default peak rate."""
    total = STEPS_PER_EPOCH * EPOCHS
    drawn = {}
    for name in setting_type("training", "lradj")[1]:
        if name == "TST" and lr_warmup_steps:
            continue  # it has a rise of its own
        config = TrainingConfig(lradj=name, lr_warmup_steps=lr_warmup_steps)
        factor = rate_factor(config, total_steps=total, steps_per_epoch=STEPS_PER_EPOCH)
        drawn[name] = [config.learning_rate * factor(step) for step in range(total)]
    return drawn


def main() -> None:
    """Draw the schedules without and with a warm-up, side by side."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", action=PathFlag, kind=Path, help="PNG file to write")
    out = parser.parse_args().out
    shown = (curves(0), curves(WARM_UP))

    def draw(panel: int, axis: Axes) -> None:
        for name, rates in shown[panel].items():
            axis.plot(rates, linewidth=1.2, label=name)
        axis.ticklabel_format(axis="y", style="sci", scilimits=(-4, -4))

    titles = ("without warm-up", f"--lr_warmup_steps {WARM_UP}")
    print(panels(out, titles, draw, x="optimizer step", y="learning rate", columns=8))


if __name__ == "__main__":
    main()

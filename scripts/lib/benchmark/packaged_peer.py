"""neuralforecast's ``TimeLLM``, in an environment that has it: a training step beside ours.

Imports nothing of this project. Each series is one of its windows, as it trains them; the step is made
of its own ``forward`` without its trainer, which would add to its time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

RATE = 1e-4
"""Its own default."""


def build(request: dict[str, Any]) -> PackagedPeer:
    """The peer that a request describes."""
    return PackagedPeer(request["settings"], folder=request["llm_folder"], layers=request["layers"])


class PackagedPeer:
    """What a worker is asked about it."""

    def __init__(self, settings: dict[str, Any], *, folder: str, layers: dict[str, int]) -> None:
        """Build its model, and make sure of the number of layers that run.

        Args:
            settings: lengths, sizes, series and description.
            folder: of the LLM.
            layers: ``asked`` for by its own argument, and those that the folder ``has`` and that must run.

        Raises:
            RuntimeError: another number of layers runs.
        """
        import neuralforecast  # type: ignore[import-not-found]
        from neuralforecast.models import TimeLLM  # type: ignore[import-not-found]

        self.version = neuralforecast.__version__
        z = settings
        self.model: Any = TimeLLM(
            h=z["pred_len"], input_size=z["seq_len"], patch_len=z["patch_len"], stride=z["stride"],
            d_ff=z["d_ff"], d_model=z["d_model"], n_heads=z["n_heads"], d_llm=z["d_llm"],
            dropout=z["dropout"], llm=folder, llm_num_hidden_layers=layers["asked"],
            prompt_prefix=z["description"],
        )  # fmt: skip
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=RATE)
        self.trained = sum(p.numel() for p in trained)
        self.x = torch.randn(z["series"], z["seq_len"], 1).cumsum(dim=1) * 0.1
        self.y = torch.randn(z["series"], z["pred_len"], 1)
        self.layers = self._layers_run()
        if self.layers != layers["has"]:
            raise RuntimeError(f"neuralforecast: expected {layers['has']} layers to run, found {self.layers}")

    def _layers_run(self) -> int:
        """Layers of its LLM that compute something in one pass, counted by hooks."""
        stacks = [m for m in self.model.llm.modules() if isinstance(m, nn.ModuleList)]
        layers = max(stacks, key=lambda s: sum(p.numel() for p in s.parameters()))
        ran: set[int] = set()
        hooks = [
            layer.register_forward_hook(lambda *_, index=index: ran.add(index))
            for index, layer in enumerate(layers)
        ]
        self.evaluate()
        for hook in hooks:
            hook.remove()
        return len(ran)

    def _forward(self) -> Tensor:
        found = self.model({"insample_y": self.x})
        return found[0] if isinstance(found, tuple) else found

    def train_step(self) -> None:
        """Forward, loss, backward, Adam."""
        self.model.train()
        self.optimizer.zero_grad()
        torch.nn.functional.mse_loss(self._forward().reshape(self.y.shape), self.y).backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        """One batch of an evaluation."""
        self.model.eval()
        self._forward()

    def facts(self) -> dict[str, Any]:
        """Sizes, and how it computes."""
        precision = str(next(self.model.llm.parameters()).dtype).removeprefix("torch.")
        return {
            "trained_parameters": self.trained,
            "precision": precision,
            "layers": self.layers,
            "version": self.version,
            "series": len(self.x),
        }

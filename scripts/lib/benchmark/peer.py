"""A case of another project: any folder that exposes the family's ``models.TimeLLM.Model(configs)``.

Imports nothing of this project. The peer is given the attributes that the family's scripts set, and
whichever name of an LLM it asks transformers for, the benchmark's own: all cases run the same one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import transformers
from torch import Tensor

REDIRECTED = {
    "Model": ("AutoModel", "GPT2Model", "LlamaModel", "BertModel"),
    "Config": ("AutoConfig", "GPT2Config", "LlamaConfig", "BertConfig"),
    "Tokenizer": ("AutoTokenizer", "GPT2Tokenizer", "LlamaTokenizer", "BertTokenizer"),
}
KEPT_OPTIONS = ("config", "torch_dtype", "dtype", "attn_implementation")
FAMILY = {
    "task_name": "long_term_forecast",
    "embed": "timeF",
    "freq": "h",
    "features": "M",
    "activation": "gelu",
    "output_attention": False,
    "e_layers": 2,
    "d_layers": 1,
    "factor": 1,
    "moving_avg": 25,
    "prompt_domain": 1,
    "percent": 100,
    "use_amp": False,
    "is_training": 1,
    "load_in_4bit": False,
}
"""What the family's scripts give every model."""


def build(request: dict[str, Any]) -> Peer:
    """The peer in the folder that comes first on the path."""
    return Peer(request["settings"], folder=request["llm_folder"], llm=request["llm"])


class Peer:
    """What a worker is asked about a peer."""

    def __init__(self, settings: dict[str, Any], *, folder: str, llm: dict[str, Any]) -> None:
        """Build its model.

        Args:
            settings: our flags, by name; those that the family has keep theirs.
            folder: of the LLM.
            llm: its hidden size and architecture's short name (LLAMA, GPT2, BERT).
        """
        _Redirect(folder).install()
        from models.TimeLLM import Model  # the peer's own

        description = settings.pop("description", None) or "The Electricity Transformer Temperature."
        variables = settings["enc_in"]
        configs = SimpleNamespace(
            **{
                **FAMILY,
                **settings,
                "content": description,
                "llm_model": llm["name"],
                "llm_dim": llm["hidden_size"],
                "llm_model_path": folder,
                "dec_in": variables,
                "c_out": variables,
            }
        )
        self.model: Any = Model(configs).float()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=settings["learning_rate"])
        self.trained = sum(p.numel() for p in trained)
        windows, horizon, overlap = settings["batch_size"], settings["pred_len"], settings["label_len"]
        self.horizon = horizon
        self.x = torch.randn(windows, settings["seq_len"], variables).cumsum(dim=1) * 0.1
        self.y = torch.randn(windows, horizon, variables)
        self.marks = torch.zeros(windows, settings["seq_len"], 4), torch.zeros(windows, overlap + horizon, 4)
        self.decoder = torch.zeros(windows, overlap + horizon, variables)
        self.autocast = False
        self.autocast = not self._runs()

    def _runs(self) -> bool:
        """Whether the peer computes in float32; one that casts to bfloat16 by itself needs autocast."""
        try:
            self.evaluate()
        except RuntimeError as error:
            if "dtype" not in str(error) and "BFloat16" not in str(error):
                raise
            return False
        return True

    def _forward(self) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            out = self.model(self.x, self.marks[0], self.decoder, self.marks[1])
        out = out[0] if isinstance(out, tuple) else out
        return out[:, -self.horizon :].float()

    def train_step(self) -> None:
        """Forward, loss, backward, Adam."""
        self.model.train()
        self.optimizer.zero_grad()
        torch.nn.functional.mse_loss(self._forward(), self.y).backward()
        self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        """One batch of an evaluation."""
        self.model.eval()
        self._forward()

    def facts(self) -> dict[str, Any]:
        """Sizes, and how it computes."""
        precision = "bfloat16, which its own casts need" if self.autocast else "float32"
        return {"trained_parameters": self.trained, "precision": precision}


class _Redirect:
    """Makes every ``from_pretrained`` of the classes that the family uses read one folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.own: list[tuple[type, Any]] = []

    def install(self) -> None:
        """Put the replacements in place."""
        for kind, names in REDIRECTED.items():
            for cls in (getattr(transformers, name) for name in names if hasattr(transformers, name)):
                self.own.append((cls, vars(cls).get("from_pretrained")))
                cls.from_pretrained = self._reader(f"Auto{kind}")

    def remove(self) -> None:
        """Put back what was there; transformers' own classes call each other."""
        for cls, own in self.own:
            if own is None:
                del cls.from_pretrained  # type: ignore[attr-defined]
            else:
                cls.from_pretrained = own  # type: ignore[attr-defined]
        self.own = []

    def _reader(self, auto: str) -> Any:
        """A ``from_pretrained`` that passes over the name asked for."""

        def read(*_: Any, **options: Any) -> Any:
            self.remove()
            try:
                kept = {k: v for k, v in options.items() if k in KEPT_OPTIONS}
                found = getattr(transformers, auto).from_pretrained(
                    self.folder, local_files_only=True, **kept
                )
            finally:
                self.install()
            if getattr(found, "pad_token", "") is None:
                found.pad_token = found.eos_token
            return found

        return read

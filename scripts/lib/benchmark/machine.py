"""What the machine can do: its matrix products, and retrieval by the plain and by our way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from layers.GRAM import PatternValueDualRetriever
from layers.retrieval.search import Rows
from utils.config import GRAMConfig

SQUARE = 1536
"""Side of the matrices by which the peak is measured: 27 MB in float32, beyond the inner caches."""
WIDTH = 128
QUERIES = 224
"""32 windows of 7 variables."""
NEIGHBOURS = 5
HORIZON = 96


def build(request: dict[str, Any]) -> Machine | Retrieval:
    """The subject that a request asks for: products, or retrieval among a number of keys."""
    if "keys" in request:
        return Retrieval(request["keys"], seed=request.get("seed", 0))
    return Machine(torch.device(request.get("device", "cpu")), torch_dtype(request), request.get("shape"))


def torch_dtype(request: dict[str, Any]) -> torch.dtype:
    """The element type that a request names."""
    return {"fp32": torch.float32, "bf16": torch.bfloat16}[request.get("dtype", "fp32")]


class Machine:
    """A matrix product [m, k] x [k, n] in full precision."""

    def __init__(self, device: torch.device, dtype: torch.dtype, shape: list[int] | None) -> None:
        """A square by default."""
        self.shape = shape or [SQUARE] * 3
        m, k, n = self.shape
        torch.set_float32_matmul_precision("highest")
        self.left, self.right = (torch.randn(s, device=device, dtype=dtype) for s in ((m, k), (k, n)))

    def product(self) -> None:
        """One product."""
        self.left @ self.right

    def facts(self) -> dict[str, Any]:
        """Operations of one product."""
        m, k, n = self.shape
        return {"flops": 2 * m * k * n, "shape": self.shape}


class _GivenKeys(nn.Module):
    """Stands for the encoders: the query's key is its lookback, the weight of each column learned."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, lookback: Tensor) -> Tensor:
        return lookback

    def column_weights(self, scale: Tensor) -> Tensor:
        return self.weight


class Retrieval:
    """A memory of random keys, searched by the product's retriever and by broadcasting differences.

    Shape legend: S queries, M keys, d their width, H horizon.
    """

    def __init__(self, n_keys: int, *, seed: int) -> None:
        """``n_keys`` is M."""
        generator = torch.Generator().manual_seed(seed)
        config = GRAMConfig(use_gram=True, top_k=NEIGHBOURS, temperature=0.1, retrieval_scope="all")
        self.retriever = PatternValueDualRetriever(
            config, seq_len=WIDTH, horizon=HORIZON, patch_len=16, season=24
        )
        keys: Any = _GivenKeys()
        self.retriever.keys = keys
        self.retriever.key_centre = torch.zeros(WIDTH)
        self.retriever.memory_keys = torch.randn(n_keys, WIDTH, generator=generator)
        self.retriever.memory_values = torch.randn(n_keys, HORIZON, generator=generator)
        for name in ("series", "variable", "start"):
            setattr(self.retriever, f"memory_{name}", torch.zeros(n_keys, dtype=torch.int64))
        self.query = torch.randn(QUERIES, WIDTH, generator=generator).requires_grad_()
        nowhere = torch.zeros(QUERIES, dtype=torch.int64)
        self.rows = Rows(nowhere - 1, nowhere, nowhere)  # of another series: all keys are admissible

    def search(self) -> Tensor:
        """The retrieved futures [S, H], and the gradient of their sum of squares."""
        found = self.retriever(self.query, self.rows)
        return self._backward((found.weights[..., None] * found.values).sum(dim=1))

    def broadcast(self) -> Tensor:
        """The same by all differences at once, [S, M, d] in memory."""
        keys = self.retriever.keys
        differences = self.query[:, None] - self.retriever.memory_keys[None]  # [S, M, d]
        distance = (differences.square() * keys.column_weights(differences)).sum(dim=-1)
        nearest, rows = distance.topk(NEIGHBOURS, dim=1, largest=False)
        share = (-nearest / self.retriever.config.softmax_temperature).softmax(dim=1)
        return self._backward((share[..., None] * self.retriever.memory_values[rows]).sum(dim=1))

    def _backward(self, futures: Tensor) -> Tensor:
        self.query.grad = None
        self.retriever.zero_grad(set_to_none=True)
        futures.square().sum().backward()
        return futures.detach()

    def agreement(self) -> dict[str, Any]:
        """Largest differences between the two ways: of the futures, and of the query's gradient."""
        ours, our_gradient = self.search(), self.query.grad
        theirs, their_gradient = self.broadcast(), self.query.grad
        assert our_gradient is not None and their_gradient is not None
        size = float(their_gradient.abs().max()) or 1.0
        return {
            "futures": float((ours - theirs).abs().max()),
            "gradient": float((our_gradient - their_gradient).abs().max()) / size,
        }

    def facts(self) -> dict[str, Any]:
        """The sizes."""
        return {"keys": len(self.retriever.memory_keys), "queries": QUERIES, "width": WIDTH}

"""Linear maps of a frozen LLM kept in fewer bytes than they are computed in (``--llm_weights``).

A map's weight is there in the precision of its input for as long as one product takes, and made again in
the backward pass: autograd would otherwise keep a copy of every layer's until then, as it does of torchao's
own int8 tensors. What is rounded to integers, and how, is torchao's: symmetric, to the nearest, a scale for
each row (int8) or for each group of a row (int4). Word embeddings, norms and whatever else is no linear map
stay in the precision of the run.

Shape legend: N outputs, K inputs of a map, G groups of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from layers.llm.files import only_errors
from layers.llm.layers import linear_maps
from utils.errors import UserError
from utils.process_memory import mib

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
INT8, INT4 = "int8", "int4"
GROUP = 32
"""Inputs that share a scale in int4; maps whose inputs are no multiple of it are kept in int8."""
PACKAGE = "torchao"
GET = "pip install torchao==0.18.0"


class KeptLinear(nn.Linear):
    """A frozen linear map whose weight is kept in ``kept``; `weight` is made of it when it is asked for."""

    kept: Tensor
    """[N, K] in a float or int8; [N, K / 2] bytes of two int4 each."""
    scale: Tensor | None
    """[N, G] in float32 of what is kept in integers."""
    like: Tensor
    """[0], in the precision of the run."""

    def __init__(self, part: nn.Linear | Conv1D, kept: Tensor, scale: Tensor | None, *, like: Tensor) -> None:
        """In the place of ``part``, in the precision and on the device of ``like``."""
        nn.Module.__init__(self)
        self.was_conv = isinstance(part, Conv1D)
        sizes = part.weight.shape
        self.out_features, self.in_features = sizes[::-1] if self.was_conv else sizes
        self.kept = nn.Parameter(kept, requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)
        self.bias = None if part.bias is None else nn.Parameter(part.bias.to(like.dtype), requires_grad=False)
        self.register_buffer("like", like.new_empty(0), persistent=False)

    @property
    def format(self) -> str:
        """Of `FLOATS`, `INT8` or `INT4`."""
        if self.scale is not None:
            return INT8 if self.kept.shape[1] == self.in_features else INT4
        return next(name for name, dtype in FLOATS.items() if dtype == self.kept.dtype)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """[N, K] in the precision of the run."""
        return self.plain(self.like.dtype)

    def plain(self, dtype: torch.dtype) -> Tensor:
        """The weight [N, K]."""
        if self.scale is None:
            return self.kept.to(dtype)
        whole = self.kept if self.format == INT8 else _unpacked(self.kept)
        groups = whole.to(torch.float32).view(*self.scale.shape, -1)
        return groups.mul_(self.scale.unsqueeze(-1)).view(self.out_features, -1).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        mapped: Tensor = _Mapped.apply(x, self)
        return mapped if self.bias is None else mapped + self.bias

    def restored(self) -> nn.Linear | Conv1D:
        """A map of the kind that was here, with the weight in the precision of the run."""
        weight = nn.Parameter(
            self.weight.t().contiguous() if self.was_conv else self.weight, requires_grad=False
        )
        if self.was_conv:
            part: Any = Conv1D(0, 0)
            part.nf, part.nx = self.out_features, self.in_features
        else:
            part = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        part.weight, part.bias = weight, self.bias
        return part


class _Mapped(torch.autograd.Function):
    """x [..., K] to [..., N], which keeps nothing."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, part: KeptLinear) -> Tensor:
        ctx.part, ctx.dtype = part, x.dtype
        return F.linear(x, part.plain(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return (gradient @ ctx.part.plain(gradient.dtype)).to(ctx.dtype), None


def keep_maps(llm: nn.Module, wanted: str, *, dtype: torch.dtype, flag: str, name: str) -> str:
    """Keep the linear maps of ``llm`` in the format ``wanted``, in place; a line that says what there is now.

    Args:
        llm: frozen; its weights are finite.
        wanted: of `FLOATS`, `INT8` or `INT4`.
        dtype: in which the run computes.
        flag: that asks for it, for messages.
        name: what the LLM was asked for by.

    Raises:
        ValueError: it has no linear maps, or the package is missing that rounds them.
    """
    maps = linear_maps(llm)
    if not maps:
        raise UserError(
            f"{flag}: expected linear maps (torch's Linear, GPT-2's Conv1D) to keep in {wanted}, found none "
            f"in {type(llm).__name__} ({name}); leave the flag out"
        )
    like = torch.empty(0, dtype=dtype)
    rounded = None if wanted in FLOATS else _rounding(flag)
    counts: Counter[str] = Counter()
    made: dict[nn.Module, KeptLinear] = {}
    for path, part in maps.items():
        if part in made:  # in two places
            llm.set_submodule(path, made[part])
            continue
        weight = part.weight.detach().t() if isinstance(part, Conv1D) else part.weight.detach()
        if rounded is None:
            kept = KeptLinear(part, weight.to(FLOATS[wanted]).contiguous(), None, like=like.to(weight.device))
        else:
            kept = KeptLinear(part, *rounded(weight, wanted), like=like.to(weight.device))
        made[part] = kept
        llm.set_submodule(path, kept)
        counts[kept.format] += kept.out_features * kept.in_features
    for path, weight in llm.named_parameters():  # one that is mapped from a file keeps all of its pages
        if not _is_kept(path):
            weight.data = weight.data.clone()
    return _told(llm, counts, dtype=dtype)


def restore_maps(llm: nn.Module) -> None:
    """Give each map that is kept otherwise back in the precision of the run, rounded as it is, in place."""
    for path, part in list(llm.named_modules()):
        if isinstance(part, KeptLinear):
            llm.set_submodule(path, part.restored())


def format_of(llm: nn.Module) -> str:
    """In what the linear maps are kept; empty where that is the precision of the run."""
    return "+".join(sorted({part.format for part in llm.modules() if isinstance(part, KeptLinear)}))


def _is_kept(name: str) -> bool:
    return name.rpartition(".")[2] in ("kept", "scale")


def _told(llm: nn.Module, counts: Counter[str], *, dtype: torch.dtype) -> str:
    """How many weights are kept in what, and what all take."""
    rest = sum(weight.numel() for name, weight in llm.named_parameters() if not _is_kept(name))
    every = rest + counts.total()
    parts = ", ".join(f"{count / 1e6:.1f} M in {format}" for format, count in counts.most_common())
    held = sum(w.numel() * w.element_size() for w in llm.parameters())
    computed = next(name for name, other in FLOATS.items() if other == dtype)
    return (
        f"{parts} of {every / 1e6:.1f} M weights, the others (word embeddings, norms) in {computed}: "
        f"{mib(held)} in place of {mib(every * dtype.itemsize)}"
    )


def _rounding(flag: str) -> Callable[[Tensor, str], tuple[Tensor, Tensor]]:
    """A function of a weight [N, K] that gives what is kept of it, and its scales [N, G], by torchao.

    Raises:
        ValueError: it is not installed.
    """
    if find_spec(PACKAGE) is None:
        raise UserError(
            f"{flag}: expected the package {PACKAGE}, which rounds the weights, found none; install it "
            f"(`{GET}`), or keep them in 2 bytes by --llm_weights bf16"
        )
    with only_errors(PACKAGE):  # it says which of its kernels are for other machines
        from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, PerGroup, quantize_

    eight = Int8WeightOnlyConfig(set_inductor_config=False)
    four = IntxWeightOnlyConfig(
        weight_dtype=torch.int4,  # type: ignore[attr-defined]
        granularity=PerGroup(GROUP),
    )

    def rounded(weight: Tensor, wanted: str) -> tuple[Tensor, Tensor]:
        fits = wanted == INT4 and weight.shape[1] % GROUP == 0
        holder = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        holder.weight = nn.Parameter(weight.to(torch.float32), requires_grad=False)
        quantize_(holder, four if fits else eight)
        found: Any = holder.weight
        return _packed(found.qdata) if fits else found.qdata, found.scale.float()

    return rounded


def _packed(values: Tensor) -> Tensor:
    """int4 from -8 to 7, [N, K], two to a byte, [N, K / 2]."""
    low, high = (values + 8).to(torch.uint8).view(len(values), -1, 2).unbind(-1)
    return low | (high << 4)


def _unpacked(kept: Tensor) -> Tensor:
    """[N, K] of `_packed`."""
    return torch.stack([kept & 15, kept >> 4], dim=-1).view(len(kept), -1).to(torch.int8) - 8

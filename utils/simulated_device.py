"""An accelerator that computes nothing: what a pass would do on a GPU, found on a machine without one.

torch accepts a device that is written in Python, and its fake tensors follow device, shape and dtype
through forward and backward pass. Inside `simulated` such a device exists; `Watch` sees what is done with
its tensors: values that are read (each would make a GPU wait), copies to and from the CPU, tensors that
stayed on the CPU, and the bytes that are held. Autocast and the fused attentions are a CUDA device's:
both are registered here, since torch has none for a device of this kind.

What it can not show: numbers (there are none; those that are asked for come from `Watch.answer`), random
states (one that never moves), kernels' own workspaces, and what an allocator rounds up or leaves between
blocks. Models are built, and statistics counted, before: see `Watch.move`.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from utils.paths import PROJECT_ROOT

NAME = "simulated"
"""Of the device."""
aten = torch.ops.aten
NO_TASK = -1
"""What torch calls the backward pass under way where there is none."""
COPIES = (aten._to_copy.default, aten.copy_.default)
VIEWS = (
    aten.select.int, aten.unbind.int, aten.detach.default, aten.alias.default, aten.lift_fresh.default
)  # fmt: skip
"""What `Tensor.tolist` does between its reads, and what makes a tensor of Python's numbers."""
HALF = (
    "conv1d conv2d conv3d convolution addmm addmv addr matmul mm mv linear addbmm baddbmm bmm prelu einsum"
).split()
"""Autocast computes these in the lower precision (torch's documentation, "CUDA Ops that can autocast")."""
SINGLE = (
    "acos asin cosh exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan softplus layer_norm group_norm "
    "cosine_similarity nll_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss renorm cdist prod cumprod "
    "cumsum sum softmax log_softmax norm"
).split()
"""And these in float32."""
BIAS_ROW = 16
"""Entries to which the memory-efficient attention fills up a row of its mask."""
ALIGNED = 16
"""Bytes that a head's width must be a multiple of for it."""


class Look(NamedTuple):
    """Something that crossed from the device to Python or the CPU, or back, and where it was asked for."""

    kind: Literal["read", "download", "upload", "stray"]
    """A value read; a tensor copied to the CPU, or from it; an operation on the CPU."""
    file: str
    """Of this project, from its root."""
    function: str
    line: int
    via: str
    """The place in a library that did it, where it was none of ours."""

    @property
    def where(self) -> str:
        """File and function: what stays when lines move."""
        return f"{self.file} {self.function}"

    def __str__(self) -> str:
        """One line that leads there."""
        return f"{self.kind} at {self.file}:{self.line} ({self.function}){self.via and ' via ' + self.via}"


class Watch(TorchDispatchMode):
    """Sees every operation inside `simulated`: what leaves the device, and the bytes held on it."""

    def __init__(self, mode: FakeTensorMode, answer: int = 0) -> None:
        """``answer`` is what reading whole numbers gives (and truths); other numbers read as 1."""
        super().__init__()
        self.mode, self.answer = mode, answer
        self.looks: list[Look] = []
        self.held = 0
        """Bytes of all storages on the device."""
        self.peak = 0
        """The most so far."""
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._reading = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Do it, and note what it was."""
        if func is aten._local_scalar_dense.default:
            return self._read(args[0])
        if func in COPIES:
            for tensor in args[:2]:
                if isinstance(tensor, FakeTensor):
                    tensor.constant = (
                        None  # of a literal torch would copy the value, by kernels that are not there
                    )
        try:
            found = func(*args, **(kwargs or {}))
        except RuntimeError:
            if torch._C._current_graph_task_id() == NO_TASK:
                raise
            # an error inside a backward pass would end the process: it is noted as what it is
            self.note("stray")
            args, kwargs = tree_map_only(Tensor, self._on_device, (args, kwargs or {}))
            found = func(*args, **kwargs)
        if func not in VIEWS:
            self._reading = False
        given = {t.device.type for t in _tensors((args, kwargs))}
        made = list(_tensors(found))
        there = {t.device.type for t in made}
        if func in COPIES and len(given | there) > 1:
            source = args[1 if func is aten.copy_.default else 0].device.type
            self.note("upload" if source == "cpu" else "download")
        elif "cpu" in given | there and func not in VIEWS:
            self.note("stray")
        for tensor in made:
            self._hold(tensor)
        return found

    def move(self, model: nn.Module) -> nn.Module:
        """Every weight and buffer of ``model`` on the device, in place; what several share stays shared."""
        seen: dict[int, Tensor] = {}

        def moved(tensor: Tensor) -> Tensor:
            if id(tensor) not in seen:
                seen[id(tensor)] = self.put(tensor)
            return seen[id(tensor)]

        for part in model.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    part._parameters[name] = nn.Parameter(moved(weight), requires_grad=weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = moved(buffer)
        return model

    def put(self, tensor: Tensor) -> Tensor:
        """A real tensor on the device, without a look being noted."""
        detached = tensor.detach()
        fake = detached if isinstance(detached, FakeTensor) else self.mode.from_tensor(detached)
        found = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=NAME)
        return found

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor if tensor.device.type == NAME else self.put(tensor)

    def note(self, kind: Literal["read", "download", "upload", "stray"]) -> None:
        """Remember that this was done, and where."""
        self.looks.append(Look(kind, *_place()))

    def of(self, *kinds: str) -> list[str]:
        """Where these were, in order."""
        return [look.where for look in self.looks if look.kind in kinds]

    def restart_peak(self) -> None:
        """From here on the most is what is held now, or more."""
        self.peak = self.held

    def _read(self, tensor: Tensor) -> int | float | bool:
        if tensor.device.type == "cpu":
            known = getattr(tensor, "constant", None)
            return self.answer if known is None else known.item()
        if not self._reading or self.looks[-1][1:] != _place():
            self.note("read")
        self._reading = True
        if tensor.dtype == torch.bool:
            return bool(self.answer)
        return 1.0 if tensor.is_floating_point() else self.answer

    def _hold(self, tensor: Tensor) -> None:
        """Count a storage once, until it goes."""
        if tensor.device.type != NAME:
            return
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known and self._known[key][0]() is storage:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.held -= size

        self._known[key] = weakref.ref(storage, gone), size
        self.held += size
        self.peak = max(self.peak, self.held)


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those in tuples, lists and dictionaries within each other."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _place() -> tuple[str, str, int, str]:
    """File, function and line of the innermost frame of this project, and the library's inside of it."""
    frame: Any = sys._getframe(1)
    home, via = str(PROJECT_ROOT), ""
    while frame is not None:
        path = frame.f_code.co_filename
        is_ours = path.startswith(home) and "site-packages" not in path.removeprefix(home)
        if not is_ours and "site-packages" in path and "/torch/" not in path:
            via = via or f"{path.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        elif is_ours and path != __file__:
            return str(Path(path).relative_to(PROJECT_ROOT)), frame.f_code.co_name, frame.f_lineno, via
        frame = frame.f_back
    return "?", "?", 0, via


@contextmanager
def simulated(answer: int = 0) -> Iterator[Watch]:
    """Inside, tensors are fake and the device `NAME` exists; gives what sees all that is done with it.

    ``answer`` as for `Watch`.
    """
    _register()
    patches: list[Any] = [
        mock.patch.object(F, "scaled_dot_product_attention", _attention(F.scaled_dot_product_attention)),
        # transformers leaves out the reads that it makes of real masks where it sees a fake one
        mock.patch("transformers.utils.import_utils.is_fake_tensor", lambda x: False),
    ]
    torch._C._set_only_lift_cpu_tensors(True)
    fakes = FakeTensorMode(allow_non_fake_inputs=True)
    # the engine of the backward pass starts threads once, for the devices that there are at its first use
    one_thread = torch.autograd.set_multithreading_enabled(False)
    try:
        with fakes as mode, one_thread, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Accessing the data pointer of FakeTensor")
            for patch in patches:
                patch.start()
            with Watch(mode, answer) as watch:
                yield watch
    finally:
        for patch in patches:
            patch.stop()
        torch._C._set_only_lift_cpu_tensors(False)


# The device.


class _Backend(backend_registration._DummyBackendModule):
    """What torch asks of a device's module."""

    def get_rng_state(self, *device: Any) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, *state: Any) -> None:
        pass

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_libraries: list[Any] = []
"""Registrations live as long as these."""


def _register() -> None:
    """Name the device, and give it autocast; once a process.

    Raises:
        RuntimeError: the process has another device of this kind already.
    """
    if _libraries:
        return
    backend_registration._setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
    autocast, others = (
        torch.library.Library(space, "IMPL", "AutocastPrivateUse1") for space in ("aten", "_")
    )
    others.fallback(torch.library.fallthrough_kernel)
    for names, precision in ((HALF, None), (SINGLE, torch.float32)):
        for name in names:
            packet = getattr(aten, name)
            for overload in packet.overloads():
                op = getattr(packet, overload)
                if not overload.endswith(("out", "_out")) and not op._schema.is_mutable:
                    autocast.impl(
                        op._schema.name + (f".{overload}" if overload != "default" else ""),
                        _cast(op, precision),
                    )
    _libraries.extend((autocast, others))


def _cast(op: Any, precision: torch.dtype | None) -> Callable[..., Any]:
    """``op`` on its tensors in this precision, or in autocast's own."""
    key: Any = torch._C._parse_dispatch_key("AutocastPrivateUse1")
    keys = torch._C.DispatchKeySet(key)

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            wanted = precision or torch.get_autocast_dtype(NAME)
            args, kwargs = _in(wanted, (args, kwargs))
            return op(*args, **kwargs)

    return run


def _in(precision: torch.dtype, values: Any) -> Any:
    """Tensors of the device in this precision, but for float64."""

    def cast(tensor: Tensor) -> Tensor:
        moves = tensor.is_floating_point() and tensor.dtype != torch.float64 and tensor.device.type == NAME
        return tensor.to(precision) if moves else tensor

    return tree_map_only(Tensor, cast, values)


def _attention(usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The attention of torch with the kernel that a CUDA device takes: it keeps no map of the scores."""

    def attend(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if query.device.type == NAME and torch.is_autocast_enabled(NAME):
            query, key, value = _in(torch.get_autocast_dtype(NAME), (query, key, value))
        aligned = query.shape[-1] * query.element_size() % ALIGNED == 0
        if query.device.type != NAME or query.dtype == torch.float64 or query.dim() != 4:
            return usual(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        if attn_mask is None and query.dtype != torch.float32:
            return aten._scaled_dot_product_flash_attention(
                query, key, value, dropout_p, is_causal, scale=scale
            )[0]
        if not aligned or enable_gqa:
            return usual(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        bias = None if attn_mask is None else _bias(attn_mask, query, key)
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, keeps, dropout_p, is_causal, scale=scale
        )[0]

    return attend


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as the memory-efficient attention adds it: numbers, in rows of `BIAS_ROW` entries."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(mask.logical_not(), -torch.inf)
    rest = -mask.shape[-1] % BIAS_ROW
    if rest:
        mask = F.pad(mask, (0, rest))[..., : mask.shape[-1]]
    return mask.expand(*query.shape[:3], key.shape[2])

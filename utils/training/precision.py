"""How float32 is computed: full precision or a faster kernel that is as exact here; subnormals as zero."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

FP32_GRADE = 1e-5
"""Largest error of a product of 512 terms, relative to the largest entry, that passes as float32's own.
Float32 makes about 5e-7, TF32 about 5e-4, bfloat16 about 4e-3."""
PROBE = (256, 512, 256)


@contextmanager
def matmul_precision(wanted: str, device: torch.device) -> Iterator[str]:
    """Compute float32 products in this precision inside; gives the name of the one that was chosen.

    Args:
        wanted: ``highest`` or ``medium`` as torch names them, or ``auto``: ``medium`` where its error on
            this machine is that of float32 (oneDNN on many CPUs, at about twice the speed),
            otherwise ``highest``.
        device: where the products are made.
    """
    before = torch.get_float32_matmul_precision()
    try:
        chosen = wanted
        if wanted == "auto":
            chosen = "medium" if medium_error(device) <= FP32_GRADE else "highest"
        torch.set_float32_matmul_precision(chosen)
        yield chosen
    finally:
        torch.set_float32_matmul_precision(before)


@torch.no_grad()
def medium_error(device: torch.device, sizes: tuple[int, int] = PROBE[1:]) -> float:
    """Largest error of a product under ``medium`` against float64, relative to the largest entry.

    ``sizes`` are those of a weight matrix: kernels are chosen by them.
    """
    generator = torch.Generator().manual_seed(0)
    rows, (inner, columns) = PROBE[0], sizes
    left = torch.randn(rows, inner, generator=generator)
    right = torch.randn(inner, columns, generator=generator)
    exact = left.double() @ right.double()
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = (left.to(device) @ right.to(device)).cpu().double()
    finally:
        torch.set_float32_matmul_precision(before)
    return float((found - exact).abs().max() / exact.abs().max())


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Compute with subnormal numbers (below 1.2e-38) as zero inside, where the processor can.

    An attention map whose softmax has sharpened holds some per cent of them, and a product with it takes
    up to nine times as long as without. Threads that begin inside do as this one, those that run already go
    on as before (torch 2.13.0): enter it before the first operation that is divided among them.
    Source: `torch.set_flush_denormal`.
    """
    smallest = torch.tensor(1e-40)
    before = float(smallest + smallest) == 0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

"""The small layers against plain float64 formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layers.decomposition import SeriesDecomposition
from layers.heads import FlattenHead
from layers.normalization import InstanceNorm
from layers.patching import PatchEmbedding
from layers.reprogramming import ReprogrammingLayer


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# Instance normalisation.


def test_instance_norm_is_its_formula() -> None:
    """A deviation with n - 1, or statistics over the batch, would be another model."""
    x = draw(3, 20, 2) * 5 + 7
    found, statistics = InstanceNorm()(x)
    reference = x.double()
    mean = reference.sum(dim=1) / 20
    std = (((reference - mean[:, None]) ** 2).sum(dim=1) / 20 + 1e-5).sqrt()
    torch.testing.assert_close(found.double(), (reference - mean[:, None]) / std[:, None], rtol=0, atol=2e-6)
    torch.testing.assert_close(statistics.mean[:, 0].double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(statistics.std[:, 0].double(), std, rtol=1e-6, atol=1e-6)


def test_denormalize_undoes_normalize() -> None:
    """A forecast in the wrong units scores like noise."""
    norm, x = InstanceNorm(), draw(3, 20, 2) * 5 + 7
    normalised, statistics = norm(x)
    torch.testing.assert_close(norm.denormalize(normalised, statistics), x)


def test_statistics_carry_no_gradient() -> None:
    """The published code detaches the statistics: the loss must not reach x through them."""
    x = draw(2, 20, 1).requires_grad_()
    normalised, statistics = InstanceNorm()(x)
    assert not statistics.mean.requires_grad
    assert not statistics.std.requires_grad
    (slope,) = torch.autograd.grad(normalised.sum(), x)
    torch.testing.assert_close(slope, (1 / statistics.std).expand_as(x))


# Patches.


def plain_patches(series: Tensor, weight: Tensor, *, length: int, stride: int, pad: bool) -> Tensor:
    """Patch embeddings [S, P, D] by loops, float64."""
    out = []
    for row in series.double():
        values = row.tolist() + ([row[-1].item()] * stride if pad else [])
        patches = torch.tensor(
            [values[i : i + length] for i in range(0, len(values) - length + 1, stride)], dtype=torch.float64
        )
        embedded = []
        for p in range(len(patches)):
            around = [patches[(p + offset) % len(patches)] for offset in (-1, 0, 1)]
            embedded.append(sum(weight[:, :, k].double() @ around[k] for k in range(3)))
        out.append(torch.stack(embedded))  # type: ignore[arg-type]
    return torch.stack(out)


@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize(("rows", "length", "stride"), [(20, 4, 4), (21, 6, 3), (23, 5, 2), (8, 8, 3)])
def test_patch_embedding_is_its_formula(pad: bool, rows: int, length: int, stride: int) -> None:
    """Padding in front, a convolution that is not circular, or a lost last patch."""
    layer = PatchEmbedding(channels=1, d_model=5, patch_len=length, stride=stride, pad_end=pad, dropout=0.0)
    series = draw(3, rows)
    reference = plain_patches(
        series, layer.value_embedding.weight.detach(), length=length, stride=stride, pad=pad
    )
    found = layer(series[:, None])
    assert found.shape == reference.shape
    torch.testing.assert_close(found.double(), reference, rtol=0, atol=1e-5)


# Reprogramming.


def plain_attention(layer: ReprogrammingLayer, patches: Tensor, source: Tensor) -> Tensor:
    """Multi-head cross-attention [S, P, d_llm] with an explicit softmax, head by head, float64."""
    w = {name: p.detach().double() for name, p in layer.named_parameters()}

    def project(name: str, x: Tensor) -> Tensor:
        return x.double() @ w[f"{name}_projection.weight"].T + w[f"{name}_projection.bias"]

    query, key, value = project("query", patches), project("key", source), project("value", source)
    width = query.shape[-1] // layer.n_heads
    heads = []
    for h in range(layer.n_heads):
        part = slice(h * width, (h + 1) * width)
        score = query[..., part] @ key[:, part].T / math.sqrt(width)
        share = score.exp() / score.exp().sum(dim=-1, keepdim=True)
        heads.append(share @ value[:, part])
    return project("out", torch.cat(heads, dim=-1))


def test_reprogramming_drops_attention_in_training_only() -> None:
    """Functional attention does not read `training` by itself."""
    layer = ReprogrammingLayer(d_model=6, n_heads=3, d_keys=4, d_llm=10, dropout=0.5)
    patches, source = draw(4, 5, 6), draw(7, 10, seed=1)
    assert not torch.equal(layer(patches, source), layer(patches, source))
    layer.eval()
    torch.testing.assert_close(
        layer(patches, source).double(), plain_attention(layer, patches, source), rtol=0, atol=1e-5
    )


# Head and decomposition.


def test_head_flattens_features_then_patches() -> None:
    """The published weights expect [d_ff, P] flattened, not [P, d_ff]."""
    head = FlattenHead(n_features=4 * 3, horizon=5, dropout=0.0)
    states = draw(2, 4, 3)
    flat = torch.tensor(
        [[s[p, f].item() for f in range(3) for p in range(4)] for s in states], dtype=torch.float64
    )
    reference = flat @ head.linear.weight.detach().double().T + head.linear.bias.detach().double()
    torch.testing.assert_close(head(states).double(), reference, rtol=0, atol=1e-6)


def test_head_never_drops_the_forecast_itself() -> None:
    """Dropout behind the last linear map sets whole forecast steps to zero."""
    head = FlattenHead(n_features=12, horizon=200, dropout=0.5)
    assert (head(draw(2, 4, 3)) != 0).all()


@given(kernel=st.integers(1, 30), steps=st.integers(1, 30))
@settings(deadline=None, max_examples=30)
def test_decomposition_is_a_centred_mean_with_repeated_ends(kernel: int, steps: int) -> None:
    """A kernel wider than the sequence, or an even one, shifts the trend or fails."""
    sequence = draw(2, steps, 3)
    season, trend = SeriesDecomposition(kernel)(sequence)
    torch.testing.assert_close(season + trend, sequence, rtol=0, atol=1e-6)
    width = min(kernel - (kernel % 2 == 0), steps - (steps % 2 == 0))
    side = width // 2
    reference = torch.stack(
        [
            torch.stack(
                [sequence.double()[:, min(max(t + o, 0), steps - 1)] for o in range(-side, side + 1)]
            ).mean(dim=0)
            for t in range(steps)
        ],
        dim=1,
    )
    torch.testing.assert_close(trend.double(), reference, rtol=0, atol=1e-6)

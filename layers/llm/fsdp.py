"""The frozen layers of an LLM divided among processes: each keeps its share and gathers a layer to use it.

By torch's ``fully_shard`` on each layer alone (Zhao et al., "PyTorch FSDP", VLDB 2023), whose weights
are gathered before the layer's forward and backward pass and freed after each. Nothing is reduced: the
layers are frozen. What is trained on them (`layers.llm.lora`) stays whole, for
DistributedDataParallel. Every process must make the same number of passes: a gathering waits for all.

`fully_shard` works by hooks on a module's call, which an exception would pass over. A pass that ends
within the LLM (`layers.llm.layers.HasKeys`) therefore ends inside each module as a value, the keys and
values that it was made for, so that the hooks see tensors like any others, and goes on outside of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from layers.llm.layers import HasKeys, KeysValues, PassCache, stack_of


class Ended(NamedTuple):
    """What a module hands over in place of its states where the pass ends in it."""

    keys_values: KeysValues | None
    """What the pass was made for; None where it ended without."""
    cache: PassCache | None
    """Which keeps them."""


def shard_layers(llm: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide the frozen weights of ``llm``'s layers among the processes of ``mesh``, in place.

    Each layer goes to the mesh's device by itself, as this process's share. Word embeddings, what is
    between or behind the layers, and trained weights stay whole, where they are.

    Raises:
        ValueError: the LLM has no stack of layers.
    """
    layers = stack_of(llm, int(llm.config.num_hidden_layers))
    for layer in layers:
        _divide(layer, mesh, whole={weight for weight in layer.parameters() if weight.requires_grad})
    _divide(llm, mesh, whole=set(llm.parameters()))  # nothing more: for the order of the gatherings


def _divide(module: nn.Module, mesh: DeviceMesh, *, whole: set[nn.Parameter]) -> None:
    """`fully_shard` one module, but for the ``whole`` parameters, so that a pass may end in it."""
    module.forward = _ending_inside(module.forward)
    fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    module.register_forward_hook(_end_outside)  # behind its own hook, which frees the weights


def _ending_inside(forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, which hands over an `Ended` where the pass ends in it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return _without_views(forward(*args, **kwargs))
        except HasKeys as end:
            cache = end.cache
        if cache is None or cache.ends_at is None:
            return Ended(None, None)
        keys, values = map(_no_view, cache.kept[cache.ends_at])
        cache.kept[cache.ends_at] = keys, values
        return Ended((keys, values), cache)

    return run


def _without_views(output: Any) -> Any:
    """What a module gives, its states no view: a hook on a view is lost where that is changed in place."""
    if isinstance(output, ModelOutput):
        output["last_hidden_state"] = _no_view(output["last_hidden_state"])
    return output


def _no_view(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.requires_grad and tensor._base is not None else tensor


def _end_outside(module: nn.Module, args: Any, output: Any) -> None:
    """Let a pass that has ended in ``module`` end outside of it too."""
    if isinstance(output, Ended):
        raise HasKeys(output.cache)

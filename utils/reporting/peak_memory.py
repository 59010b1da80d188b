"""How much memory a run will take: written out from its settings, its LLM's sizes and its batch.

The parts are those that outlive a single operation: weights, what training adds to them, and what
autograd keeps of a forward pass. All sizes are bytes. On a CPU they come on top of the interpreter
with its libraries; on a GPU on top of what its driver takes.

Shape legend: S series of a batch, T tokens (prefix, front, tail: see `layers.llm.forward`), P patches, D
model width, d LLM width, C source tokens, V vocabulary, h reprogramming heads, E their width.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import replace as dataclass_replace
from typing import Any, NamedTuple

from torch import nn
from torch.distributed.tensor import DTensor

from utils.config import KEY_SEASONS, SCALE_BASE, Config
from utils.config_checks import ATTENTION_HEADS
from utils.evaluation_batch import windows_per_pass
from utils.process_memory import give_back_freed, resident_bytes
from utils.types import DataBundle

FLOAT, HALF = 4, 2
KEPT_BY_FEED_FORWARD = {"silu": 3, "gelu_new": 4, "gelu_pytorch_tanh": 3}
"""Tensors as wide as the feed-forward part that its activation keeps: silu(gate) * up keeps gate, its silu
and up; GPT-2's tanh written out keeps its input, the tanh, and both factors of the last product."""
KEPT_OTHERWISE = 2
FUSED_MAPS = frozenset({"c_attn", "query_key_value", "qkv_proj", "Wqkv"})
"""Names of the map that makes queries, keys and values at once: GPT-2's, GPT-NeoX's and Falcon's, Phi-3's."""
SOFTMAX_COPIES = 3
"""Attention with dropout keeps the softmax, the mask, and their product."""
SEARCH_BLOCK = 32768
"""As `layers.retrieval.search`."""
SEARCH_BYTES = 20
"""Of one query and row in a block of the search: scores, their mask, what they are made of."""
SEARCH_COPIES = 3
"""Of a block's keys: in float32, less their centre, squared."""
PLACE = 24
"""Bytes of a row's series, variable and start."""
ENCODER_COPIES = 14
"""Tensors of a key's width that one layer of the retrieval encoder keeps of a token."""
TREND_COPIES = 34
"""Tensors of the model's width that one scale of TAPR keeps of a patch."""
GATHERED = 3
"""Layers that are there in whole where they are divided: the one in use, as it came and as it is used,
and the next as it comes."""
PATCH_COPIES = 6
NEIGHBOUR_COPIES = 8
PACKED, GAPS = 70e6, 1.1
"""What a CPU takes in training beside the tensors (measured): its kernels' packed copies, and the gaps
that its allocator leaves between freed blocks, a share."""


class Tokens(NamedTuple):
    """The sequence that one series makes."""

    prefix: int
    """Computed once for all."""
    front: int
    """Before the tail."""
    tail: int
    """Whose last states are read."""
    trained_front: bool
    """Whether a gradient flows through the front."""


class LLMSizes(NamedTuple):
    """What the formula needs of a frozen LLM."""

    layers: int
    width: int
    vocabulary: int
    heads: int
    attention: int
    """Heads times their width."""
    keys: int
    """Key-value heads times their width."""
    layer_weights: int
    """Entries of all weights of one layer."""
    inner: int
    """Width of the feed-forward part."""
    inner_copies: int
    weights: int
    """Bytes of all weights."""
    weight: int
    """Bytes of one, which are those of an activation too."""
    adapted: int = 0
    """Entries that the adapters of one layer keep of a token: their inputs, and what is between."""
    adapter_weights: int = 0
    """Entries of the adapters of one layer."""
    fused: bool = False
    """Whether one map makes queries, keys and values: while a part of what it gave is kept, all of it is."""
    processes: int = 1
    """Among which the layers are divided (``--shard_llm``)."""
    saved: int = 0
    """Bytes by which one layer takes less, its maps kept otherwise (``--llm_weights``)."""
    largest: int = 0
    """Entries of the largest map that is kept otherwise, which is there in whole while it is used."""

    @property
    def layer_bytes(self) -> int:
        """Of one whole layer."""
        return self.layer_weights * self.weight - self.saved

    @property
    def held(self) -> float:
        """Bytes of the weights that a process keeps: of divided layers its share."""
        return self.weights - self.layers * self.layer_bytes * (1 - 1 / self.processes)

    @property
    def gathered(self) -> float:
        """Bytes that are there in whole for a pass: of layers that are divided, of a map kept otherwise."""
        return GATHERED * self.layer_bytes if self.processes > 1 else float(FLOAT * self.largest)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of a training step, or of an evaluation's batch, at its peak, by what holds them."""

    weights: float
    """Frozen and trained."""
    optimizer: float
    """Two moments of each trained weight."""
    gradients: float
    """Beyond the room that the passes have given back by then."""
    rows: float
    """Of the retrieval memory."""
    search: float
    """In them, beyond the room that the passes take later."""
    llm: float
    """What the LLM's pass keeps."""
    reprogramming: float
    """Attention to the source tokens, and the other trained parts."""

    @property
    def total(self) -> float:
        """The sum."""
        return sum(asdict(self).values())

    @property
    def to_come(self) -> float:
        """All but weights and rows: what a model that is built still needs."""
        return self.total - self.weights - self.rows


@dataclass(frozen=True)
class MemorySizes:
    """All that the formula reads."""

    config: Config
    llm: LLMSizes | None
    """None where the model has no LLM."""
    prompt: tuple[int, int]
    """Tokens of the constant part of a prompt and of the rest."""
    kind: str
    """The LLM's pass: causal, bidirectional or plain."""
    variables: int
    """Series of one window in a training pass; in evaluation `forecast`."""
    forecast: int
    memory_rows: int
    trained: float
    """Bytes of the trained weights."""
    on_gpu: bool = False

    def tokens(self) -> Tokens:
        """The sequence of one series, as the model's pass divides it."""
        constant, rest = self.prompt
        adapted = self.config.llm.peft != "none"
        modules = self.config.tapr.use_tapr + 2 * self.config.gram.use_gram
        patches = self.config.patch_count
        if self.kind != "causal":
            return Tokens(0, 0, constant + rest + modules + patches, False)
        if self.config.backbone.token_order == "prompt_first" or not modules:
            return Tokens(constant, rest, modules + patches, adapted)
        return Tokens(0, modules + constant + rest, patches, True)

    def replace(self, **settings: Any) -> MemorySizes:
        """The same run with other settings.

        Raises:
            ConfigError: settings that do not fit the others.
        """
        config = self.config.replace(**settings)
        trained = self.trained + FLOAT * (
            trained_weights(config, self.llm) - trained_weights(self.config, self.llm)
        )
        llm = self.llm
        if llm is not None and "llm_layers" in settings:
            fewer = llm.layers - settings["llm_layers"]
            left = llm.weights - fewer * llm.layer_bytes
            llm = llm._replace(layers=settings["llm_layers"], weights=left)
        if llm is not None and settings.get("mixed_precision", "no") != "no":
            kept = llm.layers * llm.layer_bytes if llm.saved else 0
            saved = llm.layer_weights * HALF - llm.layer_bytes if llm.saved else 0
            halved = kept + (llm.weights - kept) * HALF // llm.weight
            llm = llm._replace(weight=HALF, weights=halved, saved=saved)
        return dataclass_replace(self, config=config, llm=llm, trained=trained)


def trained_weights(config: Config, llm: LLMSizes | None) -> float:
    """How many weights the Time-LLM parts train; those of TAPR and GRA-M are left out."""
    if llm is None:
        return 0.0
    b, width = config.backbone, config.backbone.n_heads * config.backbone.d_ff
    source = b.num_tokens * (llm.vocabulary + 1 if b.source_tokens == "mapping" else llm.width)
    reprogramming = width * (b.d_model + 1 + 2 * (llm.width + 1)) + llm.width * (width + 1)
    embedding = 3 * b.patch_len * b.d_model
    head = config.data.pred_len * (b.d_ff * config.patch_count + 1)
    adapters = config.llm.llm_layers * llm.adapter_weights
    return float(source + reprogramming + embedding + head + adapters)


def training_memory(sizes: MemorySizes) -> MemoryEstimate:
    """What a training step holds at its peak."""
    series = sizes.config.training.batch_size * sizes.variables
    kept = _llm_training(sizes, series)
    others = _reprogramming(sizes, series, training=True) + _modules(sizes, series)
    estimate = _estimate(sizes, series, llm=kept, others=others)
    return dataclass_replace(
        estimate, optimizer=2 * sizes.trained, gradients=max(0.0, sizes.trained - kept - others)
    )


def evaluation_memory(sizes: MemorySizes) -> MemoryEstimate:
    """What one batch of an evaluation holds at its peak, before any training."""
    windows = windows_per_pass(sizes.config, forecast=sizes.forecast, on_gpu=sizes.on_gpu)
    series = windows * sizes.forecast
    others = _reprogramming(sizes, series, training=False)
    return _estimate(sizes, series, llm=_llm_evaluation(sizes, series), others=others)


def _estimate(sizes: MemorySizes, series: int, *, llm: float, others: float) -> MemoryEstimate:
    """What passes of any kind hold: ``llm`` and ``others`` of the passes themselves."""
    return MemoryEstimate(
        weights=sizes.trained + (sizes.llm.held if sizes.llm else 0),
        optimizer=0.0,
        gradients=0.0,
        rows=_rows(sizes),
        search=max(0.0, _search(sizes, series) - llm - others),
        llm=llm,
        reprogramming=others,
    )


def _by_products(sizes: MemorySizes) -> bool:
    """Whether attention is by matrix products, which keep their softmax; see `layers.llm.attention`."""
    return not sizes.on_gpu and sizes.kind != "plain"


def _kept_by_layer(llm: LLMSizes) -> float:
    """What autograd keeps of one token in one layer, its keys and values left out.

    Two norms keep their input in float32, attention its queries and result, the feed-forward part
    what its activation needs; frozen linear maps keep nothing, adapters their inputs.
    """
    kept = 2 * llm.attention + llm.inner_copies * llm.inner + llm.adapted
    return 2 * FLOAT * llm.width + llm.weight * kept


def _keys_kept(sizes: MemorySizes, llm: LLMSizes, queries: int, past: int) -> float:
    """Keys and values that one layer's attention keeps of one series, for these tokens and those before.

    Those before are joined to the tokens' own in a new tensor. The fused attention keeps a copy of shared
    ones for every head, in place of them.
    """
    every = past + queries
    if not _by_products(sizes) and llm.attention != llm.keys:
        return 2 * llm.weight * every * llm.attention
    kept = 2 * every * llm.keys
    if llm.fused and not _by_products(sizes) and past:  # the queries are kept, and with them all three
        kept += 2 * queries * llm.keys
    if llm.fused and _by_products(sizes) and not past:  # queries are copied there, and stay beside the keys
        kept += queries * llm.attention
    return llm.weight * kept


def _llm_training(sizes: MemorySizes, series: int) -> float:
    """What all layers keep for the backward pass, and the most that is there beside it.

    That is either what the tail's pass found before it (the keys and values of the tokens before the
    tail, until its forward pass is over), or one layer's gradients. Where layers are computed again, they
    keep their inputs and what was found, and one of them is there in full.
    """
    llm = sizes.llm
    if llm is None:
        return 0.0
    n = sizes.tokens()
    every, past, gathered = sum(n[:3]), n.prefix + n.front, llm.gathered
    maps = llm.heads if _by_products(sizes) else 1
    trained_front = n.front * n.trained_front
    of_tail, of_front = n.tail * _kept_by_layer(llm), trained_front * _kept_by_layer(llm)
    of_tail += _keys_kept(sizes, llm, n.tail, past)
    if trained_front:
        of_front += _keys_kept(sizes, llm, n.front, n.prefix)
    maps_of_tail, maps_of_front = (llm.weight * maps * k for k in (n.tail * every, trained_front**2))
    found = 2.0 * llm.layers * past * llm.weight * llm.keys
    one_layer = (n.tail + trained_front) * _kept_by_layer(llm)
    # of a prefix one copy serves all series; where it is trained it is kept like any other token
    of_prefix = n.prefix * n.trained_front * llm.layers * _kept_by_layer(llm)
    if not sizes.config.training.gradient_checkpointing:
        # the last layer reads the tail alone; what attention keeps of the front it has found
        kept = llm.layers * (of_tail + maps_of_tail) + (llm.layers - 1) * (of_front + maps_of_front)
        shared = not _by_products(sizes) and llm.attention != llm.keys
        beside = found if shared or not trained_front else 0.0
        return series * (kept + max(beside, one_layer)) + of_prefix + gathered
    inputs = llm.layers * llm.weight * llm.width * (n.tail + trained_front)
    again = max(of_tail + maps_of_tail, of_front + maps_of_front)
    if _by_products(sizes):  # a CPU's process was measured to hold every layer's own keys and values too
        again += 2.0 * llm.layers * every * llm.weight * llm.keys
    return series * (found + inputs + again + one_layer) + gathered


def _llm_evaluation(sizes: MemorySizes, series: int) -> float:
    """Keys and values of all layers, and what the widest pass through one of them holds."""
    llm = sizes.llm
    if llm is None:
        return 0.0
    n = sizes.tokens()
    keys = llm.layers * sum(n[:3]) * llm.weight * 2 * llm.keys
    widest = max(n.front, n.tail) if llm.layers > 1 else n.tail  # the last layer reads the tail alone
    one_layer = widest * (_kept_by_layer(llm) + llm.weight * llm.inner)
    one_layer += _keys_kept(sizes, llm, n.tail, n.prefix + n.front)
    return series * (keys + one_layer) + llm.gathered


def _reprogramming(sizes: MemorySizes, series: int, *, training: bool) -> float:
    """Patches, their attention to the source tokens, and in half precision a copy of the mapping.

    The attention's own matrix is there head by head, once the LLM's part has been freed.
    """
    llm, b = sizes.llm, sizes.config.backbone
    if llm is None:
        return 0.0
    low = llm.weight
    width, queries = b.n_heads * b.d_ff, series * sizes.config.patch_count
    held = float(queries * FLOAT * (4 * b.patch_len + PATCH_COPIES * b.d_model + 3 * b.d_ff))
    held += queries * (3 * low * width + FLOAT * llm.width)
    held += b.num_tokens * FLOAT * (llm.width + 3 * width)
    if not training and b.source_tokens == "mapping" and low < FLOAT:
        held += low * b.num_tokens * llm.vocabulary
    return held


def _modules(sizes: MemorySizes, series: int) -> float:
    """What TAPR and GRA-M keep for the backward pass."""
    c, patches = sizes.config, sizes.config.patch_count
    held = 0.0
    if c.tapr.use_tapr:
        for coarser in (-(-patches // SCALE_BASE**i) for i in range(c.tapr.n_scales)):
            attention = SOFTMAX_COPIES * ATTENTION_HEADS * coarser * coarser
            held += TREND_COPIES * coarser * c.backbone.d_model + attention
    if c.gram.use_gram:
        held += c.gram.neighbours * (
            2 * _key_width(c) + 2 * c.data.pred_len + NEIGHBOUR_COPIES * c.backbone.d_model
        )
    if c.gram.use_gram and c.gram.retrieval_key != "raw":
        held += 2 * ENCODER_COPIES * (c.data.seq_len // c.backbone.patch_len + 1) * c.gram.d_repr
    return series * FLOAT * held


def _rows(sizes: MemorySizes) -> float:
    """Keys, what came after them, and where they are."""
    c = sizes.config
    number = HALF if c.gram.memory_dtype == "fp16" else FLOAT
    return float(sizes.memory_rows * (number * (_key_width(c) + c.data.pred_len) + PLACE))


def _search(sizes: MemorySizes, series: int) -> float:
    """A block of the search among the rows, and copies of its keys."""
    keys = SEARCH_COPIES * FLOAT * _key_width(sizes.config)
    block = min(sizes.memory_rows, SEARCH_BLOCK)
    return float(block * (series * SEARCH_BYTES + keys))


def _key_width(config: Config) -> int:
    """Width of a retrieval key."""
    g = config.gram
    raw = min(KEY_SEASONS * (config.data.season or 24), config.data.seq_len)
    learned = g.d_repr + g.d_repr // 4
    return {"raw": raw, "learned": learned}.get(g.retrieval_key, raw + learned)


# From a model that is built.


def sizes_of(model: Any, *, config: Config, forecast: int, on_gpu: bool = False) -> MemorySizes:
    """What the formula needs, read off a model.

    Args:
        model: the run's, unwrapped.
        config: the run's, which may have another batch size than the model was built with.
        forecast: variables that are forecast: the series of a window. ``--max_channels_per_step`` takes
            so many of them at a time.
        on_gpu: whether it computes on a GPU.
    """
    forecast = min(forecast, config.training.max_channels_per_step or forecast)
    variables = 1 if config.data.channel_sampling == "single" else forecast
    llm = llm_sizes(model.llm_model) if hasattr(model, "llm_model") else None
    retrieves = config.gram.use_gram and hasattr(model, "gram")
    divided = llm is not None and (model._pass.kind != "causal" or model._pass.reuses_prefix)
    kept = model.prompt.n_constant if divided else 0
    return MemorySizes(
        config=config,
        llm=llm,
        prompt=(kept, model.prompt.width - kept) if llm else (0, 0),
        kind=model._pass.kind if llm else "plain",
        variables=variables,
        forecast=forecast,
        memory_rows=len(model.memory.places.start) if retrieves else 0,
        trained=float(sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)),
        on_gpu=on_gpu,
    )


def llm_sizes(llm: Any) -> LLMSizes:
    """Sizes of a transformers model, whose weights may be anywhere, or nowhere."""
    words = llm.get_input_embeddings().weight
    width = _setting(llm.config, "hidden_size", "d_model", default=words.shape[1])
    layers = _setting(llm.config, "num_hidden_layers", default=1)
    heads = _setting(llm.config, "num_attention_heads", default=max(1, width // 64))
    head = _setting(llm.config, "head_dim", default=max(1, width // heads))
    inner = _setting(llm.config, "intermediate_size", "n_inner", default=4 * width)
    activation = getattr(llm.config, "hidden_act", None) or getattr(llm.config, "activation_function", "")
    stack = next((m for m in llm.modules() if isinstance(m, nn.ModuleList) and len(m) == layers), [llm])
    frozen = [p for p in llm.parameters() if not p.requires_grad]
    layer, in_layer = frozen_entries(stack[0]), [p for p in stack[0].parameters() if not p.requires_grad]
    kept = [part.in_features * part.out_features for part in llm.modules() if hasattr(part, "kept")]
    return LLMSizes(
        layers=layers,
        width=width,
        vocabulary=words.shape[0],
        heads=heads,
        attention=heads * head,
        keys=_setting(llm.config, "num_key_value_heads", default=heads) * head,
        layer_weights=layer,
        inner=inner,
        inner_copies=KEPT_BY_FEED_FORWARD.get(str(activation), KEPT_OTHERWISE),
        weights=sum(p.numel() * p.element_size() for p in frozen),
        weight=words.element_size(),
        adapted=_kept_by_adapters(stack[0]),
        adapter_weights=sum(p.numel() for p in stack[0].parameters() if p.requires_grad),
        fused=any(name.rpartition(".")[2] in FUSED_MAPS for name, _ in stack[0].named_modules()),
        processes=max((p.device_mesh.size() for p in frozen if isinstance(p, DTensor)), default=1),
        saved=layer * words.element_size() - sum(p.nbytes for p in in_layer) if kept else 0,
        largest=max(kept, default=0),
    )


def frozen_entries(module: nn.Module) -> int:
    """Frozen weights; of a map that is kept otherwise (`layers.llm.kept`) as many as it stands for."""
    kept: list[Any] = [part for part in module.modules() if hasattr(part, "kept")]
    stored = sum(p.numel() for part in kept for p in (part.kept, part.scale) if p is not None)
    others = sum(p.numel() for p in module.parameters() if not p.requires_grad) - stored
    return others + sum(part.in_features * part.out_features for part in kept)


def _setting(settings: Any, *names: str, default: int) -> int:
    """The first of a config's numbers that it tells; one that differs from layer to layer it may not tell."""
    for name in names:
        with suppress(AttributeError, RuntimeError):
            value = getattr(settings, name)
            if type(value) is int and value > 0:
                return value
    return default


def _kept_by_adapters(layer: nn.Module) -> int:
    """Entries of a token: each input once that adapters share, and what is between their two matrices."""
    inputs: set[tuple[str, int]] = set()
    between = 0
    for name, part in layer.named_modules():
        for adapter in getattr(part, "lora_A", {}).values():
            inputs.add((name.rpartition(".")[0], adapter.in_features))
            between += adapter.out_features
    return between + sum(width for _, width in inputs)


def expected_peaks(config: Config, data: DataBundle, model: Any, *, on_gpu: bool) -> tuple[float, float]:
    """Bytes at the peak of a training step, and of an evaluation, of a model that is built.

    On a CPU it is the whole process: what it holds now, and what the formula adds.
    """
    forecast = len(data.targets)
    sizes = sizes_of(model, config=config, forecast=forecast, on_gpu=on_gpu)
    estimates = training_memory(sizes), evaluation_memory(sizes)
    if on_gpu:
        return estimates[0].total, estimates[1].total
    give_back_freed()  # what loading and building have left is not taken again
    now = resident_bytes()
    return now + taken_by_cpu(estimates[0]), now + estimates[1].to_come


def taken_by_cpu(training: MemoryEstimate) -> float:
    """Bytes that a CPU's process takes for a training step, once the model is built."""
    return PACKED + GAPS * training.to_come

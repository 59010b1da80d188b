"""The rows of GRA-M's memory: built from the training windows, encoded, saved and loaded.

Shape legend: M memory rows, K width of a key, L lookback, H horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from layers.retrieval.keys import WindowKeys, mean_key
from layers.retrieval.search import MemoryRows, Rows
from utils.config import GRAMConfig
from utils.errors import UserError
from utils.types import WindowSource

log = logging.getLogger(__name__)
BUILD_BLOCK = 1024
"""Training rows read, and on a GPU encoded, at once while the memory is built or refreshed."""
ENCODED = 128
"""Rows encoded at once on a CPU: their tokens stay in its cache, at half the time."""
MANY_ROWS = 50_000
"""More take seconds, for which there is a bar."""
NOWHERE = 2**62
"""Beyond every row of a series, and so far from the largest number that differences hold."""
COLUMNS = ("memory_keys", "memory_values", "memory_series", "memory_variable", "memory_start")
"""What a row of the memory is made of."""


class RetrievalMemory(nn.Module):
    """Rows of one variable of one training window each: key, future less its last value, and place."""

    memory_keys: Tensor
    memory_values: Tensor
    memory_series: Tensor
    memory_variable: Tensor
    memory_start: Tensor
    distance_scale: Tensor
    key_centre: Tensor

    def __init__(
        self,
        config: GRAMConfig,
        *,
        seq_len: int,
        horizon: int,
        patch_len: int,
        season: int,
        apart: int = 0,
    ) -> None:
        """An empty memory; `build` fills it. ``apart`` as in `layers.retrieval.search.admissible`."""
        super().__init__()
        self.config = config
        self.span = seq_len + horizon
        self.horizon = horizon
        self.season, self.apart = season, apart
        self.keys = WindowKeys(config, seq_len=seq_len, patch_len=patch_len, season=season)
        kind = torch.float16 if config.memory_dtype == "fp16" else torch.float32
        self.register_buffer("memory_keys", torch.empty(0, sum(self.keys.widths), dtype=kind))
        self.register_buffer("memory_values", torch.empty(0, horizon, dtype=kind))
        for name in COLUMNS[2:]:
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        self.register_buffer("distance_scale", torch.ones(len(self.keys.widths)))
        self.register_buffer("key_centre", torch.zeros(sum(self.keys.widths)), persistent=False)

    @torch.no_grad()
    def build(self, source: WindowSource, *, generator: torch.Generator) -> int:
        """Fill the memory with rows drawn at random, without repetition, from the training windows.

        Returns how many.
        """
        wanted, device = self.config.memory_size, self.memory_keys.device
        count = source.num_rows if wanted == "all" else min(int(wanted), source.num_rows)
        chosen = torch.randperm(source.num_rows, generator=generator)[:count].sort().values
        self.memory_keys = self.memory_keys[:0]
        self.memory_values = self.memory_values.new_empty((count, self.horizon))
        places = torch.empty(3, count, dtype=torch.int64, device=device)
        for rows in _in_blocks(count, "retrieval memory: futures"):
            block = source.rows(chosen[rows])
            self.memory_values[rows] = _stored(block.future - block.lookback[:, -1:], self.memory_values)
            places[:, rows] = torch.stack([block.series_id, block.variable, block.start]).to(device)
        self.memory_series, self.memory_variable, self.memory_start = places.unbind()
        self._encode(source)
        return count

    def unmatched_share(self, source: WindowSource) -> float:
        """Share of the training rows for which the memory holds no admissible row."""
        return unmatched_share(
            self.contents.places,
            source,
            span=self.span,
            same_variable=self.config.retrieval_scope == "variable",
        )

    @torch.no_grad()
    def refresh(self, source: WindowSource) -> None:
        """Compute every key anew, where encoders that learn made them; lookbacks are read again.

        Raises:
            ValueError: the memory was built from another series than ``source`` reads.
        """
        if not source.holds(self.memory_series):
            raise UserError(
                "the retrieval memory was built from another series; --build_memory builds it from this one"
            )
        if self.config.retrieval_key != "raw":
            self._encode(source)

    def _encode(self, source: WindowSource) -> None:
        """Make the keys, and what is counted over all of them."""
        device, count = self.memory_keys.device, len(self.memory_start)
        self.memory_keys = self.memory_keys.new_empty((count, self.memory_keys.shape[1]))
        with torch.autocast(device.type, enabled=False):
            for rows in _in_blocks(count, "retrieval memory: keys"):
                lookback = source.lookbacks(
                    series_id=self.memory_series[rows].cpu(),
                    variable=self.memory_variable[rows].cpu(),
                    start=self.memory_start[rows].cpu(),
                )
                parts = lookback.to(device).split(ENCODED if device.type == "cpu" else BUILD_BLOCK)
                keys = torch.cat([self.keys(part) for part in parts])
                self.memory_keys[rows] = _stored(keys, self.memory_keys)
        self.distance_scale = self.keys.mean_distances(self.memory_keys)
        self.key_centre = mean_key(self.memory_keys).float()

    @property
    def contents(self) -> MemoryRows:
        """All that is remembered."""
        return MemoryRows(
            self.memory_keys,
            self.memory_values,
            Rows(self.memory_series, self.memory_variable, self.memory_start),
        )

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A memory of any size, of values any width."""
        values = state_dict.get(prefix + "memory_values")
        if values is not None:
            if values.dim() == 3:  # [M, H, D]: each future copied to the model's width
                values = values.mean(dim=-1)
            state_dict[prefix + "memory_values"] = self._resize_last_dim(values, self.horizon)
        keys = state_dict.get(prefix + COLUMNS[0])
        make_room(self, COLUMNS, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if keys is not None and keys.shape[1:] == self.memory_keys.shape[1:]:
            self.key_centre = mean_key(keys.to(self.memory_keys.dtype)).to(self.key_centre)

    @staticmethod
    def _resize_last_dim(tensor: Tensor, target_dim: int) -> Tensor:
        """The tensor [..., D] with its last dimension resampled linearly to ``target_dim``."""
        if tensor.shape[-1] == target_dim:
            return tensor
        flat = tensor.reshape(-1, 1, tensor.shape[-1]).float()
        resized = F.interpolate(flat, size=target_dim, mode="linear", align_corners=True)
        return resized.reshape(*tensor.shape[:-1], target_dim).to(tensor.dtype)


@torch.no_grad()
def unmatched_share(places: Rows, source: WindowSource, *, span: int, same_variable: bool) -> float:
    """Share of the training rows for which none of a memory's ``places`` is admissible; ``span`` = L + H."""
    series, variable, start = (column.cpu() for column in places)
    if (series != series[:1]).any():  # every row may see those of another series
        return 0.0
    if not same_variable:
        variable = torch.zeros_like(variable)
    lowest = torch.full((source.num_variables,), NOWHERE).scatter_reduce_(0, variable, start, "amin")
    highest = torch.full((source.num_variables,), -NOWHERE).scatter_reduce_(0, variable, start, "amax")
    unmatched = 0
    for wanted in range(source.num_variables):
        first = int(source.rows(torch.tensor([wanted * source.num_windows])).start)
        windows = torch.arange(first, first + source.num_windows)
        held = wanted if same_variable else 0
        apart = (windows - lowest[held] >= span) | (highest[held] - windows >= span)
        unmatched += int((~apart).sum())
    return unmatched / source.num_rows


def make_room(module: nn.Module, names: Iterable[str], state_dict: Mapping[str, Any], prefix: str) -> None:
    """Give these buffers as many rows as ``state_dict`` has of them, so that it can be loaded."""
    for name in names:
        stored = state_dict.get(prefix + name)
        if stored is not None:
            current = getattr(module, name)
            setattr(module, name, current.new_empty((len(stored), *current.shape[1:])))


def _stored(rows: Tensor, like: Tensor) -> Tensor:
    """``rows`` in the memory's numbers; what they can not hold becomes the largest that they can."""
    largest = torch.finfo(like.dtype).max
    return rows.clamp(-largest, largest).to(like)


def _in_blocks(count: int, what: str) -> Iterator[slice]:
    """``count`` rows in blocks; many with a bar, on the process that speaks."""
    hidden = None if count > MANY_ROWS and log.isEnabledFor(logging.INFO) else True
    for begin in tqdm(range(0, count, BUILD_BLOCK), desc=what, unit="block", leave=False, disable=hidden):
        yield slice(begin, min(begin + BUILD_BLOCK, count))

"""The rows of GRA-M's memory: built from the training windows, encoded, saved and loaded, whole or in parts.

Shape legend: M memory rows, R of them held by this process, K width of a key, L lookback, H horizon.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from layers.retrieval_keys import WindowKeys, mean_key
from layers.retrieval_parts import Division
from layers.retrieval_search import NOWHERE, Rows, extremes
from utils.config import GRAMConfig
from utils.errors import UserError
from utils.types import WindowSource

log = logging.getLogger(__name__)
BUILD_BLOCK = 1024
"""Training rows encoded at once while the memory is built or refreshed."""
MANY_ROWS = 50_000
"""More take seconds, for which there is a bar."""
COLUMNS = ("memory_keys", "memory_values", "memory_series", "memory_variable", "memory_start")
"""What a row of the memory is made of."""


class RetrievalMemory(nn.Module):
    """Rows of one variable of one training window each: key, future less its last value, and place.

    Several processes may divide the rows (`divide`); then every process must call what it calls.
    """

    memory_keys: Tensor
    memory_values: Tensor
    memory_series: Tensor
    memory_variable: Tensor
    memory_start: Tensor
    distance_scale: Tensor
    key_centre: Tensor

    def __init__(
        self, config: GRAMConfig, *, seq_len: int, horizon: int, patch_len: int, season: int
    ) -> None:
        """An empty memory; `build` fills it."""
        super().__init__()
        self.config = config
        self.division = Division()
        self.span = seq_len + horizon
        self.horizon = horizon
        self.season = season
        self.keys = WindowKeys(config, seq_len=seq_len, patch_len=patch_len, season=season)
        kind = torch.float16 if config.memory_dtype == "fp16" else torch.float32
        self.register_buffer("memory_keys", torch.empty(0, sum(self.keys.widths), dtype=kind))
        self.register_buffer("memory_values", torch.empty(0, horizon, dtype=kind))
        for name in COLUMNS[2:]:
            self.register_buffer(name, torch.empty(0, dtype=torch.int64))
        self.register_buffer("distance_scale", torch.ones(len(self.keys.widths)))
        self.register_buffer("key_centre", torch.zeros(sum(self.keys.widths)), persistent=False)

    def divide(self, division: Division) -> None:
        """From here on hold this process's part of the rows; those that every process holds are divided.

        `state_dict` then leaves the rows out, which `gathered` has.
        """
        self.division = division
        for name in COLUMNS:
            rows = getattr(self, name)
            setattr(self, name, rows[division.part(len(rows))].clone())

    @torch.no_grad()
    def build(self, source: WindowSource, *, generator: torch.Generator) -> int:
        """Fill the memory with rows drawn at random, without repetition, from the training windows.

        Returns how many, over all processes.
        """
        wanted = self.config.memory_size
        whole = source.num_rows if wanted == "all" else min(int(wanted), source.num_rows)
        chosen = torch.randperm(source.num_rows, generator=generator)[:whole].sort().values
        chosen = chosen[self.division.part(whole)].clone()
        count, device = len(chosen), self.memory_keys.device
        self.memory_keys = self.memory_keys[:0]
        self.memory_values = self.memory_values.new_empty((count, self.horizon))
        places = torch.empty(3, count, dtype=torch.int64, device=device)
        for rows in _in_blocks(count, "retrieval memory: futures"):
            block = source.rows(chosen[rows])
            self.memory_values[rows] = _stored(block.future - block.lookback[:, -1:], self.memory_values)
            places[:, rows] = torch.stack([block.series_id, block.variable, block.start]).to(device)
        self.memory_series, self.memory_variable, self.memory_start = places.unbind()
        self._check_source(source)
        self._encode(source)
        return whole

    @torch.no_grad()
    def unmatched_share(self, source: WindowSource) -> float:
        """Share of the training rows for which the memory holds no admissible row."""
        every_variable = self.config.retrieval_scope == "all"
        places, variables = self._places, source.num_variables
        if every_variable:
            places, variables = places._replace(variable=torch.zeros_like(places.variable)), 1
        lowest, inverted = self.division.lowest(extremes(places, variables)).cpu()
        if lowest[-1] != ~inverted[-1]:  # every row may see those of another series
            return 0.0
        unmatched = 0
        for wanted in range(source.num_variables):
            first_row = torch.tensor([wanted * source.num_windows])
            first = int(source.rows(first_row).start)
            own = 0 if every_variable else wanted
            if lowest[own] == NOWHERE:
                unmatched += source.num_windows
                continue
            windows = torch.arange(first, first + source.num_windows)
            apart = (windows - lowest[own] >= self.span) | (~inverted[own] - windows >= self.span)
            unmatched += int((~apart).sum())
        return unmatched / source.num_rows

    @torch.no_grad()
    def refresh(self, source: WindowSource) -> None:
        """Compute every key anew, where encoders that learn made them; lookbacks are read again.

        Raises:
            ValueError: the memory was built from another series than ``source`` reads.
        """
        self._check_source(source)
        if self.config.retrieval_key != "raw":
            self._encode(source)

    def _check_source(self, source: WindowSource) -> None:
        """Raise ValueError, in all processes alike, where a row is not of ``source``."""
        held = torch.tensor(int(source.holds(self.memory_series)), device=self.memory_series.device)
        if not self.division.lowest(held):
            raise UserError(
                "the retrieval memory was built from another series; --build_memory builds it from this one"
            )

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
                self.memory_keys[rows] = _stored(self.keys(lookback.to(device)), self.memory_keys)
        self.distance_scale = self.keys.mean_distances(self.memory_keys, total=self.division.total)
        self.key_centre = mean_key(self.memory_keys, total=self.division.total).float()

    @property
    def _places(self) -> Rows:
        return Rows(self.memory_series, self.memory_variable, self.memory_start)

    def gathered(self) -> dict[str, Tensor]:
        """Of a divided memory the whole, as it stands in a checkpoint, on the first process's CPU.

        Elsewhere, and where nothing is divided, it is empty.
        """
        if self.division.processes == 1:
            return {}
        columns = {name: self.division.gathered(getattr(self, name)) for name in COLUMNS}
        return {name: rows for name, rows in columns.items() if rows is not None}

    def rows_in_all(self) -> int:
        """Rows of the whole memory."""
        return int(self.division.total(torch.tensor(len(self.memory_start), device=self.memory_start.device)))

    def divided_bytes(self) -> int:
        """Bytes of a divided memory's rows, all parts together; 0 of one that is not divided."""
        if self.division.processes == 1:
            return 0
        own = sum(getattr(self, name).nbytes for name in COLUMNS)
        return int(self.division.total(torch.tensor(own, device=self.memory_start.device)))

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """A part of the memory is not saved: it would be taken for a whole one."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.division.processes > 1:
            for name in COLUMNS:
                del destination[prefix + name]

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Of a whole memory of any size take what this process holds, of values any width."""
        values = state_dict.get(prefix + "memory_values")
        if values is not None:
            if values.dim() == 3:  # [M, H, D]: each future copied to the model's width
                values = values.mean(dim=-1)
            state_dict[prefix + "memory_values"] = self._resize_last_dim(values, self.horizon)
        keys = state_dict.get(prefix + COLUMNS[0])
        for name in COLUMNS:
            stored = state_dict.get(prefix + name)
            if stored is not None:
                own = state_dict[prefix + name] = stored[self.division.part(len(stored))]
                current = getattr(self, name)
                setattr(self, name, current.new_empty((len(own), *current.shape[1:])))
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


def _stored(rows: Tensor, like: Tensor) -> Tensor:
    """``rows`` in the memory's numbers; what they can not hold becomes the largest that they can."""
    largest = torch.finfo(like.dtype).max
    return rows.clamp(-largest, largest).to(like)


def _in_blocks(count: int, what: str) -> Iterator[slice]:
    """``count`` rows in blocks; many with a bar, on the process that speaks."""
    hidden = None if count > MANY_ROWS and log.isEnabledFor(logging.INFO) else True
    for begin in tqdm(range(0, count, BUILD_BLOCK), desc=what, unit="block", leave=False, disable=hidden):
        yield slice(begin, min(begin + BUILD_BLOCK, count))

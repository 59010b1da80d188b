"""A retrieval memory divided among the processes of a run, searched as one.

Each process holds a part of the rows; their numbers are those of the whole memory. A search is made by all
processes together: what each asks for goes to all, each searches its part for every one of them, and what
it found goes back to who asked, who takes the best. So every process must search as often as the others: one
that has nothing to ask for takes part by `Division.help_others`.

Shape legend: S queries, K width of a key, k neighbours, H horizon.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from layers.retrieval_search import Candidates, Queries, Rows, merged

EMPTY = "the retrieval memory is empty: build it, or load a checkpoint that has one"
SENT_AT_ONCE = 32768
"""Rows that go to the first process at once, for a checkpoint."""
SearchPart = Callable[[Sequence[Queries], int, int], list[Candidates]]
"""(sets of queries, first row held, rows of the whole memory) to what the part has for each set."""


@dataclass(frozen=True)
class Division:
    """Which process this is, of how many that divide a memory; one holds all of it."""

    index: int = 0
    processes: int = 1
    together: bool = True
    """False: searches look at this process's part alone, and nobody else takes part."""

    def part(self, count: int) -> slice:
        """The rows of ``count`` that this process holds: as many as each other, or one more."""
        return slice(count * self.index // self.processes, count * (self.index + 1) // self.processes)

    # What every process must call.

    def search(self, queries: Queries, held: int, search_part: SearchPart) -> Candidates:
        """The best rows of the whole memory for the queries of this process, which holds ``held`` rows.

        Raises:
            RuntimeError: no process holds a row.
        """
        if self.processes == 1 and not held:
            raise RuntimeError(EMPTY)
        if self.processes == 1 or not self.together:
            return search_part([queries], 0, held)[0]
        found = self._search_together(queries, held, search_part, asks=True)
        assert found is not None
        return found

    def help_others(self, none: Queries, held: int, search_part: SearchPart) -> None:
        """Take part in the searches of others until all processes are here; ``none`` are no queries."""
        if self.processes == 1:
            return
        while self._search_together(none, held, search_part, asks=False) is not None:
            pass

    def total(self, own: Tensor) -> Tensor:
        """The sum over the processes, added up in their order: the same number in each."""
        return own if self.processes == 1 else self._all(own).sum(dim=0)

    def lowest(self, own: Tensor) -> Tensor:
        """The lowest of each number over the processes."""
        return own if self.processes == 1 else self._all(own).amin(dim=0)

    def gathered(self, own: Tensor) -> Tensor | None:
        """All rows of which ``own`` are this process's, on the first process's CPU; None elsewhere."""
        counts = self._all(torch.tensor([len(own)], device=own.device)).flatten().tolist()
        if self.index:
            for rows in _pieces(own):
                dist.send(rows.contiguous(), 0)
            return None
        whole = torch.empty((sum(counts), *own.shape[1:]), dtype=own.dtype)
        whole[: len(own)] = own
        begin = len(own)
        for sender, count in enumerate(counts[1:], start=1):
            for rows in _pieces(whole[begin : begin + count]):
                received = torch.empty_like(rows, device=own.device)
                dist.recv(received, sender)
                rows.copy_(received)
            begin += count
        return whole

    def _all(self, own: Tensor) -> Tensor:
        """What each process has of this shape, [processes, ...]."""
        found = [torch.empty_like(own) for _ in range(self.processes)]
        dist.all_gather(found, own.contiguous())
        return torch.stack(found)

    def _search_together(
        self, queries: Queries, held: int, search_part: SearchPart, *, asks: bool
    ) -> Candidates | None:
        """One search of all processes; None where none asked."""
        own = torch.tensor([len(queries.key) if asks else -1, held], device=queries.key.device)
        asked, parts = self._all(own).T.tolist()
        if max(asked) < 0:
            return None
        if not sum(parts):
            raise RuntimeError(EMPTY)
        most = max(*asked, 1)
        sent = self._all(_to_length(_pack_queries(queries), most))
        sets = [_unpack_queries(one[: max(n, 0)], like=queries) for one, n in zip(sent, asked, strict=True)]
        found = search_part(sets, sum(parts[: self.index]), sum(parts))
        replies = torch.stack([_to_length(_pack_candidates(one), most) for one in found])
        answers = torch.empty_like(replies)
        dist.all_to_all_single(answers, replies)
        own_answers = answers[:, : len(queries.key)]
        return _best([_unpack_candidates(answer, like=found[0]) for answer in own_answers])


def _pieces(rows: Tensor) -> Sequence[Tensor]:
    return rows.split(SENT_AT_ONCE) if len(rows) else ()


def _best(found: list[Candidates]) -> Candidates:
    """The best rows of those that several parts have, in the order of the parts: [S, k] of [S, k] each."""
    k = found[0].scores.shape[1]
    places = torch.arange(k * len(found), device=found[0].scores.device).expand(len(found[0].scores), -1)
    scores, chosen = merged(
        [(one.scores, place) for one, place in zip(found, places.split(k, dim=1), strict=True)], k
    )
    rows, keys, futures = (torch.cat([one[i] for one in found], dim=1) for i in (1, 2, 3))
    return Candidates(
        scores,
        rows.gather(1, chosen),
        keys.take_along_dim(chosen[..., None], dim=1),
        futures.take_along_dim(chosen[..., None], dim=1),
    )


# Records go from process to process as rows of bits, [S, words] int32.


def _bits(tensor: Tensor) -> Tensor:
    words = tensor.shape[1:].numel() * tensor.element_size() // 4
    if not tensor.numel():  # torch takes no other view of some empty tensors
        return tensor.new_zeros((len(tensor), words), dtype=torch.int32)
    return tensor.contiguous().view(torch.int32).reshape(len(tensor), words)


def _to_length(rows: Tensor, length: int) -> Tensor:
    return F.pad(rows, (0, 0, 0, length - len(rows)))


def _unpack(bits: Tensor, *like: Tensor) -> list[Tensor]:
    """Tensors [S, ...] with the types and the widths of ``like``, out of [S, words]."""
    words = [one.shape[1:].numel() * one.element_size() // 4 for one in like]
    return [
        part.clone(memory_format=torch.contiguous_format).view(one.dtype).view(len(bits), *one.shape[1:])
        for part, one in zip(bits.split(words, dim=1), like, strict=True)
    ]


def _pack_queries(queries: Queries) -> Tensor:
    return torch.cat([_bits(one) for one in (queries.key, torch.stack(queries.rows, 1), queries.future)], 1)


def _unpack_queries(bits: Tensor, *, like: Queries) -> Queries:
    key, rows, future = _unpack(bits, like.key, torch.stack(like.rows, 1), like.future)
    return Queries(key, Rows(*(column.contiguous() for column in rows.unbind(1))), future)


def _pack_candidates(found: Candidates) -> Tensor:
    return torch.cat([_bits(one) for one in found], dim=1)


def _unpack_candidates(bits: Tensor, *, like: Candidates) -> Candidates:
    return Candidates(*_unpack(bits, *like))

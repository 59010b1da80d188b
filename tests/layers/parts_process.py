"""What each of several processes checks of a divided memory, against a whole one; it writes what it did.

`test_retrieval_parts.py` starts it: ``torch.distributed.run parts_process.py FOLDER``.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from layers import retrieval_search
from layers.GRAM import Neighbours, PatternValueDualRetriever
from layers.retrieval_memory import COLUMNS
from layers.retrieval_parts import Division
from layers.retrieval_search import Rows
from tests.layers.test_gram import OTHER, SOURCE, queries, retriever_of

ROWS = 101
"""No multiple of two or three."""


def pair(**settings: Any) -> tuple[PatternValueDualRetriever, PatternValueDualRetriever]:
    """The same memory, whole and divided, each built by itself."""
    settings = {"memory_size": ROWS, **settings}
    divided = retriever_of(build=False, **settings)
    divided.divide(Division(dist.get_rank(), dist.get_world_size()))
    divided.build(SOURCE, generator=torch.Generator().manual_seed(1))
    return retriever_of(**settings), divided


def own_queries(drop: int = 0) -> tuple[Tensor, Rows, Tensor]:
    """Of another number in each process; without the first ``drop``."""
    lookback, query, future = queries()
    kept = slice(drop, len(lookback) - 3 * dist.get_rank())
    return lookback[kept], Rows(*(column[kept] for column in query)), future[kept]


def same(found: Neighbours, wanted: Neighbours, *, what: object, exact: bool = True) -> None:
    """To the bit; otherwise the same rows, within float32's rounding."""
    for name, a, b in zip(Neighbours._fields, found, wanted, strict=True):
        if exact or name == "rows":
            assert torch.equal(a, b), (what, name)
        else:
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def check_neighbours(block: int, key: str, control: str) -> None:
    for kind, scope, k in itertools.product(("fp32", "fp16"), ("variable", "all"), (5, 150)):
        settings = {"memory_dtype": kind, "retrieval_scope": scope, "top_k": k}
        whole, divided = pair(retrieval_key=key, retrieval_control=control, **settings)
        retrieval_search.SEARCH_BLOCK = block
        lookback, query, future = own_queries()
        wanted = whole(lookback, query, target=future)
        same(divided(lookback, query, target=future), wanted, what=settings, exact=key == "raw")
        for name in ("distance_scale", "key_centre"):
            torch.testing.assert_close(getattr(divided, name), getattr(whole, name), rtol=1e-5, atol=1e-6)
        divided.load_state_dict(whole.state_dict())  # keys encoded in the same batches
        same(divided(lookback, query, target=future), wanted, what=settings)
        assert divided.unmatched_share(SOURCE) == whole.unmatched_share(SOURCE)
        assert divided.rows_in_all() == ROWS and len(divided.memory_start) < ROWS


def check_gradients_and_refreshed_keys(key: str) -> None:
    whole, divided = pair(retrieval_key=key)
    for _ in range(2):
        for retriever in (whole, divided):
            torch.manual_seed(5)
            with torch.no_grad():
                for parameter in retriever.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
                    parameter.grad = None
            retriever.refresh(SOURCE)
        lookback, query, _ = own_queries()
        wanted, found = whole(lookback, query), divided(lookback, query)
        same(found, wanted, what=key, exact=False)
        for one in (wanted, found):
            (one.weights * one.values.square().sum(-1)).sum().backward()
        for (name, a), b in zip(whole.named_parameters(), divided.parameters(), strict=True):
            assert a.grad is not None and b.grad is not None, name
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-6)
        assert any(bool(p.grad.abs().max() > 0) for p in whole.parameters() if p.grad is not None)


def check_fewer_rows_than_processes() -> None:
    for rows, key in itertools.product((1, dist.get_world_size() - 1), ("raw", "hybrid")):
        whole, divided = pair(memory_size=rows, retrieval_key=key, top_k=3)
        lookback, query, _ = own_queries()
        same(divided(lookback, query), whole(lookback, query), what=rows, exact=key == "raw")
        held = [0] * dist.get_world_size()
        dist.all_gather_object(held, len(divided.memory_start))
        assert sum(held) == rows and 0 in held
        assert divided.unmatched_share(SOURCE) == whole.unmatched_share(SOURCE)


def check_processes_that_search_unequally_often() -> None:
    """Twice in turn: what one round leaves behind must not be taken for the next."""
    whole, divided = pair(retrieval_key="raw")
    for turn in range(2):
        for time in range((dist.get_rank() + turn) % dist.get_world_size()):
            lookback, query, _ = own_queries(drop=time)
            same(divided(lookback, query), whole(lookback, query), what=(turn, time))
        divided.help_others()
        shared = torch.tensor([1])
        dist.all_reduce(shared)  # another collective right behind it
        assert shared == dist.get_world_size()


def check_the_whole_is_gathered_and_divided_again() -> None:
    for kind in ("fp32", "fp16"):
        whole, divided = pair(retrieval_key="hybrid", memory_dtype=kind)
        columns = divided.gathered()
        assert set(columns) == (set() if dist.get_rank() else set(COLUMNS))
        for name, rows in columns.items():
            assert torch.equal(rows, getattr(whole, name)), name
        _, other = pair(retrieval_key="hybrid", memory_dtype=kind, memory_size=7)
        other.load_state_dict(whole.state_dict())
        assert torch.equal(other.key_centre, whole.key_centre)
        lookback, query, _ = own_queries()
        same(other(lookback, query), whole(lookback, query), what=kind)


def check_errors_are_those_of_all() -> None:
    """Raised by one process alone, they would leave the others waiting."""
    _, divided = pair(retrieval_key="hybrid")
    if dist.get_rank() == dist.get_world_size() - 1:
        divided.memory_series[-1] = OTHER
    raised(ValueError, "built from another series", lambda: divided.refresh(SOURCE))
    empty = retriever_of(build=False)
    empty.divide(Division(dist.get_rank(), dist.get_world_size()))
    lookback, query, _ = own_queries()
    raised(RuntimeError, "memory is empty", lambda: empty(lookback, query))


def raised(kind: type[Exception], words: str, act: Any) -> None:
    try:
        act()
    except kind as error:
        assert words in str(error)
    else:
        raise AssertionError(f"no {kind.__name__}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    done = []
    for case in itertools.product((50, 32768), ("raw", "learned", "hybrid"), CONTROLS):
        check_neighbours(*case)
        done.append(str(case))
    retrieval_search.SEARCH_BLOCK = 32768
    for key in ("learned", "hybrid"):
        check_gradients_and_refreshed_keys(key)
    for check in (
        check_fewer_rows_than_processes,
        check_processes_that_search_unequally_often,
        check_the_whole_is_gathered_and_divided_again,
        check_errors_are_those_of_all,
    ):
        check()
        done.append(check.__name__)
    facts = {"processes": dist.get_world_size(), "backend": dist.get_backend(), "done": done}
    (folder / str(dist.get_rank())).write_text(json.dumps(facts))
    dist.destroy_process_group()


CONTROLS = ("none", "random", "same_phase", "oracle")

if __name__ == "__main__":
    main(Path(sys.argv[1]))

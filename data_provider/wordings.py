"""Texts that say the same in nearly the same words form one wording: folds are made over these.

With a wording in both halves of a fold, what was learnt by heart counts as what was understood.

Shape legend: K texts, U different ones, V different n-grams.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy import sparse
from sklearn.feature_extraction.text import CountVectorizer

from data_provider.texts import IntArray
from utils.errors import UserError

SIMILARITY = 0.8
LETTERS = 4
"""Length of the n-grams: of letters, since not every language has blanks between its words."""
BLOCK = 512
"""Texts compared with all others at a time."""
_ROUNDING = 1e-9


def wording_groups(texts: Sequence[str], *, similarity: float = SIMILARITY) -> IntArray:
    """[K] the number of each text's wording, from 0 on in the order of the texts.

    Two texts are of one wording where the cosine of their sets of n-grams, common / sqrt(size * size), is
    ``similarity`` or more, and so are two that a chain of such pairs joins. Letters count alike in
    either case, and blanks as one. Each pair is judged by its own two texts, whatever others there are.

    The result fits scikit-learn's ``GroupKFold`` as ``groups``.

    Raises:
        UserError: ``similarity`` is not above 0 and at most 1.
    """
    if not 0 < similarity <= 1:
        raise UserError(f"similarity: expected a number above 0, at most 1, found {similarity}")
    plain, places = np.unique([" ".join(text.lower().split()) for text in texts], return_inverse=True)
    grams = _grams(plain.tolist())
    pairs = list(_near(grams, similarity))
    first, second = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), dtype=np.int64)
    graph = sparse.coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(len(plain),) * 2)
    _, group = sparse.csgraph.connected_components(graph, directed=False)
    _, index, number = np.unique(group[places], return_index=True, return_inverse=True)
    return np.argsort(np.argsort(index))[number].astype(np.int64)


def _grams(texts: Sequence[str]) -> sparse.csr_array:
    """[U, V] which n-grams a text has, the rarest first; a text shorter than one has itself."""
    counter = CountVectorizer(analyzer=_grams_of, binary=True, dtype=np.float64)
    counts = sparse.csr_array(counter.fit_transform(texts))
    rarity = np.argsort(np.asarray(counts.sum(axis=0)).ravel(), kind="stable")
    return sparse.csr_array(counts[:, rarity]).sorted_indices()


def _grams_of(text: str) -> list[str]:
    """All pieces of `LETTERS` letters."""
    return [text[i : i + LETTERS] for i in range(max(1, len(text) - LETTERS + 1))]


def _near(grams: sparse.csr_array, similarity: float) -> Iterator[IntArray]:
    """Pairs [2, P] of near texts.

    Of two texts as near as that, some n-gram is among the rarest of both, in number all but
    ceil(similarity^2 * size) + 1 of them: the bound of Bayardo, Ma and Srikant (Scaling up all pairs
    similarity search, WWW 2007) for sets. Only pairs that share one of these are compared.
    """
    sizes = np.diff(grams.indptr)  # [U]
    rank = np.arange(len(grams.indices)) - np.repeat(grams.indptr[:-1], sizes)
    kept = rank <= np.repeat(sizes - np.ceil(similarity**2 * sizes - _ROUNDING), sizes)
    rare = sparse.csr_array((grams.data * kept, grams.indices, grams.indptr), shape=grams.shape, copy=True)
    rare.eliminate_zeros()
    columns = rare.T.tocsr()
    for begin in range(0, grams.shape[0], BLOCK):
        candidates = (rare[begin : begin + BLOCK] @ columns).tocoo()
        one, other = candidates.row + begin, candidates.col
        one, other = one[one < other], other[one < other]
        for place in range(0, len(one), 16 * BLOCK):
            a, b = one[place : place + 16 * BLOCK], other[place : place + 16 * BLOCK]
            common = np.asarray(grams[a].multiply(grams[b]).sum(axis=1)).ravel()
            near = common >= similarity * np.sqrt(sizes[a] * sizes[b]) - _ROUNDING
            yield np.stack([a[near], b[near]]).astype(np.int64)

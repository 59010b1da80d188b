"""Published scores on ETTh1, for the tables: lookback 512 (PatchTST, Time-LLM), all test windows, (MSE, MAE).

Source: Jin et al., "Time-LLM", ICLR 2024, Table 1, for Time-LLM and the PatchTST it compares with.
"""

from __future__ import annotations

PUBLISHED: dict[str, dict[tuple[str, int], tuple[float, float]]] = {
    "Time-LLM, as published (Llama-7B, full training)": {
        ("ETTh1", 96): (0.362, 0.392),
        ("ETTh1", 192): (0.398, 0.418),
        ("ETTh1", 336): (0.430, 0.427),
        ("ETTh1", 720): (0.442, 0.457),
    },
    "PatchTST, as published": {
        ("ETTh1", 96): (0.370, 0.399),
        ("ETTh1", 192): (0.413, 0.421),
        ("ETTh1", 336): (0.422, 0.436),
        ("ETTh1", 720): (0.447, 0.466),
    },
}

"""The six groups of the M4 competition: horizons, seasons and what its published code takes from each.

Source: Makridakis, Spiliotis and Assimakopoulos, "The M4 Competition", International Journal of
Forecasting 2020, and its repository; the share of recent history from N-BEATS (Oreshkin et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class M4Pattern(NamedTuple):
    """One group of series."""

    horizon: int
    """Rows to forecast."""
    season: int
    """Rows of one season in Naive2 and MASE."""
    history: float
    """Training windows begin their forecast within so many horizons of a series' end."""
    frequency: str
    """pandas alias of its step."""


M4_PATTERNS: Mapping[str, M4Pattern] = MappingProxyType(
    {
        "Yearly": M4Pattern(6, 1, 1.5, "YE"),
        "Quarterly": M4Pattern(8, 4, 1.5, "QE"),
        "Monthly": M4Pattern(18, 12, 1.5, "ME"),
        "Weekly": M4Pattern(13, 1, 10, "W"),
        "Daily": M4Pattern(14, 1, 10, "D"),
        "Hourly": M4Pattern(48, 24, 10, "h"),
    }
)

"""Amounts of abstract resources as whole numbers, so that sums are exact: ten times 0.1 fits into 1.

One unit is 1e-9. What a task needs is rounded down and what a worker has is rounded up, each by less than a unit and
one part in 1e12, so that no rounding of a share (1/3, 0.7) keeps out a task that fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_UNITS: Final = 1e9
#: More than anybody has, for infinity.
_MOST: Final = 1e100


def needed(amount: float) -> int:
    """Units that a task takes which asks for ``amount``; 0 where that is no positive number."""
    return max(1, int(min(amount, _MOST) * _UNITS)) if amount > 0 else 0


def offered(amount: float) -> int:
    """Units that a worker has which was given ``amount``."""
    return int(min(amount, _MOST) * _UNITS * (1 + 1e-12)) + 1 if amount > 0 else 0


def amount_of(units: int) -> float:
    """What so many units are, as users write it."""
    return round(units / _UNITS, 6)


def needs_of(resources: Mapping[str, float] | None) -> tuple[tuple[str, int], ...]:
    """What a task takes, by name; what it asks nothing of is left out."""
    if not resources:
        return ()
    return tuple((name, units) for name, amount in sorted(resources.items()) if (units := needed(amount)))

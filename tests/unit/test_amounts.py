"""Amounts of resources as whole numbers."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from shoal.core.amounts import amount_of, needed, needs_of, offered


@given(st.floats(1e-3, 1e15), st.integers(1, 1000))
def test_equal_shares_fit(total: float, count: int) -> None:
    """However the shares are rounded; and one share more does not."""
    assert count * needed(total / count) <= offered(total)
    assert (count + 1) * needed(total / count) > offered(total)


@given(st.floats())
def test_odd_amounts_are_something_or_nothing(amount: float) -> None:
    """Neither infinity nor what is no number raises; nothing and less is nothing; what is needed is had."""
    assert needed(amount) >= 0
    assert (needed(amount) > 0) == (amount > 0)
    assert needed(amount) <= offered(amount)


def test_names_are_in_order_and_nothing_is_left_out() -> None:
    """The same needs are equal, in whatever order they were written."""
    assert needs_of({"b": 0.1, "a": 2, "c": 0}) == needs_of({"a": 2.0, "b": 0.1}) == (("a", 2 * 10**9), ("b", 10**8))
    assert needs_of(None) == needs_of({}) == ()
    assert amount_of(needed(0.1)) == 0.1
    assert math.isclose(amount_of(offered(3)), 3)

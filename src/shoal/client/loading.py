"""Payloads of many results to their values, without holding both of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shoal.client.shapes import MISSING
from shoal.core.client.future import FutureStatus, Outcome
from shoal.shell.areas import AREAS
from shoal.shell.serialize import payload_nbytes

#: Bytes of payloads after whose loading the memory that they were received in is given back.
_STRETCH: Final = 64 << 20


def load_each(outcomes: list[Outcome], load: Callable[[Any], Any]) -> list[Any]:
    """The value of each outcome, or ``MISSING``; a payload is let go of as soon as its value is there."""
    found: list[Any] = []
    loaded = 0
    for number in range(len(outcomes)):
        outcome = outcomes[number]
        if outcome.status is not FutureStatus.FINISHED:
            found.append(MISSING)
            continue
        outcomes[number] = outcome._replace(value=None)
        found.append(load(outcome.value))
        loaded += payload_nbytes(outcome.value)
        del outcome
        if loaded > _STRETCH:
            AREAS.trim(all_of_them=True)  # what the values do not refer to
            loaded = 0
    return found

"""Payloads of many results to their values, without holding both of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from shoal.client.shapes import MISSING
from shoal.shell.areas import AREAS
from shoal.shell.serialize import payload_nbytes

#: Bytes of payloads after whose loading the memory that they were received in is given back.
_STRETCH: Final = 64 << 20


def load_each(keys: list[str], payloads: dict[str, Any], load: Callable[[Any], Any]) -> list[Any]:
    """The value of each key, or ``MISSING``; a payload is let go of as soon as its last value is there."""
    left = Counter(keys)
    found, loaded = [], 0
    for key in keys:
        left[key] -= 1
        payload = payloads.get(key, MISSING) if left[key] else payloads.pop(key, MISSING)
        if payload is MISSING:
            found.append(MISSING)
            continue
        found.append(load(payload))
        loaded += payload_nbytes(payload)
        del payload
        if loaded > _STRETCH:
            AREAS.trim(all_of_them=True)  # what the values do not refer to
            loaded = 0
    return found

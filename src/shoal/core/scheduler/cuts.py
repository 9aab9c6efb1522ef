"""Who cannot reach whom, as those say who tried: the way by the scheduler is open to all of them."""

from __future__ import annotations

from typing import Final

#: Seconds after which nothing that was said of a pair counts any more: who still cannot reach it tries more often.
REMEMBERED: Final = 600.0
#: Pairs that are remembered.
MOST: Final = 10_000


class Cut:
    """One worker or client cannot reach a worker."""

    __slots__ = ("last", "since", "times")

    def __init__(self, now: float) -> None:
        self.since = self.last = now
        self.times = 0


class Cuts:
    """All pairs of those who tried, and whom they could not reach."""

    __slots__ = ("_pairs",)

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], Cut] = {}

    def __bool__(self) -> bool:
        return bool(self._pairs)

    def note(self, asker: str, holder: str, now: float) -> None:
        """``asker`` could not reach ``holder``."""
        cut = self.between(asker, holder, now)
        if cut is None:
            if len(self._pairs) >= MOST:
                del self._pairs[next(iter(self._pairs))]
            cut = self._pairs[asker, holder] = Cut(now)
        cut.times += 1
        cut.last = now

    def between(self, asker: str, holder: str, now: float) -> Cut | None:
        """What is known of the way from ``asker`` to ``holder``; None where nothing is wrong with it."""
        cut = self._pairs.get((asker, holder))
        if cut is not None and now > cut.last + REMEMBERED:
            del self._pairs[asker, holder]  # placement looks at no pairs where there are none
            return None
        return cut

    def forget(self, who: str) -> None:
        """``who`` is gone."""
        for pair in [pair for pair in self._pairs if who in pair]:
            del self._pairs[pair]

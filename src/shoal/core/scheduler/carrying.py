"""Values by way of the scheduler, for those who cannot reach a holder that lives: the last way, which is always open.

An errand asks the holder for the values over its own link and passes them on to the asker unread. Each holder has one
errand at a time, and all together have a limit in bytes, so that the scheduler is no store. An errand ends with the
holder's answer, the end of either of the two, or its deadline; the asker always hears of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from shoal.core.scheduler.tables import Tables
from shoal.errors import UsageError
from shoal.ids import ClientId, WorkerId
from shoal.messages import Answer, Carry, Give, Given

#: Bytes that are under way by the scheduler at the same time, but for single errands that are larger.
MOST_BYTES: Final = 256_000_000
#: The share of the assumed bandwidth at which a transfer counts as one that goes on.
_SLOWEST: Final = 0.05


class Errand:
    """Values to be brought."""

    __slots__ = ("asker", "deadline", "holder", "keys", "max_bytes", "nbytes", "rid")

    def __init__(self, asker: str, message: Carry, nbytes: int) -> None:
        self.asker, self.rid = asker, message.rid
        self.holder, self.keys, self.max_bytes = WorkerId(message.holder), message.keys, message.max_bytes
        self.nbytes = nbytes
        self.deadline = 0.0


class Carrying:
    """All errands.

    Parameters
    ----------
    state
        The scheduler's tables.
    say
        Sends a message to a peer.
    patience
        Seconds for which a holder may bring nothing, beyond the time that its values take.
    """

    def __init__(self, state: Tables, say: Callable[[str, Any], None], patience: float) -> None:
        self.state, self.patience = state, patience
        self._say = say
        self._line: list[Errand] = []
        self._numbers = 0
        self._under_way: dict[int, Errand] = {}
        #: How many were carried out.
        self.done = 0

    def ask(self, asker: str, message: Carry) -> None:
        """``asker`` cannot reach a holder."""
        state = self.state
        sizes = [max(state.tasks[key].nbytes, 0) for key in message.keys if key in state.tasks]
        nbytes = sum(sizes)
        if message.max_bytes:
            nbytes = min(nbytes, max([message.max_bytes, *sizes]))
        errand = Errand(asker, message, nbytes)
        if errand.holder not in state.workers:
            self._refuse(errand, "that worker is gone")
            return
        state.cuts.note(asker, errand.holder, state.now)
        self._line.append(errand)

    def given(self, peer: str, message: Given) -> None:
        """A holder answered.

        Raises
        ------
        UsageError
            If it names a key that it was not asked for; its link ends by that, and the errand with it.
        """
        errand = self._under_way.get(message.rid)
        if errand is None or errand.holder != peer:
            return
        for named in (message.items, message.missing, message.errors, message.editions):
            if not set(named).issubset(errand.keys):
                raise UsageError("it answered what it was not asked for")
        del self._under_way[message.rid]
        self.done += 1
        if errand.asker in self.state.workers:
            self._say(errand.asker, Given(errand.rid, message.items, message.missing, message.errors, message.editions))
        else:
            value = {"items": message.items, "missing": message.missing, "errors": message.errors}
            self._say(errand.asker, Answer(errand.rid, value))

    def _refuse(self, errand: Errand, reason: str) -> None:
        if errand.asker in self.state.workers:
            self._say(errand.asker, Given(errand.rid, reason=reason))
        elif ClientId(errand.asker) in self.state.clients:
            self._say(errand.asker, Answer(errand.rid, None, reason))

    def lost(self, who: str) -> None:
        """A worker or a client is gone: it asks for nothing more, and brings nothing more."""
        self.state.cuts.forget(who)
        for number, errand in tuple(self._under_way.items()):
            if who in (errand.asker, errand.holder):
                del self._under_way[number]
                self._refuse(errand, "that worker is gone")
        line, self._line = self._line, []
        for errand in line:
            if who not in (errand.asker, errand.holder):
                self._line.append(errand)
            else:
                self._refuse(errand, "that worker is gone")

    def step(self, now: float) -> None:
        """Begin what may be begun, give up what takes too long."""
        for number, errand in tuple(self._under_way.items()):
            if now >= errand.deadline:
                del self._under_way[number]
                self._refuse(errand, f"it did not answer the scheduler within {self.patience:g} s, either")
        if not self._line:
            return
        busy = {errand.holder for errand in self._under_way.values()}
        nbytes = sum(errand.nbytes for errand in self._under_way.values())
        line, self._line = self._line, []
        for errand in line:
            if errand.holder in busy or (nbytes and nbytes + errand.nbytes > MOST_BYTES):
                self._line.append(errand)
                continue
            busy.add(errand.holder)
            nbytes += errand.nbytes
            errand.deadline = now + self.patience + errand.nbytes / (_SLOWEST * self.state.bandwidth)
            self._numbers += 1
            self._under_way[self._numbers] = errand
            self._say(errand.holder, Give(self._numbers, errand.keys, errand.max_bytes))

    def deadline(self) -> float | None:
        """When an errand is given up."""
        return min((errand.deadline for errand in self._under_way.values()), default=None)

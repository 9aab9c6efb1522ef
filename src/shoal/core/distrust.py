"""What one bad message costs: the link that it came on, and nothing else.

An exception that a message causes is a bug of shoal's or a lie of the peer's. Either way that peer is told so and let
go of. The turn goes on with the messages of others; then all invariants are looked at. Only if they do not hold does
the program end.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

from shoal.checks import text
from shoal.core.effects import ERROR, CloseLink, Effect, Log, Send
from shoal.errors import InternalError, InvariantViolation
from shoal.messages import Bye, Close


class Distrust:
    """The peers of one turn whose messages raised."""

    __slots__ = ("_caught",)

    def __init__(self) -> None:
        self._caught: list[tuple[str, str, Exception]] = []

    def caught(self, role: str, peer: str, messages: list[Any], error: Exception) -> list[Effect]:
        """A message of ``peer`` raised; what is to be done about it."""
        kinds = ", ".join(dict.fromkeys(type(message).__name__ for message in messages))
        reason = text(f"a message of this {role} cannot be handled ({kinds}): {type(error).__name__}: {error}", 2000)
        self._caught.append((role, peer, error))
        told = "".join(traceback.format_exception(error))
        words: Any = Bye(reason, True) if role == "client" else Close(reason, True)
        return [
            Log(ERROR, text(f"the link with {role} {peer} is closed: {reason}\n{told}")),
            Send(peer, words),
            CloseLink(peer, reason),
        ]

    def look(self, check: Callable[[], None]) -> None:
        """At the end of a turn: whether all is as it should be, in spite of what was caught.

        Raises
        ------
        InternalError
            If it is not.
        """
        if not self._caught:
            return
        caught, self._caught = self._caught, []
        try:
            check()
        except InvariantViolation as violation:
            role, peer, error = caught[0]
            raise InternalError(f"after a bad message of {role} {peer} ({error}): {violation}") from error

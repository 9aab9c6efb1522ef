"""Messages of a turn to frames: of a bounded size, and each message for itself where one cannot be encoded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from shoal.checks import text
from shoal.core.framing import BODY_LIMIT, BUFFER_LIMIT, COUNT_LIMIT, Buffer, Codec
from shoal.core.splitting import MANY, count, pieces
from shoal.core.unsendable import fallback
from shoal.messages import Submit

#: Bytes from which on what was said in one turn is written in several frames.
FRAME_BYTES: Final = 64 << 20

Encoded = tuple[bytes, list[Buffer]]


class Parcels:
    """Encodes messages into frames.

    Parameters
    ----------
    codec
        Of the link.

    Attributes
    ----------
    refused
        What could not be encoded since this was last emptied: the kind of message, and the error in words.
    heard
        What the peer is taken to have answered to that.
    """

    __slots__ = ("_codec", "heard", "refused")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self.refused: list[tuple[str, str]] = []
        self.heard: list[Any] = []

    def frames(self, messages: Sequence[Any]) -> Iterator[Encoded]:
        """Body and buffers of each frame, in order."""
        if len(messages) == 1 and count(messages[0]) <= MANY:
            yield from self._encoded(messages)
            return
        batch: list[Any] = []
        items = 0
        for message in messages:
            number = count(message)
            if number > MANY:
                for piece in pieces(message):
                    yield from self._encoded([*batch, piece])
                    batch = []
                items = 0
                continue
            if items + number > MANY and batch:
                yield from self._encoded(batch)
                batch, items = [], 0
            batch.append(message)
            items += number
        if batch:
            yield from self._encoded(batch)

    def _encoded(self, messages: Sequence[Any]) -> Iterator[Encoded]:
        try:
            body, buffers = self._codec.encode(messages)
        except MemoryError:
            raise  # no fault of the message
        except Exception as error:
            yield from self._apart(messages, _words(error))
            return
        size = len(body) + (sum(map(_length, buffers)) if buffers else 0)
        if size <= FRAME_BYTES and len(buffers) <= COUNT_LIMIT:
            yield body, buffers
            return
        if len(messages) > 1:
            middle = len(messages) // 2
            yield from self._encoded(messages[:middle])
            yield from self._encoded(messages[middle:])
            return
        message, number = messages[0], count(messages[0])
        if number > 1:
            for piece in pieces(message, FRAME_BYTES // 2, (number + 1) // 2):
                yield from self._encoded([piece])
            return
        largest = max(map(_length, buffers), default=0)
        if len(body) > BODY_LIMIT or len(buffers) > COUNT_LIMIT or largest > BUFFER_LIMIT:
            told = f"it has {len(body):,} bytes and {len(buffers):,} buffers, the largest of {largest:,} bytes"
            yield from self._refuse(message, f"{told}, which is more than a frame can hold")
            return
        yield body, buffers

    def _apart(self, messages: Sequence[Any], why: str) -> Iterator[Encoded]:
        """Encode each message, and each item, for itself; what cannot be encoded is replaced."""
        if len(messages) > 1:
            for message in messages:
                yield from self._encoded([message])
            return
        message = messages[0]
        if count(message) > 1:
            lost: set[str] = set()
            for piece in pieces(message, most_items=1):
                before = len(self.refused)
                if lost and type(piece) is Submit:
                    piece.wants = [key for key in piece.wants if key not in lost]
                yield from self._encoded([piece])
                if len(self.refused) > before and type(piece) is Submit:
                    lost.update(task.key for task in piece.tasks)
            return
        yield from self._refuse(message, why)

    def _refuse(self, message: Any, why: str) -> Iterator[Encoded]:
        kind = type(message).__name__
        self.refused.append((kind, why))
        told = fallback(message, f"a message ({kind}) could not be encoded: {why}; this is a bug in shoal")
        self.heard += told.heard
        for other in told.instead:
            try:
                yield self._codec.encode([other])
            except Exception as error:
                self.refused.append((f"what was to be said in place of {kind}", _words(error)))


def _length(buffer: Buffer) -> int:
    return buffer.nbytes if isinstance(buffer, memoryview) else len(buffer)


def _words(error: Exception) -> str:
    return text(f"{type(error).__name__}: {error}", 500)

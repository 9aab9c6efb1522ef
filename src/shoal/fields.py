"""What the fields of messages may hold: checked where a message is decoded; one that breaks a limit closes its link."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from shoal.checks import MOST_AMOUNT, MOST_COUNT, MOST_PRIORITY

#: Threads of a worker.
MOST_THREADS = 65_536

MOST = MOST_COUNT
#: A key as it travels (see ``ids.key_to_wire``).
Key = Annotated[str, msgspec.Meta(min_length=1, max_length=2**20)]
#: A name or an id that a process, a user or shoal gave; empty where there is none.
Name = Annotated[str, msgspec.Meta(max_length=2**16)]
#: Words for people.
Text = Annotated[str, msgspec.Meta(max_length=2**24)]
Count = Annotated[int, msgspec.Meta(ge=0, le=MOST)]
#: Bytes; -1 where they are not known.
Size = Annotated[int, msgspec.Meta(ge=-1, le=MOST)]
Priority = Annotated[int, msgspec.Meta(ge=-MOST_PRIORITY, le=MOST_PRIORITY)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=MOST_THREADS)]
#: The number of a thread; -1 where it has none.
Thread = Annotated[int, msgspec.Meta(ge=-1, le=MOST)]
#: Seconds from 0 on, and an amount of a resource: never NaN, never infinite.
Time = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
Amount = Annotated[float, msgspec.Meta(ge=0.0, le=MOST_AMOUNT)]
Finite = Annotated[float, msgspec.Meta(ge=-MOST_AMOUNT, le=MOST_AMOUNT)]
#: Bytes or a :class:`Blob`, which the codec checks (``core/payloads.py``); the second may be missing.
Payload = Annotated[Any, msgspec.Meta(extra={"payload": "there"})]
MaybePayload = Annotated[Any, msgspec.Meta(extra={"payload": "maybe"})]


class Blob:
    """A pickle and the buffers it refers to, none of them copied.

    ``frames[0]`` is the pickle; the rest are its out-of-band buffers, in order.
    """

    __slots__ = ("frames",)

    def __init__(self, frames: Sequence[bytes | memoryview]) -> None:
        self.frames = list(frames)

    @property
    def nbytes(self) -> int:
        return sum(len(f) if isinstance(f, bytes) else f.nbytes for f in self.frames)

    def __repr__(self) -> str:
        return f"<Blob {len(self.frames)} frames, {self.nbytes} bytes>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Blob) and [bytes(f) for f in self.frames] == [bytes(f) for f in other.frames]

    __hash__ = None  # type: ignore[assignment]

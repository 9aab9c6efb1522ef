"""Messages of many items as several messages of fewer, so that no frame becomes large for their number alone.

Only what means the same in pieces is split. A :class:`Submit` does, by ``more``: its receiver puts the pieces together
before it looks at any of them. Messages that are counted (:class:`AddKeys`, :class:`DataPut`) stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from shoal.messages import (
    Blob,
    Cancel,
    Compute,
    DropFunctions,
    Finished,
    FireAndForget,
    Freed,
    FreeKeys,
    GivenBack,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    Retry,
    Submit,
    Unwant,
    Want,
)

#: Items of a message, and messages of a frame, that are written without a look at how large they are.
MANY: Final = 512
#: Bytes of payloads that stand together in one piece.
PIECE_BYTES: Final = 32 << 20

#: The field whose items may be spread over several messages.
_ITEMS: Final[dict[type, str]] = {
    Cancel: "keys", Compute: "tasks", DropFunctions: "fns", Finished: "items", FireAndForget: "keys",
    FreeKeys: "keys", Freed: "attempts", GivenBack: "items", KeysCancelled: "keys", KeysDone: "items",
    KeysRestarted: "keys", Retry: "keys", Submit: "tasks", Unwant: "keys", Want: "keys",
}  # fmt: skip
#: Where an item has its payload.
_PAYLOAD: Final[dict[type, str]] = {Compute: "payload", Finished: "value", KeysDone: "value", Submit: "payload"}


def count(message: Any) -> int:
    """How many items a message has that may be spread over several; 1 where it stays whole."""
    field = _ITEMS.get(type(message))
    return 1 if field is None else len(getattr(message, field))


def nbytes_of(payload: Any) -> int:
    """Bytes of a payload."""
    kind = type(payload)
    return len(payload) if kind is bytes else payload.nbytes if kind is Blob else 0


def pieces(message: Any, most_bytes: int = PIECE_BYTES, most_items: int = MANY) -> Iterator[Any]:
    """Messages that together say the same as ``message``: each of so many items, and bytes of payloads, at most."""
    kind = type(message)
    items = getattr(message, _ITEMS[kind])
    field = _PAYLOAD.get(kind)
    start, size = 0, 0
    cuts = []
    for number, item in enumerate(items):
        weight = nbytes_of(getattr(item, field)) if field is not None else 0
        if number > start and (size + weight > most_bytes or number - start >= most_items):
            cuts.append((start, number))
            start, size = number, 0
        size += weight
    cuts.append((start, len(items)))
    for start, stop in cuts:
        yield _piece(message, items[start:stop], start == 0, stop == len(items))


def _piece(message: Any, items: list[Any], first: bool, last: bool) -> Any:
    match message:
        case Submit():
            return Submit(
                items,
                message.functions if first else {},
                message.options,
                message.wants if last else [],
                message.wish,
                message.fifo,
                message.more or not last,
            )
        case Compute():
            return Compute(items, message.functions if first else {}, message.peers if first else {})
        case _:
            kind = type(message)
            field = _ITEMS[kind]
            return kind(**{name: items if name == field else getattr(message, name) for name in kind.__struct_fields__})


def join(parts: list[Submit]) -> Submit:
    """The submission that came in these pieces."""
    if len(parts) == 1:
        return parts[0]
    last = parts[-1]
    tasks = [task for part in parts for task in part.tasks]
    functions = {fn: payload for part in parts for fn, payload in part.functions.items()}
    wants = [key for part in parts for key in part.wants]
    return Submit(tasks, functions, last.options, wants, last.wish, last.fifo)

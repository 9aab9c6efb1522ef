"""Bytes to frames and back, with limits.

A frame is a header of 18 bytes, the lengths of its raw buffers (8 bytes each), one msgpack body that holds a *list* of
messages, then the raw buffers, which the messages refer to by index (and tags, where it is sealed: ``sealing.py``)::

    magic u16 | buffers u32 | body length u32 | sequence u32 | acknowledged u32 | length u64 … | body | buffer …

``sequence`` counts the frames of one direction of a session and ``acknowledged`` tells the last one received, for
sessions that outlive a connection. Small frames are parsed in place in one receive buffer. A large buffer is received
straight into memory of its own, so that it is copied once, by the kernel.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from shoal.core.payloads import checks_of
from shoal.core.sealing import TAG_BYTES, Seal
from shoal.errors import LinkError
from shoal.messages import Blob

MAGIC: Final = 0x5348
_HEADER: Final = struct.Struct("<HIIII")
_EXT: Final = struct.Struct("<II")
_BLOB_CODE: Final = 1
#: Pieces from this size on are received into memory of their own.
DIRECT_BYTES: Final = 64 * 1024
_SCRATCH_BYTES: Final = 256 * 1024
#: Before the handshake is through, nobody needs more than this.
HANDSHAKE_LIMIT: Final = 4096
_SCRATCH_AT_FIRST: Final = HANDSHAKE_LIMIT + 64
#: A peer that has proven the secret may send this much in one body and in one buffer.
BODY_LIMIT: Final = 2**31
BUFFER_LIMIT: Final = 2**40
#: Buffers of one frame.
COUNT_LIMIT: Final = 2**20

Buffer = bytes | bytearray | memoryview


class FramingError(LinkError):
    """The bytes on a link are no frames of shoal's, or break a limit."""


class SealError(FramingError):
    """A frame on an open link was not made by the peer that opened it."""


class Frame(msgspec.Struct, gc=False):
    """One received frame. ``body`` is valid until the reader is given more bytes."""

    body: Buffer
    buffers: list[memoryview]
    sequence: int
    acknowledged: int


def pack_frame(body: bytes, buffers: Sequence[Buffer] = (), sequence: int = 0, acknowledged: int = 0) -> list[Buffer]:
    """Return the pieces to write, in order; buffers are passed on as they are."""
    if len(buffers) > COUNT_LIMIT or len(body) > BODY_LIMIT:
        raise FramingError(f"{len(buffers)} buffers and {len(body)} bytes are more than one frame can hold")
    header = _HEADER.pack(MAGIC, len(buffers), len(body), sequence & 0xFFFFFFFF, acknowledged & 0xFFFFFFFF)
    if not buffers:
        return [header + body]
    views = [memoryview(b).cast("B") if not isinstance(b, bytes) else b for b in buffers]
    return [header + struct.pack(f"<{len(views)}Q", *map(len, views)) + body, *views]


def seal_frame(pieces: list[Buffer], seal: Seal) -> list[Buffer]:
    """The pieces of :func:`pack_frame`, with the next tags of ``seal``."""
    first, buffers = pieces[0], pieces[1:]
    size = _HEADER.size + 8 * len(buffers)
    head, body = first[:size], first[size:]
    opened = b"".join((head, seal.tag(head), body))
    closing = seal.tag(body, buffers)
    return [opened, *buffers, closing] if buffers else [opened + closing]


def _allocate(nbytes: int) -> memoryview:
    return memoryview(bytearray(nbytes))


class FrameReader:
    """Incremental parser with the interface of ``asyncio.BufferedProtocol``: ask for room, say how much came.

    Parameters
    ----------
    body_limit, buffer_limit
        Most bytes of one body and of one buffer; more is a :class:`FramingError`.
    allocate
        Makes memory for a large buffer.
    """

    __slots__ = (
        "__weakref__", "_allocate", "_begun", "_body", "_buffers", "_end", "_filled", "_head", "_lengths", "_need",
        "_scratch", "_seal", "_stage", "_start", "_target", "body_limit", "buffer_limit",
    )  # fmt: skip

    def __init__(
        self,
        body_limit: int = HANDSHAKE_LIMIT,
        buffer_limit: int = 0,
        allocate: Callable[[int], memoryview] = _allocate,
    ) -> None:
        self.body_limit = body_limit
        self.buffer_limit = buffer_limit
        self._allocate = allocate
        self._scratch = memoryview(bytearray(_SCRATCH_AT_FIRST if not buffer_limit else _SCRATCH_BYTES))
        self._start = self._end = 0
        self._target: memoryview | None = None
        self._filled = 0
        self._stage = 0  # 0 header, 1 lengths, 2 body, 3 buffers, 4 the tag of a sealed frame with buffers
        self._need = _HEADER.size
        self._head = (0, 0, 0, 0, 0)
        self._lengths: tuple[int, ...] = ()
        self._body: Buffer = b""
        self._buffers: list[memoryview] = []
        self._seal: Seal | None = None
        self._begun = b""

    def expect_seals(self, seal: Seal) -> None:
        """From the next frame on, take only what has a right tag."""
        self._seal = seal

    def raise_limits(self, body_limit: int = BODY_LIMIT, buffer_limit: int = BUFFER_LIMIT) -> None:
        """Trust the peer with larger frames, once it has proven who it is."""
        self.body_limit, self.buffer_limit = body_limit, buffer_limit

    def get_buffer(self) -> memoryview:
        """Room for the next bytes; never empty."""
        if self._target is not None:
            return self._target[self._filled :]
        if self._start == self._end:
            self._start = self._end = 0
            if self.buffer_limit and len(self._scratch) < _SCRATCH_BYTES:
                self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        elif len(self._scratch) - self._start < max(self._need, DIRECT_BYTES):
            kept = bytes(self._scratch[self._start : self._end])
            if self.buffer_limit and len(self._scratch) < _SCRATCH_BYTES:
                self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
            self._scratch[: len(kept)] = kept
            self._start, self._end = 0, len(kept)
        return self._scratch[self._end :]

    def received(self, nbytes: int) -> list[Frame]:
        """Take note that ``nbytes`` were written into :meth:`get_buffer`, and return the frames now complete.

        Raises
        ------
        FramingError
            If the bytes break the format or a limit; the reader is of no more use then.
        """
        frames: list[Frame] = []
        if self._target is not None:
            self._filled += nbytes
            if self._filled < len(self._target):
                return frames
            piece, self._target = self._target, None
            self._take(piece, True, frames)
        else:
            self._end += nbytes
        while True:
            need, have = self._need, self._end - self._start
            if frames and have and not self.buffer_limit:
                raise FramingError("more than one frame at a time, during the handshake")
            if have >= need and (need < DIRECT_BYTES or have == need or self._stage == 2):
                start = self._start
                self._start = start + need
                self._take(self._scratch[start : start + need], False, frames)
            elif need >= DIRECT_BYTES:
                target = self._allocate(need)
                ready = min(have, need)
                target[:ready] = self._scratch[self._start : self._start + ready]
                self._start += ready
                if ready == need:
                    self._take(target, True, frames)
                else:
                    self._target, self._filled = target, ready
                    return frames
            else:
                return frames

    def feed(self, data: Buffer) -> list[Frame]:
        """Copy ``data`` in and return the frames that it completes, with bodies of their own."""
        frames: list[Frame] = []
        view = memoryview(data).cast("B")
        while len(view):
            room = self.get_buffer()
            size = min(len(room), len(view))
            room[:size] = view[:size]
            view = view[size:]
            for frame in self.received(size):
                frame.body = bytes(frame.body)
                frames.append(frame)
        return frames

    def _take(self, piece: memoryview, owned: bool, frames: list[Frame]) -> None:
        if self._stage == 0:
            self._head = head = _HEADER.unpack(piece)
            magic, count, body, _, _ = head
            if magic != MAGIC:
                raise FramingError(f"not a shoal link: it began with {bytes(piece[:8])!r}")
            if body > self.body_limit:
                raise FramingError(f"a body of {body} bytes is over the limit of {self.body_limit}")
            if count and not self.buffer_limit:
                raise FramingError("buffers are not allowed before the handshake")
            if count > COUNT_LIMIT:
                raise FramingError(f"{count} buffers are over the limit of {COUNT_LIMIT}")
            if self._seal is not None:
                self._begun = bytes(piece)
                self._stage, self._need = 1, 8 * count + TAG_BYTES
            else:
                self._stage, self._need = (1, 8 * count) if count else (2, body)
        elif self._stage == 1:
            self._stage, self._need = 2, self._head[2]
            if self._seal is not None:
                piece, tag = piece[:-TAG_BYTES], piece[-TAG_BYTES:]
                self._check(self._seal.verify(tag, self._begun + piece))
                if not self._head[1]:
                    self._need += TAG_BYTES
                    return
            self._lengths = struct.unpack(f"<{self._head[1]}Q", piece)
            largest = max(self._lengths)
            if largest > self.buffer_limit:
                raise FramingError(f"a buffer of {largest} bytes is over the limit of {self.buffer_limit}")
        elif self._stage == 2:
            if self._head[1]:
                self._body = bytes(piece)
                self._stage, self._need = 3, self._lengths[0]
                return
            if self._seal is not None:
                piece, tag = piece[:-TAG_BYTES], piece[-TAG_BYTES:]
                self._check(self._seal.verify(tag, piece))
            self._emit(piece, frames)
        elif self._stage == 3:
            self._buffers.append(piece if owned else memoryview(bytearray(piece)))
            if len(self._buffers) < self._head[1]:
                self._need = self._lengths[len(self._buffers)]
            elif self._seal is not None:
                self._stage, self._need = 4, TAG_BYTES
            else:
                self._emit(self._body, frames)
        else:
            assert self._seal is not None
            self._check(self._seal.verify(piece, self._body, self._buffers))
            self._emit(self._body, frames)

    def _check(self, right: bool) -> None:
        if not right:
            raise SealError("a frame was changed, repeated, left out or put in by somebody between the two ends")

    def _emit(self, body: Buffer, frames: list[Frame]) -> None:
        frames.append(Frame(body, self._buffers, self._head[3], self._head[4]))
        self._buffers, self._body = [], b""
        self._stage, self._need = 0, _HEADER.size


class _Outgoing:
    """The buffers of what is being encoded. The encoder refers to it and not to its codec: that would be a cycle."""

    __slots__ = ("buffers",)

    def __init__(self) -> None:
        self.buffers: list[Buffer] = []

    def put(self, value: Any) -> Any:
        if type(value) is Blob:
            start = len(self.buffers)
            self.buffers.extend(value.frames)
            return msgspec.msgpack.Ext(_BLOB_CODE, _EXT.pack(start, len(value.frames)))
        raise TypeError(f"{type(value).__name__} cannot stand in a message")


class _Incoming:
    """The buffers of what is being decoded, as :class:`_Outgoing`."""

    __slots__ = ("buffers",)

    def __init__(self) -> None:
        self.buffers: list[memoryview] = []

    def get(self, code: int, data: memoryview) -> Blob:
        if code != _BLOB_CODE:
            raise FramingError(f"unknown extension {code}")
        start, count = _EXT.unpack(data)
        if not count or start + count > len(self.buffers):
            raise FramingError("a message refers to a buffer that is not in its frame")
        return Blob(self.buffers[start : start + count])


class Codec:
    """Messages to a body and buffers, and back, for one pair of directions.

    Parameters
    ----------
    inbound
        The union of messages that may arrive.
    """

    __slots__ = ("_checks", "_decoder", "_encoder", "_incoming", "_outgoing")

    def __init__(self, inbound: Any) -> None:
        self._checks = checks_of(inbound)
        self._outgoing, self._incoming = _Outgoing(), _Incoming()
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._outgoing.put)
        self._decoder = msgspec.msgpack.Decoder(list[inbound], ext_hook=self._incoming.get)

    def encode(self, messages: Sequence[Any]) -> tuple[bytes, list[Buffer]]:
        """Return the body for ``messages`` and the buffers that go with it."""
        buffers: list[Buffer] = []
        self._outgoing.buffers = buffers
        try:
            return self._encoder.encode(messages), buffers
        finally:
            self._outgoing.buffers = []

    def decode(self, body: Buffer, buffers: list[memoryview]) -> list[Any]:
        """Return the messages of a frame.

        Raises
        ------
        FramingError
            If the body is no list of messages of this direction.
        """
        self._incoming.buffers = buffers
        try:
            messages: list[Any] = self._decoder.decode(body)
            for message in messages:
                check = self._checks.get(type(message))
                if check is not None:
                    check((message,))
        except MemoryError:
            raise  # no fault of the message
        except Exception as error:  # of text that is none, of what is nested too deep
            raise FramingError(f"a message that is not of this protocol: {error}") from error
        finally:
            self._incoming.buffers = []
        return messages

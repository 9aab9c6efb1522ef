"""Tags that prove of each frame that the peer of the handshake made it, in this place, for this connection.

TLS does this for what goes between machines. On a carrier that others may take over (TCP on one machine, a local socket
between two users), each direction has a key of its own, derived from the secret and all that was said in the
handshake, and each tag has a number. A frame that was changed, left out, repeated, turned around or taken from another
connection has a wrong tag. A sealed frame is::

    header | lengths | tag of both | body | buffer … | tag of body and buffers

The first tag is checked before memory is reserved for what follows, the second before anything is decoded.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Any, Final

TAG_BYTES: Final = 16
#: Buffers of so many bytes together are authenticated by GMAC, which takes a tenth of the time, and longer to begin.
_LARGE: Final = 64 * 1024
#: OpenSSL takes no more at a time.
_STRETCH: Final = 1 << 30


class Seal:
    """The tags of one direction of one connection, in order.

    Parameters
    ----------
    key
        32 bytes that are used for nothing else.
    """

    __slots__ = ("_buffer_key", "_number", "_state")

    def __init__(self, key: bytes) -> None:
        self._state = hashlib.blake2b(key=key, digest_size=TAG_BYTES)
        self._buffer_key = hashlib.blake2b(b"buffers", key=key, digest_size=32).digest()
        self._number = 0

    def tag(self, piece: Any, buffers: Sequence[Any] = ()) -> bytes:
        """The next tag, over ``piece`` and ``buffers``."""
        number = self._number.to_bytes(8, "little")
        self._number += 1
        state = self._state.copy()
        state.update(number)
        if buffers:
            state.update(len(piece).to_bytes(8, "little"))
        state.update(piece)
        if sum(map(len, buffers)) >= _LARGE:
            state.update(self._gmac(number, buffers))
        else:
            for buffer in buffers:
                state.update(buffer)
        return state.digest()

    def verify(self, tag: Any, piece: Any, buffers: Sequence[Any] = ()) -> bool:
        """Whether ``tag`` is the next one, over ``piece`` and ``buffers``."""
        return hmac.compare_digest(self.tag(piece, buffers), bytes(tag))

    def _gmac(self, number: bytes, buffers: Sequence[Any]) -> bytes:
        from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

        made = Cipher(algorithms.AES(self._buffer_key), modes.GCM(number + b"\0\0\0\0")).encryptor()
        for buffer in buffers:
            view = memoryview(buffer)
            for start in range(0, len(view), _STRETCH):
                made.authenticate_additional_data(view[start : start + _STRETCH])
        made.finalize()
        return made.tag


def seals(secret: bytes, transcript: bytes) -> tuple[Seal, Seal]:
    """The seals of what the dialler says and of what the listener says on one connection."""

    def key(side: bytes) -> bytes:
        return hmac.digest(secret, b"seal\0" + side + b"\0" + transcript, hashlib.sha256)

    return Seal(key(b"dialler")), Seal(key(b"listener"))

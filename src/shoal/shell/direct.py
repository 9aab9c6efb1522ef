"""Large buffers between two processes of one user on one machine: one copy by the kernel, past the socket.

The owner tells where in its memory a buffer is, keeps it until told that it was read, and the reader copies it from
there (``process_vm_readv``). Whose memory may be read is decided by the kernel, not here: the same user's, where the
system allows it. Where it does not, the bytes go over the link as ever.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from typing import Any, Final

#: Payloads smaller than this go over the link.
SMALLEST: Final = 1 << 20
#: Bytes that are copied before the event loop has its turn again.
_STRETCH: Final = 64 << 20


class _Buffer(ctypes.Structure):
    """``Py_buffer``, as far as its stable layout goes."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("rest", ctypes.c_byte * 64),
    )


class _Piece(ctypes.Structure):
    """``struct iovec``."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


def _address_of(view: Any, writable: bool = False) -> int:
    buffer = _Buffer()
    ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 1 if writable else 0)
    address: int = buffer.buf or 0
    ctypes.pythonapi.PyBuffer_Release(ctypes.byref(buffer))
    return address


def describe(frames: list[Any]) -> list[Any]:
    """Where the parts of a payload are, as ``[address, bytes]``; a small one is there itself. Keep them alive."""
    views = [memoryview(frame).cast("B") for frame in frames]
    first = bytes(frames[0]) if len(views[0]) < SMALLEST else None
    places: list[Any] = [[_address_of(view), len(view)] for view in views]
    return places if first is None else [first, *places[1:]]


async def read(pid: int, address: int, target: memoryview) -> None:
    """Copy ``len(target)`` bytes at ``address`` of another process.

    Raises
    ------
    OSError
        If the kernel does not allow it, or the process has ended.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    start, done, size = _address_of(target, writable=True), 0, len(target)
    while done < size:
        part = min(size - done, _STRETCH)
        here, there = _Piece(start + done, part), _Piece(address + done, part)
        libc.process_vm_readv.restype = ctypes.c_ssize_t
        count = libc.process_vm_readv(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
        if count <= 0:
            number = ctypes.get_errno()
            raise OSError(number, f"reading the memory of process {pid}: {os.strerror(number)}")
        done += count
        await asyncio.sleep(0)

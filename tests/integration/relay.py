"""A process that sits between two ends of a link, without the secret.

``python -m tests.integration.relay MODE HOST PORT`` says on stdout at which port it listens. The first connection is
treated as MODE says, all others are passed on.
"""

from __future__ import annotations

import os
import pickle
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable

import msgspec

from shoal.tls import own_listening

_HEADER = struct.Struct("<HIIII")
_TAG = 16


class _Mark:
    """Unpickled: writes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def _read(sock: socket.socket, sealed: bool) -> bytes:
    """The next frame, whole."""

    def exactly(size: int) -> bytes:
        found = sock.recv(size, socket.MSG_WAITALL * (not isinstance(sock, ssl.SSLSocket))) if size else b""
        if len(found) < size:
            raise EOFError
        return found

    head = exactly(_HEADER.size)
    _, count, body, _, _ = _HEADER.unpack(head)
    lengths = exactly(8 * count)
    tag = _TAG if sealed else 0
    return head + lengths + exactly(tag + body + sum(struct.unpack(f"<{count}Q", lengths)) + tag)


def _speech(sequence: int, mark: str) -> bytes:
    """What one who may speak would say: run this on all workers."""
    said = b""
    words = [["RegisterClient", "evil"], ["RunFunction", 1, pickle.dumps((_Mark(mark), (), {})), "workers", None, True]]
    for number, word in enumerate(words):
        body = msgspec.msgpack.encode([word])
        said += _HEADER.pack(0x5348, 0, len(body), sequence and sequence + number, 0) + body
    return said


def _flip(frames: list[bytes]) -> list[bytes]:
    last = frames[-1]
    return [last[:-20] + bytes([last[-20] ^ 4]) + last[-19:]]


#: What becomes of a frame; the frames so far are given, of which it is the last.
_CHANGES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "flip": _flip,
    "repeat": lambda frames: [frames[-1], frames[-1]],
    "drop": lambda frames: [],
    "replay": lambda frames: [frames[0]],
    "cut": lambda frames: [frames[-1][:-5]],
    "insert": lambda frames: [_speech(3, "/nowhere"), frames[-1]],
}


def _pump(source: socket.socket, sink: socket.socket, change: Callable[[list[bytes]], list[bytes]] | None) -> None:
    frames: list[bytes] = []
    try:
        while change is not None:
            frames.append(_read(source, sealed=True))
            if len(frames) == 4:
                for frame in change(frames):
                    sink.sendall(frame)
                break
            sink.sendall(frames[-1])
        while data := source.recv(65536):
            sink.sendall(data)
    except (OSError, EOFError):
        pass
    for one in (source, sink):
        try:
            one.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass


def _shake(outer: socket.socket, inner: socket.socket, behind: bytes = b"") -> None:
    for source, sink, more in ((outer, inner, b""), (inner, outer, b""), (outer, inner, behind)):
        sink.sendall(_read(source, sealed=False) + more)


def _treat(mode: str, outer: socket.socket, inner: socket.socket) -> None:
    what, _, further = mode.partition(":")
    if what == "speak":
        _shake(outer, inner)
        outer.close()
        inner.recv(1000)  # the welcome
        inner.sendall(_speech(int(further[0]), further[1:]))
        inner.recv(1000)
        inner.close()
        return
    if what == "behind":
        _shake(outer, inner, _speech(int(further[0]), further[1:]))
        return
    if what == "reflect":
        _shake(outer, inner)
        outer.sendall(_read(inner, sealed=True))
        outer.sendall(_read(outer, sealed=True))
        return
    _shake(outer, inner)
    change = _CHANGES[what]
    to_dialler = further == "dialler"
    threading.Thread(target=_pump, args=(outer, inner, None if to_dialler else change), daemon=True).start()
    _pump(inner, outer, change if to_dialler else None)


def _ending_tls(outer: socket.socket, inner: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Speak TLS to both, with a certificate of one's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return own_listening().wrap_socket(outer, server_side=True), context.wrap_socket(inner)


def _carry(mode: str, outer: socket.socket, target: tuple[str, int]) -> None:
    with outer, socket.create_connection(target) as inner:
        try:
            if mode == "tls":
                outer, inner = _ending_tls(outer, inner)  # noqa: PLW2901
                _treat("flip:listener", outer, inner)
            elif mode:
                _treat(mode, outer, inner)
            else:
                threading.Thread(target=_pump, args=(outer, inner, None), daemon=True).start()
                _pump(inner, outer, None)
        except (OSError, EOFError):
            pass


def main() -> None:
    """Sit there until the process is ended."""
    mode, host, port = sys.argv[1:4]
    door = socket.create_server(("127.0.0.1", 0))
    print(door.getsockname()[1], flush=True)  # noqa: T201
    while True:
        outer, _ = door.accept()
        threading.Thread(target=_carry, args=(mode, outer, (host, int(port))), daemon=True).start()
        mode = mode if mode == "tls" else ""


if __name__ == "__main__":
    main()

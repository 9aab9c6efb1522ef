"""What this end knows of a connection: whether others may sit between, and what tells that none does."""

from __future__ import annotations

import hashlib
import os
import socket
import struct
import sys
from typing import Any

from shoal.core.session import Carrier


def carrier_of(transport: Any, dialling: bool) -> Carrier:
    """What is known of the connection of ``transport``.

    Links within a process are nobody else's. TLS is bound to the certificate of who listens. On a local socket the
    kernel says whose process is at the other end: if it is one of this user's, it has only to be the one that proves
    the secret. All else is sealed.
    """
    found = transport.get_extra_info("socket")
    if found is None:
        return Carrier()
    encrypted = transport.get_extra_info("ssl_object")
    if encrypted is not None:
        shown = encrypted.getpeercert(True) if dialling else encrypted.context.shown
        return Carrier(b"tls " + hashlib.sha256(shown).digest())
    if found.family == socket.AF_UNIX and sys.platform.startswith("linux"):
        with socket.socket(fileno=os.dup(found.fileno())) as copy:
            pid, uid, _ = struct.unpack("3i", copy.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid == os.getuid() and pid > 0:
            return Carrier(process=os.getpid(), peer_process=pid)
    return Carrier(seal=True)

"""The states of servers and clusters, by name."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a scheduler, worker, nanny or cluster is in its life; equal to its name as text."""

    undefined = "undefined"
    created = "created"
    init = "init"
    starting = "starting"
    running = "running"
    paused = "paused"
    stopping = "stopping"
    stopped = "stopped"
    closing = "closing"
    closing_gracefully = "closing_gracefully"
    closed = "closed"
    failed = "failed"
    dont_reply = "dont_reply"

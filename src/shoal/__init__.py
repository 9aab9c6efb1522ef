"""shoal runs Python task graphs on a fleet of supervised worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.client.client import Client as Client
    from shoal.client.future import Future as Future
    from shoal.client.waiting import as_completed as as_completed
    from shoal.client.waiting import wait as wait
    from shoal.deploy.local import LocalCluster as LocalCluster
    from shoal.errors import KilledWorker as KilledWorker
    from shoal.errors import Reschedule as Reschedule

_EXPORTS = {
    "Client": "shoal.client.client",
    "Future": "shoal.client.future",
    "KilledWorker": "shoal.errors",
    "LocalCluster": "shoal.deploy.local",
    "Reschedule": "shoal.errors",
    "as_completed": "shoal.client.waiting",
    "wait": "shoal.client.waiting",
}
__all__ = ["Client", "Future", "KilledWorker", "LocalCluster", "Reschedule", "as_completed", "wait"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'shoal' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)

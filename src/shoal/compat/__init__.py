"""``import distributed`` as shoal: programs and libraries that were written for dask.distributed, unchanged."""

from __future__ import annotations

from shoal.compat.importing import as_distributed

__all__ = ["as_distributed"]

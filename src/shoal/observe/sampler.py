"""How much memory a cluster uses while a block of code runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from html import escape
from time import time
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.client.current import get_client
from shoal.errors import UsageError

_MEASURES = ("process", "managed", "unmanaged", "optimistic", "spilled")


class MemorySampler:
    """Samples of the memory of all workers together, under labels.

    Examples
    --------
    >>> sampler = MemorySampler()  # doctest: +SKIP
    >>> with sampler.sample("one way"):  # doctest: +SKIP
    ...     first.compute()
    >>> with sampler.sample("the other"):  # doctest: +SKIP
    ...     second.compute()
    >>> sampler.plot(align=True)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        #: By label: pairs of seconds since 1970 and bytes.
        self.samples: dict[str, list[tuple[float, int]]] = {}

    def sample(
        self, label: str | None = None, *, client: Any = None, measure: str = "process", interval: float = 0.5
    ) -> Any:
        """Take samples while a block of code runs (``async with``, for an asynchronous client).

        Parameters
        ----------
        label
            Under which they are kept.
        client
            Of the cluster; the current one by default.
        measure
            ``"process"`` (all of the workers' processes), ``"managed"`` (results in memory), ``"unmanaged"`` (the
            rest), ``"optimistic"`` (both), ``"spilled"`` (on disk).
        interval
            Seconds between two samples.

        Raises
        ------
        UsageError
            If there is no such measure.
        """
        if measure not in _MEASURES:
            raise UsageError(f"measure must be one of {', '.join(_MEASURES)}, got {measure!r}")
        found = get_client() if client is None else client
        pause = config.seconds(interval, "interval")
        if not pause or pause <= 0:
            raise UsageError(f"interval must be more than 0 seconds, got {interval!r}")
        name = label or uuid4().hex
        if found.asynchronous:
            return self._awaited(found, name, measure, pause)
        return self._blocking(found, name, measure, pause)

    @contextmanager
    def _blocking(self, client: Any, label: str, measure: str, interval: float) -> Iterator[None]:
        future = asyncio.run_coroutine_threadsafe(self._take(client, label, measure, interval), client.loop)
        try:
            yield
        finally:
            future.cancel()

    @asynccontextmanager
    async def _awaited(self, client: Any, label: str, measure: str, interval: float) -> AsyncIterator[None]:
        task = asyncio.get_running_loop().create_task(self._take(client, label, measure, interval))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _take(self, client: Any, label: str, measure: str, interval: float) -> None:
        samples = self.samples.setdefault(label, [])
        while True:
            found = await client._connection.ask("memory")
            samples.append((time(), found[measure]))
            await asyncio.sleep(interval)

    def to_pandas(self, *, align: bool = False) -> Any:
        """A data frame with a column for each label, indexed by time; where ``align``, from the beginning of each."""
        import pandas as pd

        columns = {}
        for label, samples in self.samples.items():
            index = pd.to_datetime([when for when, _ in samples], unit="s")
            column = pd.Series([size for _, size in samples], index=index, name=label)
            column = column[~column.index.duplicated()].sort_index()
            if align and len(column):
                column.index -= column.index[0]
            columns[label] = column
        frame = pd.DataFrame(columns)
        return frame.ffill().where(frame.bfill().notna())

    def plot(self, *, align: bool = False, **kwargs: Any) -> Any:
        """Plot the samples with pandas (which needs matplotlib), in GiB; ``kwargs`` are for ``DataFrame.plot``."""
        frame = self.to_pandas(align=align) / 2**30
        if align:
            frame.index = frame.index.total_seconds()
        return frame.plot(xlabel="time", ylabel="Cluster memory (GiB)", **kwargs)

    def __repr__(self) -> str:
        told = ", ".join(f"{label}: {len(samples)}" for label, samples in self.samples.items())
        return f"<MemorySampler {told or 'empty'}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(label)}</td><td>{len(samples)}</td><td>{max(size for _, size in samples):,}</td></tr>"
            for label, samples in self.samples.items()
            if samples
        )
        return f"<table><tr><th>label</th><th>samples</th><th>most bytes</th></tr>{rows}</table>"

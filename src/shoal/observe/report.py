"""A report on what the cluster did while a block of code ran, as one HTML file."""

from __future__ import annotations

import sys
import warnings
from html import escape
from pathlib import Path
from time import localtime, strftime, time
from types import TracebackType
from typing import Any, Self

from shoal.client.current import get_client
from shoal.ids import key_prefix, key_to_wire
from shoal.shell import pages


class performance_report:
    """Write an HTML file on what the cluster does while a block of code runs: when what ran where, and for how long.

    Parameters
    ----------
    filename
        Of the file.
    stacklevel
        Which caller's code stands in it: 1 is the one with the block, 2 the one that called that.
    mode, storage_options
        Accepted: the file has all that it needs within it, and is written to this machine's disk.

    Examples
    --------
    >>> with performance_report(filename="my-report.html"):  # doctest: +SKIP
    ...     frame.mean().compute()
    """

    def __init__(
        self,
        filename: str | Path = "dask-report.html",
        stacklevel: int = 1,
        mode: str | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        if storage_options:
            warnings.warn("storage_options have no effect: the report is a file of this machine", stacklevel=2)
        self.filename, self._depth = filename, stacklevel
        self._client: Any = None
        self._start = 0.0
        self._code = ""

    def _begin(self, depth: int) -> None:
        self._client, self._start = get_client(), time()
        frame = sys._getframe(depth)
        try:
            import inspect

            self._code = inspect.getsource(frame)
        except (OSError, TypeError):
            self._code = "(the source is not there: it was typed in)"

    def __enter__(self) -> Self:
        self._begin(1 + self._depth)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        client = self._client
        self._write(
            client.get_task_stream(start=self._start),
            client.profile(start=self._start),
            client.scheduler_info(),
            client.get_scheduler_logs(500),
        )

    async def __aenter__(self) -> Self:
        self._begin(1 + self._depth)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        client = self._client
        self._write(
            await client.get_task_stream(start=self._start),
            await client.profile(start=self._start),
            await client.scheduler_info(),
            await client.get_scheduler_logs(500),
        )

    def _write(self, rows: list[dict[str, Any]], profile: dict[str, Any], info: dict[str, Any], logs: Any) -> None:
        took = time() - self._start
        busy = sum(step["stop"] - step["start"] for row in rows for step in row["startstops"])
        workers = info["workers"].values()
        threads = sum(worker["nthreads"] for worker in workers)
        summary = [
            ("begun", strftime("%Y-%m-%d %H:%M:%S", localtime(self._start))),
            ("seconds", took),
            ("tasks that ran", len(rows)),
            ("of them failed", sum(row["status"] == "error" for row in rows)),
            ("seconds of threads in tasks", busy),
            ("share of all threads", f"{busy / (took * threads):.0%}" if threads and took else "no threads"),
            ("workers", len(workers)),
            ("threads", threads),
            ("scheduler", info["address"]),
        ]
        named: dict[str, list[float]] = {}
        for row in rows:
            found = named.setdefault(_prefix(row["key"]), [0, 0.0, 0.0, 0, 0])
            for step in row["startstops"]:
                seconds = step["stop"] - step["start"]
                found[0] += 1
                found[1] += seconds
                found[2] = max(found[2], seconds)
            found[3] += row["nbytes"]
            found[4] = max(found[4], row["peak_memory"])
        by_name = [
            (name, int(count), total, total / count, longest, int(nbytes), int(peak))
            for name, (count, total, longest, nbytes, peak) in sorted(named.items(), key=lambda one: -one[1][1])
        ]
        members = [
            (worker["name"], address, worker["nthreads"], worker["memory_limit"], worker["metrics"].get("executed", 0))
            for address, worker in info["workers"].items()
        ]
        columns = ["name", "tasks", "seconds", "mean", "longest", "bytes of results", "most memory of one"]
        lines = "\n".join(line for _, line in logs)
        body = (
            "<h2>Summary</h2>"
            + pages.table(["", ""], summary)
            + "<h2>Tasks</h2>"
            + pages.table(columns, by_name)
            + "<h2>Task stream</h2>"
            + pages.task_stream(rows, _prefix)
            + "<h2>Profile of the workers</h2>"
            + pages.profile(profile)
            + "<h2>Workers</h2>"
            + pages.table(["name", "address", "threads", "memory limit", "executions so far"], members)
            + f"<h2>Code</h2><pre>{escape(self._code)}</pre>"
            + f"<h2>The scheduler's log</h2><pre>{escape(lines)}</pre>"
        )
        pages.Page("shoal performance report", body).save(self.filename)

    def __repr__(self) -> str:
        return f"<performance_report to {self.filename}>"


def _prefix(key: Any) -> str:
    return key_prefix(key_to_wire(key))

"""Progress bars, in terminals and notebooks, for futures and all that they are made of."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from html import escape
from time import monotonic
from typing import Any, Final

from shoal import config
from shoal.client.keeping import futures_of
from shoal.client.loop import run_threadsafe
from shoal.client.waiting import wait
from shoal.errors import UsageError
from shoal.shell.pages import color

_GROUPINGS = ("prefix", "group", "spans")
#: A look at so many tasks a second is not too much to ask of the scheduler.
_LOOKS: Final = 1_000_000
_ALL: Final = "all tasks"

Counts = dict[str, dict[str, int]]


def progress(
    *futures: Any,
    notebook: bool | None = None,
    multi: bool = True,
    complete: bool = True,
    group_by: str = "prefix",
    **kwargs: Any,
) -> Any:
    """Show how far futures, and all that they are made of, are.

    In a terminal, this returns when they are done. In a notebook, it returns at once something that shows itself, and
    goes on doing so. With futures of an asynchronous client, it returns what is to be awaited.

    Parameters
    ----------
    *futures
        Futures, lists of them, persisted collections.
    notebook
        Whether this is a notebook; found out by default.
    multi
        A bar for each name, or one for all.
    complete
        Whether what was done before counts.
    group_by
        What a name is: ``"prefix"`` (of the keys), ``"group"`` (of a collection), ``"spans"``.
    **kwargs
        ``interval``: seconds, or text as ``"100 ms"``, between two looks.

    Raises
    ------
    UsageError
        If an argument makes no sense.

    Examples
    --------
    >>> progress(client.map(slow, range(1000)))  # doctest: +SKIP
    slow ━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━━  412/1000 0:00:12
    """
    unknown = sorted(set(kwargs) - {"interval", "scheduler", "loop", "width", "start"})
    if unknown:
        raise UsageError(f"progress does not know {unknown[0]!r}")
    if group_by not in _GROUPINGS:
        raise UsageError(f"group_by must be one of {', '.join(_GROUPINGS)}, got {group_by!r}")
    found = futures_of(futures[0] if len(futures) == 1 else list(futures))
    if not found:
        raise UsageError("there are no futures here to show the progress of; persist or submit first")
    interval = config.seconds(kwargs.get("interval", 0.1), "interval") or 0.1
    client = found[0].client
    keys = [future._known.key for future in found]
    watcher = Watcher(client, keys, complete, group_by if multi else "", interval)
    if _in_notebook() if notebook is None else notebook:
        return NotebookProgress(watcher, found)
    if client.asynchronous:
        return _show_in_terminal_async(watcher, found)
    return _show_in_terminal(watcher, found)


class Watcher:
    """Asks the scheduler every now and then.

    Parameters
    ----------
    client, keys
        Whose futures, and which.
    complete, group_by
        As for :func:`progress`; an empty ``group_by`` is one name for all.
    interval
        Seconds between two looks.
    """

    def __init__(self, client: Any, keys: list[str], complete: bool, group_by: str, interval: float) -> None:
        self.client, self._keys, self._complete, self._by, self._interval = client, keys, complete, group_by, interval

    async def watch(self, show: Callable[[Counts], None]) -> None:
        """Call ``show`` with the counts after each look, until all is done."""
        connection = self.client._connection
        args = {"keys": self._keys, "complete": self._complete, "by": self._by or "prefix"}
        _, number = await connection.meet("progress-begin", "", **args)
        try:
            while True:
                _, counts = await connection.meet("progress-look", "", number=number)
                if counts is None:
                    return
                left = sum(one["all"] - one["done"] for one in counts.values())
                show(counts if self._by else _together(counts))
                if not left:
                    return
                await asyncio.sleep(max(self._interval, left / _LOOKS))
        finally:
            if not connection.closed:
                connection.say_meet("progress-end", "", number=number)


def _together(counts: Counts) -> Counts:
    names = ("all", "done", "failed", "processing")
    return {_ALL: {name: sum(one[name] for one in counts.values()) for name in names}} if counts else {}


class _Bars:
    """Bars in a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._bars: dict[str, Any] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("[red]{task.fields[failed]}"),
        )

    def show(self, counts: Counts) -> None:
        for name, one in counts.items():
            if name not in self._bars:
                self._bars[name] = self.progress.add_task(name, total=one["all"], failed="")
            failed = f"{one['failed']} failed" if one["failed"] else ""
            self.progress.update(self._bars[name], completed=one["done"], total=one["all"], failed=failed)


def _show_in_terminal(watcher: Watcher, futures: list[Any]) -> None:
    bars = _Bars()
    with bars.progress:
        watcher.client._thread.sync(watcher.watch(bars.show))
    wait(futures)


async def _show_in_terminal_async(watcher: Watcher, futures: list[Any]) -> None:
    bars = _Bars()
    with bars.progress:
        await watcher.client._await(watcher.watch(bars.show))
    await wait(futures)


class NotebookProgress:
    """Progress in a notebook: HTML that is replaced while the tasks run.

    Parameters
    ----------
    watcher
        Who looks.
    futures
        What is looked at: kept until it is done.
    """

    def __init__(self, watcher: Watcher, futures: list[Any]) -> None:
        self._futures = futures
        self._begun = monotonic()
        self._counts: Counts = {}
        self._handle: Any = None
        self.error: BaseException | None = None
        self._changed = threading.Event()
        self._future = run_threadsafe(watcher.watch(self._show), watcher.client.loop)
        self._future.add_done_callback(self._done)

    def _show(self, counts: Counts) -> None:
        self._counts = counts
        self._changed.set()
        if self._handle is not None:
            self._handle.update(self)

    def _done(self, future: Any) -> None:
        self._futures = []
        if not future.cancelled():
            self.error = future.exception()

    @property
    def done(self) -> bool:
        """Whether all is done."""
        return self._future.done()

    def _ipython_display_(self, **kwargs: Any) -> None:
        from IPython.display import HTML, DisplayHandle

        self._changed.wait(1.0)
        handle = DisplayHandle()
        handle.display(HTML(self._repr_html_()))
        self._handle = _Handle(handle)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td style='width:20em'><div style='background:#eee'>"
            f"<div style='background:{color(name)};height:1em;width:{100 * one['done'] / max(one['all'], 1):.1f}%'>"
            f"</div></div></td><td>{one['done']}&thinsp;/&thinsp;{one['all']}</td>"
            f"<td style='color:#b00'>{str(one['failed']) + ' failed' if one['failed'] else ''}</td></tr>"
            for name, one in self._counts.items()
        )
        seconds = monotonic() - self._begun
        return f"<b>{'Done' if self._future.done() else 'Running'}</b> {seconds:.1f} s<table>{rows}</table>"

    def __repr__(self) -> str:
        told = ", ".join(f"{name} {one['done']}/{one['all']}" for name, one in self._counts.items())
        return f"<progress: {told or 'nothing heard yet'}>"


class _Handle:
    """Replaces what a notebook shows."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    def update(self, shown: NotebookProgress) -> None:
        from IPython.display import HTML

        self._handle.update(HTML(shown._repr_html_()))


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")

"""What a client can ask about the cluster: where things are, why, since when, and all of it in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from time import time
from types import TracebackType
from typing import Any, Self, TypeVar

from shoal import checks, config
from shoal.client import dump
from shoal.client.future import Future
from shoal.client.hooks import Hooks
from shoal.errors import UsageError
from shoal.ids import key_from_wire, key_prefix, key_to_wire
from shoal.messages import RunFunction
from shoal.shell import hardware, inspection, pages, serialize
from shoal.shell.profiler import merge

T = TypeVar("T")


class Questions(Hooks):
    """Questions."""

    def _query(self, what: str, shape: Callable[[Any], T], **args: Any) -> Any:
        async def ask() -> T:
            return shape(await self._connection.ask(what, **args))

        self._check_open()
        return self._sync(ask())

    def who_has(self, futures: Any = None) -> Any:
        """Addresses of the workers that hold each key."""
        keys = None if futures is None else self._keys_of(futures)
        return self._query(
            "who_has", lambda found: {key_from_wire(key): tuple(where) for key, where in found.items()}, keys=keys
        )

    def has_what(self, workers: Any = None) -> Any:
        """Keys that each worker holds."""
        return self._query("has_what", _keys_by_worker, workers=checks.workers(workers))

    def processing(self, workers: Any = None) -> Any:
        """Keys that are assigned to each worker and not done."""
        return self._query("processing", _keys_by_worker, workers=checks.workers(workers))

    def nthreads(self, workers: Any = None) -> Any:
        """Threads of each worker."""
        return self._query("nthreads", dict, workers=checks.workers(workers))

    ncores = nthreads

    def nbytes(self, keys: Any = None, summary: bool = True) -> Any:
        """Bytes of results, summed by the prefix of the keys, or for each key."""
        wires = None if keys is None else [key_to_wire(key) for key in keys]
        return self._query("nbytes", dict, keys=wires, summary=summary)

    def scheduler_info(self, n_workers: int = -1) -> Any:
        """Who the scheduler is, and (up to ``n_workers`` of) its workers by address."""
        n_workers = checks.whole(n_workers, "n_workers", -1)
        return self._query("identity", lambda found: {**found, "address": self.scheduler_address}, n_workers=n_workers)

    def why(self, key: Any) -> Any:
        """Say in words why a key (or future) is where it is: what it waits for, where, since when."""
        wire = key_to_wire(key.key if isinstance(key, Future) else key)
        return self._query("why", str, key=wire)

    def story(self, *keys_or_stimuli: Any, on_error: str = "raise") -> Any:
        """The transitions of keys (or those that stimuli caused), at the scheduler and the workers, by time.

        Returns
        -------
        list of tuple
            Who, key, state before, event, state after, stimulus, when (seconds of that process's own clock).
        """
        self._check_open()
        wires = [key_to_wire(key.key if isinstance(key, Future) else key) for key in keys_or_stimuli]
        return self._sync(self._story(wires, on_error))

    async def _story(self, wires: list[str], on_error: str) -> list[tuple[Any, ...]]:
        rows = [("scheduler", *row) for row in await self._connection.ask("story", keys=wires)]
        payload = serialize.dumps((inspection.story, (wires,), {}), "the function")
        told = await self._run(lambda rid: RunFunction(rid, payload), True, on_error)
        for address, found in told.items():
            rows += [(address, *row) for row in found] if isinstance(found, list) else []
        return sorted(rows, key=lambda row: row[-1])

    async def _ask_workers(self, function: Callable[..., Any], *args: Any, workers: list[str] | None = None) -> Any:
        """What a function of ours says on each worker that answers, by address."""
        payload = serialize.dumps((function, args, {}), "the function")
        return await self._run(lambda rid: RunFunction(rid, payload, workers=workers), True, "ignore")

    def call_stack(self, futures: Any = None, keys: Any = None) -> Any:
        """Where the code of running tasks is now.

        Parameters
        ----------
        futures, keys
            Tasks to look at; all that run by default.

        Returns
        -------
        dict
            For each worker that runs any: for each key, the lines of its stack, outermost first.
        """
        wires = None
        if futures is not None or keys is not None:
            wires = [*(self._keys_of(futures) if futures is not None else ()), *map(key_to_wire, keys or ())]
        return self._sync(self._call_stack(wires))

    async def _call_stack(self, wires: list[str] | None) -> dict[str, dict[Any, tuple[str, ...]]]:
        told = await self._ask_workers(inspection.call_stacks, wires)
        return {
            address: {key_from_wire(key): tuple(lines) for key, lines in stacks.items()}
            for address, stacks in told.items()
            if stacks
        }

    def get_scheduler_logs(self, n: int | None = None) -> Any:
        """The last ``n`` lines that the scheduler logged (all that it keeps by default): level and text."""
        return self.run_on_scheduler(inspection.scheduler_logs, n)

    def get_worker_logs(self, n: int | None = None, workers: Any = None, nanny: bool = False) -> Any:
        """The last ``n`` lines that each worker logged, or its nanny: level and text, by the worker's address.

        What tasks log themselves is among them, from the level of warnings on.
        """
        return self.run(inspection.logs, n, workers=workers, nanny=nanny, on_error="ignore")

    def get_nanny_logs(self, n: int | None = None, nannies: Any = None) -> Any:
        """As :meth:`get_worker_logs`, of the nannies: starts, deaths and their reasons."""
        return self.get_worker_logs(n, nannies, nanny=True)

    def get_task_stream(
        self,
        start: Any = None,
        stop: Any = None,
        count: int | None = None,
        plot: bool | str = False,
        filename: str = "task-stream.html",
        bokeh_resources: Any = None,
    ) -> Any:
        """When each task ran where: executions that ended lately, oldest first.

        Parameters
        ----------
        start, stop
            Seconds since 1970; text as ``"5 minutes"`` is so long ago.
        count
            No more than so many, the newest.
        plot
            True also returns a page that shows it (in a notebook, by itself); ``"save"`` writes that into a file.
        filename
            Of that file.
        bokeh_resources
            Accepted: the page has all that it needs within it.

        Returns
        -------
        list of dict
            ``key``, ``worker`` (its address), ``thread`` (its number there), ``status`` (``"OK"`` or ``"error"``),
            ``startstops`` (a list with one ``{"action": "compute", "start": …, "stop": …}``, seconds since 1970),
            ``nbytes`` and ``type`` of the result, ``peak_memory`` (by how many bytes the worker's process grew
            meanwhile; 0 where it was too short to tell).
        """

        count = None if count is None else checks.whole(count, "count", 0)

        def shape(rows: list[list[Any]]) -> Any:
            found = _stream(rows)
            return (found, _drawn(found, plot, filename)) if plot else found

        return self._query("task_stream", shape, start=_moment(start, "start"), stop=_moment(stop, "stop"), count=count)

    def spans(self) -> Any:
        """What the tasks of each :func:`~shoal.span` took, with those inside of it: a list of dicts, oldest first."""
        return self._query("spans", list)

    def profile(
        self,
        key: str | None = None,
        start: Any = None,
        stop: Any = None,
        workers: Any = None,
        merge_workers: bool = True,
        plot: bool | str = False,
        filename: str | None = None,
        server: bool = False,
        scheduler: bool = False,
    ) -> Any:
        """Where the code of tasks was: what a look at their stacks every 10 ms saw.

        Parameters
        ----------
        key
            A task prefix; all by default.
        start, stop
            Seconds since 1970; text as ``"5 minutes"`` is so long ago.
        workers
            Addresses or names; all by default.
        merge_workers
            False returns a tree for each worker, by address.
        plot
            True also returns a page that shows it (in a notebook, by itself); ``"save"`` writes that into a file.
        filename
            Of that file; given one, it is written.
        server, scheduler
            Must be False: the event loops of workers and scheduler are not looked at (use py-spy).

        Returns
        -------
        dict
            A tree, as ``shell/profiler.py`` describes it.

        Raises
        ------
        UsageError
            If ``server`` or ``scheduler`` is asked for.
        """
        if server or scheduler:
            raise UsageError("event loops are not profiled: use 'py-spy record --pid' on the process in question")
        since, until = _moment(start, "start"), _moment(stop, "stop")

        async def ask() -> Any:
            told = await self._ask_workers(inspection.profile, key, since, until, workers=checks.workers(workers))
            if not merge_workers:
                return told
            tree = merge(told.values())
            if not (plot or filename):
                return tree
            page = pages.Page("shoal profile", pages.profile(tree))
            if plot == "save" or filename:
                page.save(filename or "dask-profile.html")
            return tree, page

        self._check_open()
        return self._sync(ask())

    def get_versions(self, check: bool = False, packages: Sequence[str] | None = None) -> Any:
        """Versions of Python and of packages, here, at the scheduler and on the workers.

        Parameters
        ----------
        check
            Whether a difference is an error.
        packages
            Further packages to look at.

        Returns
        -------
        dict
            ``"client"``, ``"scheduler"``, and ``"workers"`` by address: each with ``"host"`` and ``"packages"``.

        Raises
        ------
        UsageError
            If ``check`` and they differ, naming all that do.
        """
        names = [packages] if isinstance(packages, str) else [checks.name(one, "packages") for one in packages or ()]

        async def ask() -> dict[str, Any]:
            payload = serialize.dumps((inspection.versions, (names,), {}), "the function")
            found = {
                "scheduler": await self._run_on_scheduler(payload),
                "workers": await self._ask_workers(inspection.versions, names),
                "client": inspection.versions(names),
            }
            if check and (told := inspection.differences(found)):
                raise UsageError("versions differ:\n" + told)
            return found

        self._check_open()
        return self._sync(ask())

    def benchmark_hardware(self) -> Any:
        """Measure memory and disk of the workers, and the network between them: bytes a second, by size.

        Returns
        -------
        dict
            ``"memory"`` (copying), ``"disk"`` (writing) and ``"network"`` (from worker to worker): each a mapping of
            sizes, as ``"1 MiB"``, to bytes a second, the mean of all workers. What is measured is data that is put on a
            worker; results that are fetched between workers of one machine go past the network, and faster.
        """

        async def ask() -> dict[str, dict[str, float]]:
            found: dict[str, dict[str, float]] = {}
            for what, measure in (("disk", hardware.disk), ("memory", hardware.memory), ("network", hardware.network)):
                peers = [[w[0], w[1]] for w in await self._connection.ask("put_targets", workers=None)]
                told = (await self._ask_workers(measure, peers)).values()
                sizes = {size: [one[size] for one in told if size in one] for one in told for size in one}
                found[what] = {size: sum(rates) / len(rates) for size, rates in sizes.items() if rates}
            return found

        self._check_open()
        return self._sync(ask())

    def dump_cluster_state(
        self,
        filename: str = "dask-cluster-dump",
        write_from_scheduler: bool | None = None,
        exclude: Iterable[str] = (),
        format: str = "msgpack",
    ) -> Any:
        """Write what the scheduler and the workers know into a file, to be read with :class:`~shoal.DumpArtefact`.

        Functions, arguments and results are not in it.

        Parameters
        ----------
        filename
            Without its ending, which is ``.msgpack.gz`` or ``.yaml``.
        write_from_scheduler
            Whether the scheduler's process writes it, on its machine; this one does by default.
        exclude
            Fields of tasks and workers to leave out, as ``"story"``.
        format
            ``"msgpack"`` or ``"yaml"``.

        Returns
        -------
        str
            The name of the file.
        """
        if format not in dump.FORMATS:
            raise UsageError(f"format must be one of {', '.join(dump.FORMATS)}, got {format!r}")
        left_out = [exclude] if isinstance(exclude, str) else list(exclude)
        return self._sync(self._dump(str(filename), left_out, format, bool(write_from_scheduler)))

    async def _dump(self, filename: str, exclude: list[str], format: str, there: bool) -> str:
        scheduler = await self._connection.ask("snapshot")
        scheduler["groups"] = await self._connection.ask("groups")
        scheduler["prefixes"] = await self._connection.ask("prefixes")
        workers = await self._ask_workers(inspection.dump_worker)
        for worker in scheduler["workers"].values():
            workers.setdefault(worker["addresses"][0], {"error": "it did not answer"})
        state = {"scheduler": scheduler, "workers": workers}
        if not there:
            return dump.write(filename, state, exclude, format)
        payload = serialize.dumps((dump.write, (filename, state, exclude, format), {}), "the dump")
        written: str = await self._run_on_scheduler(payload)
        return written


class get_task_stream:
    """Gather what runs while a block of code does.

    >>> with get_task_stream() as stream:  # doctest: +SKIP
    ...     client.gather(client.map(str, range(3)))
    >>> len(stream.data)  # doctest: +SKIP
    3

    Parameters
    ----------
    client
        The current one by default.
    plot, filename
        As for :meth:`Client.get_task_stream`; the page is ``figure`` afterwards.
    """

    def __init__(self, client: Any = None, plot: bool | str = False, filename: str = "task-stream.html") -> None:
        if client is None:
            from shoal.client.current import get_client

            client = get_client()
        self.client = client
        #: As :meth:`Client.get_task_stream` returns it, once the block is left.
        self.data: list[dict[str, Any]] = []
        self.figure: pages.Page | None = None
        self._start, self._plot, self._filename = 0.0, plot, filename

    def __enter__(self) -> Self:
        self._start = time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._fill(self.client.get_task_stream(start=self._start))

    def _fill(self, rows: list[dict[str, Any]]) -> None:
        self.data += rows
        if self._plot:
            self.figure = _drawn(self.data, self._plot, self._filename)

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._fill(await self.client.get_task_stream(start=self._start))


def _moment(value: Any, name: str) -> float | None:
    """Seconds since 1970, of a number or of text that says how long ago."""
    if isinstance(value, str):
        return time() - (config.seconds(value, name) or 0.0)
    if value is not None and not isinstance(value, int | float):
        raise UsageError(f"{name} must be seconds since 1970, or text as '5 minutes', got {value!r}")
    return value


def _drawn(rows: list[dict[str, Any]], plot: bool | str, filename: str) -> pages.Page:
    page = pages.Page("shoal task stream", pages.task_stream(rows, lambda key: key_prefix(key_to_wire(key))))
    if plot == "save":
        page.save(filename)
    return page


def _stream(rows: list[list[Any]]) -> list[dict[str, Any]]:
    return [
        {
            "key": key_from_wire(key),
            "worker": worker,
            "thread": thread,
            "status": status,
            "startstops": [{"action": "compute", "start": began, "stop": ended}],
            "nbytes": nbytes,
            "type": kind,
            "peak_memory": peak,
        }
        for key, worker, thread, status, began, ended, nbytes, kind, peak in rows
    ]


def _keys_by_worker(found: dict[str, list[str]]) -> dict[str, tuple[Any, ...]]:
    return {address: tuple(map(key_from_wire, keys)) for address, keys in found.items()}

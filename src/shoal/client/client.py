"""The user's handle on a cluster."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from typing import Any, TypeVar
from uuid import uuid4

from shoal import checks, config
from shoal.client import current
from shoal.client.actor import MakeActor
from shoal.client.executor import ClientExecutor
from shoal.client.future import Future, failure_of
from shoal.client.graphs import Asking, finalized, graph_tasks, persisted, with_futures
from shoal.client.inside import outside
from shoal.client.keeping import futures_of
from shoal.client.loading import load_each
from shoal.client.packing import asking_for, name_of, options_of, own, pack_calls, prefix_of
from shoal.client.remote import RemoteScheduler
from shoal.client.shapes import MISSING, fill, find_futures, flatten, reshape
from shoal.client.sharing import Sharing
from shoal.core.client.future import FutureRecord, Outcome
from shoal.core.framing import COUNT_LIMIT
from shoal.errors import UsageError
from shoal.ids import key_from_wire, key_to_wire
from shoal.messages import Options, Submit, Unwant, Want
from shoal.shell import serialize

logger = logging.getLogger("shoal.client")
T = TypeVar("T")


class Client(Sharing):
    """Connect to a cluster and submit work to it.

    Parameters
    ----------
    address
        Of a scheduler (``"tcp://host:port"``), or a cluster object. Without one, and without a ``scheduler_file`` or
        ``scheduler-address`` in the configuration, a :class:`LocalCluster` is started, with the further keyword
        arguments, and closed with the client.
    timeout
        Seconds to try to reach the scheduler (``distributed.comm.timeouts.connect``).
    set_as_default
        Have dask's collections compute here, and find this client where none is named.
    scheduler_file
        File with the scheduler's address, as ``shoal scheduler --scheduler-file`` writes it.
    security
        :class:`Security` with the cluster's secret; this user's own by default.
    asynchronous
        Run on the caller's event loop: ``client = await Client(..., asynchronous=True)``; what waits is then awaited.
    name
        For the logs.
    heartbeat_interval, serializers, deserializers, extensions, direct_to_workers, connection_limit
        Checked, and without effect: connections are watched by the scheduler, values travel as pickles with their
        buffers beside them, and straight between workers and clients.

    Raises
    ------
    ConnectError
        If nobody answers, saying what was tried and for how long.
    HandshakeError
        If the scheduler does not accept the secret, or speaks another version.

    Examples
    --------
    >>> with LocalCluster(n_workers=2) as cluster, Client(cluster) as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """

    # -------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Any = None,
        workers: Any = None,
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int | None = None,
        fifo_timeout: Any = 0,
        allow_other_workers: bool | None = None,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        killable: bool | None = None,
        task_timeout: Any = None,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on a worker. Futures among the arguments are replaced by their results.

        Parameters
        ----------
        key
            Of the task; made from the function and its arguments by default.
        workers
            Names or addresses of the workers that may run it; with ``allow_other_workers`` a preference.
        resources
            Amounts of the workers' abstract resources that it takes while it runs.
        retries
            How often it is tried again when it raises.
        priority
            Higher runs first.
        fifo_timeout
            Submissions that come within so long of each other are of the same age, as ``"100 ms"``; by default, the
            earlier one runs first.
        actor, actors
            Make an object that stays on its worker, and give an :class:`~shoal.Actor` that stands for it.
        pure
            Whether the same call gives the same result, so that it has the same key.
        killable
            Give it a process of its own, which is ended when the task is cancelled. Its worker outlives whatever it
            does; arguments and results are copied between the two. For graphs: ``dask.annotate(killable=True)``.
        task_timeout
            How long it may take, as ``"10 s"``; then it fails with :class:`~shoal.errors.TaskTimeoutError`. It has a
            process of its own, which is ended. For graphs: ``dask.annotate(timeout="10 s")``.

        Raises
        ------
        SerializationError
            If the function or an argument cannot be pickled.
        ForeignFutureError
            If an argument is a future of another client, or of a closed one.
        """
        actor = checks.flag(actor, "actor") or checks.flag(actors, "actors")
        options = options_of(
            priority, retries, workers, allow_other_workers, resources, actor, None, killable, task_timeout
        )
        if actor:
            func, pure = MakeActor(func), False
        fifo = _fifo(fifo_timeout)
        return self._submit_calls(
            func, [(args, kwargs)], None if key is None else iter([key]), options, pure, fifo=fifo
        )[0]

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: Any = None,
        workers: Any = None,
        retries: int | None = None,
        resources: dict[str, float] | None = None,
        priority: int | None = None,
        allow_other_workers: bool | None = None,
        fifo_timeout: Any = 0,
        actor: bool = False,
        actors: bool = False,
        pure: bool = True,
        batch_size: int | None = None,
        killable: bool | None = None,
        task_timeout: Any = None,
        **kwargs: Any,
    ) -> list[Future]:
        """Run ``func`` on each tuple of the zipped iterables; return a list of futures.

        Parameters
        ----------
        key
            What all keys begin with, in place of the function's name; or a list with one for each call.
        batch_size
            Calls that are sent in one message; by default as many as have 16 MiB of arguments. The first batch runs
            while the iterables are still being read, which waits while more than ``shoal.client.owed-bytes`` are owed
            to the scheduler: streams of inputs need not be there as a whole.

        Raises
        ------
        UsageError
            If ``key`` is a list of another length than there are calls.
        """
        if batch_size is not None:
            batch_size = checks.whole(batch_size, "batch_size", 1, sys.maxsize)
        keys = iter(key) if isinstance(key, list | tuple) else None
        name = prefix_of(key) if key is not None and keys is None else ""
        actor = checks.flag(actor, "actor") or checks.flag(actors, "actors")
        options = options_of(
            priority, retries, workers, allow_other_workers, resources, actor, None, killable, task_timeout
        )
        if actor:
            func, pure = MakeActor(func), False
        fifo = _fifo(fifo_timeout)
        calls = ((args, kwargs) for args in zip(*iterables, strict=False))
        futures: list[Future] = []
        for call in calls:
            part = islice(chain([call], calls), batch_size)
            futures += self._submit_calls(func, part, keys, options, pure, len(futures), fifo, name)
        if isinstance(key, list | tuple) and len(key) > len(futures):
            raise UsageError(f"key holds {len(key)} keys for {len(futures)} calls")
        if not futures and not callable(func):
            raise TypeError(f"func must be callable, got {type(func).__name__}")
        return futures

    def _submit_calls(
        self,
        func: Any,
        calls: Iterable[tuple[Any, Any]],
        keys: Iterator[Any] | None,
        options: Options,
        pure: bool,
        first: int = 0,
        fifo: float = 0.0,
        name: str = "",
    ) -> list[Future]:
        """Submit calls, as many as go into one message; it is not said while too much is owed to the scheduler."""
        if not callable(func):
            raise TypeError(f"func must be callable, got {type(func).__name__}")
        self._check_open()
        fn, payload = self._functions.pickle(func)
        packed = pack_calls(self, fn, name or name_of(func), calls, keys, pure, first)
        self._connection.wait_for_room()  # whoever is interrupted here has said nothing yet
        fresh, drop = self._functions.sending(fn)
        functions = {fn: payload} if fresh else {}
        wants = [spec.key for spec in packed.specs]
        futures = self._wish(wants, Submit(packed.specs, functions, options, wants, fifo=fifo), packed.nbytes)
        for future, held in zip(futures, packed.hidden, strict=True):
            if held is not None:
                future._record.held = held
        if drop is not None:
            self._connection.say(drop)
        return futures

    def get(
        self,
        dsk: Any,
        keys: Any,
        workers: Any = None,
        allow_other_workers: bool | None = None,
        resources: dict[str, float] | None = None,
        sync: bool = True,
        asynchronous: bool | None = None,
        direct: bool | None = None,
        retries: int | None = None,
        priority: int | None = None,
        fifo_timeout: Any = 0,
        **kwargs: Any,
    ) -> Any:
        """Run a dask graph; return the values of ``keys`` in their shape, or futures where ``sync`` is False.

        Inside of a task, the task leaves the pool of threads while it waits (see :func:`~shoal.secede`).
        """
        asking = asking_for(priority, retries, workers, allow_other_workers, resources)
        flat: dict[Any, None] = {}
        flatten(keys, flat)
        futures = self._submit_graph(dsk, list(flat), asking, _fifo(fifo_timeout))
        shaped = reshape(keys, futures)
        if not sync:
            return shaped
        with outside():
            return self.gather(shaped, asynchronous=asynchronous)

    def _submit_graph(self, dsk: Any, keys: list[Any], asking: Asking, fifo: float = 0.0) -> dict[Any, Future]:
        self._check_open()
        specs, hidden = graph_tasks(dsk, self, asking)
        wants = [key_to_wire(key) for key in keys]
        nbytes = sum(serialize.payload_nbytes(spec.payload) + len(spec.key) for spec in specs)
        self._connection.wait_for_room()
        futures = self._wish(wants, Submit(specs, {}, asking({}), wants, fifo=fifo), nbytes)
        for future in futures:
            future._record.held = hidden
        return dict(zip(keys, futures, strict=True))

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool | None = None,
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int | None = None,
        fifo_timeout: Any = 0,
        traverse: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Compute dask collections; return futures of their values, or the values where ``sync`` is True.

        What is no collection is returned as it is.
        """
        from dask.base import is_dask_collection

        asking = asking_for(priority, retries, workers, allow_other_workers, resources)
        several = isinstance(collections, list | tuple | set)
        found: list[Any] = []
        for one in collections if several else [collections]:
            if traverse and isinstance(one, list | tuple | set | dict | Iterator):
                from dask.delayed import delayed

                one = delayed(one)  # noqa: PLW2901 (collections inside of it)
            found.append(one)
        lazy = [one for one in found if is_dask_collection(one)]
        if lazy:
            expression, keys = finalized(lazy, optimize_graph)
            futures = self._submit_graph(expression, keys, asking, _fifo(fifo_timeout))
            computed = iter(keys)
            found = [futures[next(computed)] if is_dask_collection(one) else one for one in found]
        result: Any = found if several else found[0]
        if not sync:
            return result
        with outside():
            return self.gather(result)

    def persist(
        self,
        collections: Any,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool | None = None,
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int | None = None,
        fifo_timeout: Any = 0,
        **kwargs: Any,
    ) -> Any:
        """Start to compute dask collections; return collections of the same kind whose parts are futures."""
        from dask.base import is_dask_collection

        asking, fifo = asking_for(priority, retries, workers, allow_other_workers, resources), _fifo(fifo_timeout)
        several = isinstance(collections, list | tuple | set)
        found = list(collections) if several else [collections]
        lazy = [one for one in found if is_dask_collection(one)]
        if lazy:
            made = persisted(lazy, optimize_graph, lambda graph, keys: self._submit_graph(graph, keys, asking, fifo))
            parts = iter(made)
            found = [next(parts) if is_dask_collection(one) else one for one in found]
        return found if several else found[0]

    def normalize_collection(self, collection: Any) -> Any:
        """A collection that does the same, with the futures that this client has in place of the tasks they are of."""
        return with_futures(collection, self._connection.core.futures, self._future_of)

    def futures_of(self, futures: Any) -> list[Future]:
        """The futures inside of collections, as :func:`~shoal.futures_of`; one that was cancelled is an error."""
        return futures_of(futures, client=self)

    @property
    def scheduler(self) -> RemoteScheduler:
        """The scheduler, to ask questions of it in coroutines: ``await client.scheduler.identity()``."""
        return RemoteScheduler(self)

    def get_executor(self, **kwargs: Any) -> ClientExecutor:
        """The cluster as an executor of :mod:`concurrent.futures`; see :class:`ClientExecutor` for the options."""
        return ClientExecutor(self, **kwargs)

    def _wish(self, wires: list[str], message: Submit | Want, nbytes: int = 0) -> list[Future]:
        """A future for each key, of one that is named twice two; the message is what wishes for them."""
        records = self._connection.wish(wires, message, nbytes)
        return [Future(key_from_wire(record.key), self, record) for record in records]

    def _future_of(self, wire: str) -> Future:
        return Future(key_from_wire(wire), self)

    def _adopt(self, key: Any) -> FutureRecord:
        """The record of a key that was not submitted here: the scheduler is asked how it stands."""
        self._check_open()
        wire = key_to_wire(key)
        return self._connection.wish([wire], Want([wire]))[0]

    # -------------------------------------------------------------------------------------------- results

    def gather(
        self, futures: Any, errors: str = "raise", direct: bool | None = None, asynchronous: bool | None = None
    ) -> Any:
        """Return the results of futures, in the shape of the lists, tuples, sets and dicts that hold them.

        Parameters
        ----------
        direct
            Accepted: results come from the workers straight, always.
        errors
            ``"raise"`` the first error, or ``"skip"`` what failed.

        Raises
        ------
        Exception
            What a task raised, with its traceback, where ``errors`` is ``"raise"``.
        """
        if errors not in ("raise", "skip"):
            raise UsageError(f"errors must be 'raise' or 'skip', got {errors!r}")
        if isinstance(futures, Iterator):
            futures = list(futures)
        flat: dict[Future, None] = {}
        find_futures(futures, flat)
        for future in flat:
            own(future, self)
        if asynchronous or (asynchronous is None and self.asynchronous):
            return self._gather_async(futures, list(flat), errors)
        self._check_open()
        records = [future._record for future in flat]
        outcomes = self._thread.sync(self._connection.outcomes(records, errors == "skip"))
        return self._assemble(futures, list(flat), outcomes, errors)

    async def _gather_async(self, futures: Any, flat: list[Future], errors: str) -> Any:
        outcomes = await self._await(self._connection.outcomes([future._record for future in flat], errors == "skip"))
        return self._assemble(futures, flat, outcomes, errors)

    def _assemble(self, shape: Any, flat: list[Future], outcomes: list[Outcome], errors: str) -> Any:
        picked = self._pick(outcomes, errors)
        return fill(shape, {future: value for future, value in zip(flat, picked, strict=True) if value is not MISSING})

    def _pick(self, outcomes: list[Outcome], errors: str) -> list[Any]:
        """The values, unpickled; the first error is raised, or marked where errors are skipped."""
        if errors == "raise":
            for outcome in outcomes:
                error = failure_of(outcome)
                if error is not None:
                    raise error
        return load_each(outcomes, self._load)

    def _load(self, payload: Any) -> Any:
        """Unpickle a result; futures inside of it become this client's."""
        token = current.chosen.set(self)
        try:
            return serialize.loads(payload)
        finally:
            current.chosen.reset(token)

    def scatter(
        self,
        data: Any,
        workers: Any = None,
        broadcast: bool = False,
        direct: bool | None = None,
        hash: bool = True,
        timeout: Any = None,
        asynchronous: bool | None = None,
    ) -> Any:
        """Put local values on workers; return futures in the shape of the list, tuple or dict given, or one future.

        Parameters
        ----------
        workers
            Names or addresses of the workers that may be used.
        broadcast
            Put each value on all of them.
        direct
            Accepted: values go to the workers straight, always.
        hash
            Make the key from the value, so that the same value has the same key.
        timeout
            Seconds to wait for a worker to put it on.

        Raises
        ------
        SerializationError
            If a value cannot be pickled.
        UsageError
            If there is no such worker.
        """
        self._check_open()
        if isinstance(data, Iterator | range):
            data = list(data)
        if isinstance(data, dict):
            keys: list[Any] = list(data)
            values = list(data.values())
        else:
            values = list(data) if isinstance(data, list | tuple | set | frozenset) else [data]
            keys = [_value_key(value, hash) for value in values]
        wires = [key_to_wire(key) for key in keys]
        payloads = {wire: serialize.dumps(value, "scattered data") for wire, value in zip(wires, values, strict=True)}
        for key, payload in payloads.items():
            if type(payload) is not bytes and len(payload.frames) > COUNT_LIMIT:
                raise UsageError(f"the value of {key!r} has more than {COUNT_LIMIT:,} large buffers: scatter its parts")

        def shaped(futures: list[Future]) -> Any:
            if isinstance(data, dict):
                return dict(zip(keys, futures, strict=True))
            return type(data)(futures) if isinstance(data, list | tuple | set | frozenset) else futures[0]

        named = checks.workers(workers)
        limit = config.seconds(timeout, "timeout") or self._timeout
        putting = self._scatter(wires, payloads, shaped, named, broadcast, limit)
        return putting if asynchronous or self.asynchronous else self._thread.sync(putting)

    async def _scatter(
        self,
        wires: list[str],
        payloads: dict[str, Any],
        shaped: Callable[[list[Future]], Any],
        workers: list[str] | None,
        broadcast: bool,
        timeout: float,
    ) -> Any:
        connection = self._connection
        # While the values are on their way, futures of the same keys that are let go of must not take them along.
        holding = [Future(key_from_wire(record.key), self, record) for record in connection.records(payloads)]
        try:
            async with asyncio.timeout(timeout):
                while not await connection.ask("put_targets", workers=None):
                    await asyncio.sleep(0.1)  # workers are starting, or being restarted
                putting = asyncio.ensure_future(connection.put(payloads, workers, broadcast))
                try:
                    await asyncio.shield(putting)
                except BaseException:
                    # If it is under way, it goes on; what comes of it is let go of once it is there.
                    putting.add_done_callback(lambda done: self._let_go(done, list(payloads)))
                    raise
                futures = self._wish(wires, Want(list(payloads)))
                await connection.all_done([future._record for future in futures])
        except TimeoutError:
            raise TimeoutError(f"no worker had taken the {len(payloads)} values after {timeout:g} s") from None
        finally:
            for future in holding:
                future.release()
        return shaped(futures)

    def _let_go(self, putting: asyncio.Future[None], keys: list[str]) -> None:
        """Data that was put after nobody waited for it any more."""
        if not putting.cancelled():
            putting.exception()  # whoever waited was told
        futures = self._connection.core.futures
        unwanted = [key for key in keys if key not in futures]
        if unwanted and not self._connection.closed:
            self._connection.say(Unwant(unwanted))


def _fifo(timeout: Any) -> float:
    return checks.number(config.seconds(timeout, "fifo_timeout") or 0.0, "fifo_timeout", 0.0)


def _value_key(value: Any, hash: bool) -> str:
    if hash:
        from dask.tokenize import tokenize

        return f"{type(value).__name__}-{tokenize(value)}"
    return f"{type(value).__name__}-{uuid4().hex}"

"""The user's handle on a cluster."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any
from uuid import uuid4

from shoal import config
from shoal.client.future import Future, FutureState
from shoal.client.graphs import finalized, graph_tasks
from shoal.client.loop import get_loop_thread
from shoal.errors import ClosedClientError, ForeignFutureError, LinkError, SerializationError, TaskError, UsageError
from shoal.ids import key_from_wire, key_to_wire
from shoal.messages import (
    Answer,
    Bye,
    Cancel,
    ClientRegistered,
    GetData,
    KeyErred,
    KeysCancelled,
    KeysDone,
    KeysRestarted,
    KilledTask,
    Options,
    PutData,
    Query,
    RegisterClient,
    Restart,
    Retry,
    RunFunction,
    Submit,
    TaskSpec,
    ToClient,
    ToPeer,
    Unwant,
)
from shoal.shell import serialize
from shoal.shell.link import Identity, Link
from shoal.shell.network import dial
from shoal.shell.peers import PeerPool

logger = logging.getLogger("shoal.client")


class Client:
    """Connect to a cluster and submit work to it.

    Parameters
    ----------
    address
        Of a scheduler (``"tcp://host:port"``), or a cluster object.
    timeout
        Seconds to try to reach the scheduler.

    Examples
    --------
    >>> with LocalCluster(n_workers=2) as cluster, Client(cluster) as client:  # doctest: +SKIP
    ...     client.submit(sum, [1, 2, 3]).result()
    6
    """

    def __init__(self, address: Any, timeout: float | None = None, secret: bytes | None = None) -> None:
        self.id = f"Client-{uuid4().hex}"
        addresses = getattr(address, "_addresses", None) or [address]
        if not all(isinstance(one, str) for one in addresses):
            raise UsageError(f"address must be an address or a cluster, got {address!r}")
        self.scheduler_address: str = addresses[0]
        secret = secret or getattr(address, "_secret", None) or config.default_secret()
        limit = timeout or config.seconds(config.get("distributed.comm.timeouts.connect", 30.0), "timeout") or 30.0
        self._thread = get_loop_thread()
        self._loop = self._thread.loop
        self._identity = Identity("client", self.id, secret, {"scheduler": ToClient})
        self._peer_identity = Identity("client", self.id, secret, {"worker": ToPeer})
        self._lock = threading.Lock()
        self._states: dict[str, FutureState] = {}
        #: What user threads want said, in order: messages, or a FutureState to let go of.
        self._todo: deque[Any] = deque()
        self._woken = False
        self._closed = ""
        self._functions: dict[Any, tuple[Any, str, Any]] = {}
        self._sent: set[str] = set()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._rid = 0
        self._callbacks: ThreadPoolExecutor | None = None
        self._thread.sync(self._connect(addresses, limit))

    async def _connect(self, addresses: list[str], timeout: float) -> None:
        self._peers = PeerPool(self._peer_identity)
        self._registered = asyncio.Event()
        ordered = sorted(addresses, key=lambda one: not one.startswith("unix"))
        self._link = await dial(
            ordered,
            lambda: Link(self._identity, True, lambda link: None, self._on_messages, self._on_closed),
            timeout,
        )
        self._link.send(RegisterClient())
        async with asyncio.timeout(timeout):
            await self._registered.wait()

    # -------------------------------------------------------------------------------------------- submitting

    def submit(
        self,
        func: Callable[..., Any],
        *args: Any,
        key: Any = None,
        workers: Any = None,
        resources: dict[str, float] | None = None,
        retries: int | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> Future:
        """Run ``func(*args, **kwargs)`` on a worker. Futures among the arguments are replaced by their results.

        Raises
        ------
        SerializationError
            If the function or an argument cannot be pickled.
        ForeignFutureError
            If an argument is a future of another client, or of a closed one.
        """
        if not callable(func):
            raise TypeError(f"func must be callable, got {type(func).__name__}")
        options = _options(priority, retries, workers, allow_other_workers, resources)
        return self._submit_calls(func, [(args, kwargs)], None if key is None else [key], options, pure)[0]

    def map(
        self,
        func: Callable[..., Any],
        *iterables: Iterable[Any],
        key: Any = None,
        workers: Any = None,
        retries: int | None = None,
        resources: dict[str, float] | None = None,
        priority: int = 0,
        allow_other_workers: bool = False,
        pure: bool = True,
        **kwargs: Any,
    ) -> list[Future]:
        """Run ``func`` on each tuple of the zipped iterables; return a list of futures."""
        if not callable(func):
            raise TypeError(f"func must be callable, got {type(func).__name__}")
        calls = [(args, kwargs) for args in zip(*iterables, strict=False)]
        keys = key if isinstance(key, list) else None if key is None else [f"{key}-{n}" for n in range(len(calls))]
        if keys is not None and len(keys) != len(calls):
            raise UsageError(f"key holds {len(keys)} keys for {len(calls)} calls")
        options = _options(priority, retries, workers, allow_other_workers, resources)
        return self._submit_calls(func, calls, keys, options, pure)

    def _submit_calls(
        self, func: Any, calls: list[tuple[Any, Any]], keys: list[Any] | None, options: Options, pure: bool
    ) -> list[Future]:
        self._check_open()
        fn, payload = self._function(func)
        name = getattr(func, "__name__", type(func).__name__).strip("<>")
        specs: list[TaskSpec] = []
        for number, (args, kwargs) in enumerate(calls):
            deps: list[str] = []
            where = f"an argument of {name}"
            data = serialize.dumps((self._unpack(args, deps), self._unpack(kwargs, deps)), where)
            if keys is not None:
                wire = key_to_wire(keys[number])
            elif pure:
                digest = hashlib.blake2b(fn.encode(), digest_size=16)
                for frame in data.frames if not isinstance(data, bytes) else [data]:
                    digest.update(frame)
                wire = f"{name}-{digest.hexdigest()}"
            else:
                wire = f"{name}-{uuid4().hex}"
            specs.append(TaskSpec(wire, fn, data, deps, number))
        futures = [self._future(spec.key) for spec in specs]
        functions = {}
        if fn not in self._sent:
            self._sent.add(fn)
            functions[fn] = payload
        self._say(Submit(specs, functions, options, [spec.key for spec in specs]))
        return futures

    def get(
        self,
        dsk: Any,
        keys: Any,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: dict[str, float] | None = None,
        sync: bool = True,
        retries: int | None = None,
        priority: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Run a dask graph; return the values of ``keys`` in their shape, or futures where ``sync`` is False."""
        options = _options(priority, retries, workers, allow_other_workers, resources)
        flat: dict[Any, None] = {}
        _flatten(keys, flat)
        futures = self._submit_graph(dsk, list(flat), options)
        found = dict(zip(futures, self.gather(list(futures.values())), strict=True)) if sync else futures
        return _reshape(keys, found)

    def _submit_graph(self, dsk: Any, keys: list[Any], options: Options) -> dict[Any, Future]:
        self._check_open()
        specs = graph_tasks(dsk)
        futures = {key: self._future(key_to_wire(key)) for key in keys}
        self._say(Submit(specs, {}, options, [future._state.key for future in futures.values()]))
        return futures

    def compute(
        self,
        collections: Any,
        sync: bool = False,
        optimize_graph: bool = True,
        workers: Any = None,
        allow_other_workers: bool = False,
        resources: dict[str, float] | None = None,
        retries: int = 0,
        priority: int = 0,
        **kwargs: Any,
    ) -> Any:
        """Compute dask collections; return futures of their values, or the values where ``sync`` is True.

        What is no collection is returned as it is.
        """
        from dask.base import is_dask_collection

        options = _options(priority, retries, workers, allow_other_workers, resources)
        several = isinstance(collections, list | tuple | set)
        found: list[Any] = []
        for one in collections if several else [collections]:
            if is_dask_collection(one):
                expression, key = finalized(one, optimize_graph)
                found.append(self._submit_graph(expression, [key], options)[key])
            else:
                found.append(one)
        if sync:
            found = [self.gather(one) if isinstance(one, Future) else one for one in found]
        return found if several else found[0]

    def _function(self, func: Any) -> tuple[str, Any]:
        state = serialize.stable_state(func)
        if state is not None:
            known = self._functions.get(func)
            if known is not None and known[0] == state:
                return known[1], known[2]
        fn, payload = serialize.dump_function(func)
        if state is not None:
            self._functions[func] = (state, fn, payload)
        return fn, payload

    def _unpack(self, value: Any, deps: list[str]) -> Any:
        """Replace futures in containers by references, and note their keys."""
        kind = type(value)
        if kind is Future:
            if value._client is not self:
                raise ForeignFutureError(f"{value!r} belongs to another client, or to one that is closed")
            deps.append(value._state.key)
            return serialize.KeyRef(value._state.key)
        if kind in (list, tuple, set) and value:
            return kind(self._unpack(item, deps) for item in value)
        if kind is dict and value:
            return {name: self._unpack(item, deps) for name, item in value.items()}
        return value

    def _future(self, wire: str) -> Future:
        with self._lock:
            state = self._states.get(wire)
            if state is None or state.status == "cancelled":
                state = self._states[wire] = FutureState(wire)
            state.refs += 1
        return Future(key_from_wire(wire), self, state)

    # -------------------------------------------------------------------------------------------- results

    def gather(self, futures: Any, errors: str = "raise") -> Any:
        """Return the results of futures, in the shape of the list, tuple or dict that holds them.

        Parameters
        ----------
        errors
            ``"raise"`` the first error, or ``"skip"`` what failed.
        """
        if errors not in ("raise", "skip"):
            raise UsageError(f"errors must be 'raise' or 'skip', got {errors!r}")
        if isinstance(futures, dict):
            return dict(zip(futures, self.gather(list(futures.values()), errors), strict=True))
        if isinstance(futures, Future):
            return self.gather([futures], errors)[0]
        flat = list(futures)
        for future in flat:
            future._wait(None)
        far = [f._state.key for f in flat if f._state.status == "finished" and f._state.value is None]
        values = self._thread.sync(self._fetch(far)) if far else {}
        found = []
        for future in flat:
            error = future._state.failure()
            if error is not None:
                if errors == "raise":
                    raise error
                continue
            near = future._state.value
            found.append(serialize.loads(near if near is not None else values[future._state.key]))
        return tuple(found) if isinstance(futures, tuple) else found

    async def _result(self, future: Future) -> Any:
        done = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            loop.call_soon_threadsafe(done.set_result, None)

        self._when_done(future._state, wake)
        await done
        error = future._state.failure()
        if error is not None:
            raise error
        if future._state.value is not None:
            return serialize.loads(future._state.value)
        values = await asyncio.wrap_future(
            asyncio.run_coroutine_threadsafe(self._fetch([future._state.key]), self._loop)
        )
        return serialize.loads(values[future._state.key])

    async def _fetch(self, keys: list[str], timeout: float = 60.0) -> dict[str, Any]:
        """Get payloads from the workers that hold them; a holder that went away is asked for anew."""
        values: dict[str, Any] = {}
        started = monotonic()
        while True:
            left = [key for key in dict.fromkeys(keys) if key not in values]
            if not left:
                return values
            plan: dict[str, tuple[list[str], list[str]]] = {}
            for key, holders in (await self._ask("holders", keys=left)).items():
                if holders:
                    plan.setdefault(holders[0][0], (holders[0][1], []))[1].append(key)
            for peer, (addresses, wanted) in plan.items():
                try:
                    answer = await self._peers.request(peer, addresses, lambda rid, k=wanted: GetData(rid, k))  # type: ignore[misc]
                except LinkError as error:
                    logger.info("%s cannot be reached: %s", peer, error)
                    continue
                for text in answer.errors.values():
                    raise SerializationError(text)
                values.update(answer.items)
            if len(values) < len(set(keys)):
                if monotonic() - started > timeout:
                    raise TaskError(f"no worker could give {left[:5]} within {timeout:g} s")
                await asyncio.sleep(0.05)

    # -------------------------------------------------------------------------------------------- control

    def cancel(self, futures: Any, force: bool = False, reason: str | None = None, msg: str | None = None) -> None:
        """Cancel futures, and what depends on them; ``force`` overrides the interest of other clients."""
        many = [futures] if isinstance(futures, Future) else list(futures)
        self._say(Cancel([f._state.key for f in many], force, reason or msg))

    def retry(self, futures: Any) -> None:
        """Run erred futures again."""
        many = [futures] if isinstance(futures, Future) else list(futures)
        self._say(Retry([f._state.key for f in many]))

    def run(self, function: Callable[..., Any], *args: Any, workers: list[str] | None = None, **kwargs: Any) -> Any:
        """Call a function on every worker (or those named), outside of scheduling; results by address."""
        payload = serialize.dumps((function, args, kwargs), "the function")
        answer = self._thread.sync(self._request(lambda rid: RunFunction(rid, payload, "workers", workers)))
        for address, reason in answer["errors"].items():
            raise LinkError(f"{address} did not answer: {reason}")
        found = {}
        for address, result in answer["results"].items():
            good, value = serialize.loads(result)
            if not good:
                from shoal.messages import TaskError as Sent

                raise serialize.load_error(Sent(*value))
            found[address] = value
        return found

    def restart(self, timeout: float | None = None, wait_for_workers: bool = True) -> Client:
        """Forget all tasks (their futures are cancelled) and restart every worker process.

        Raises
        ------
        TimeoutError
            If workers are not back after ``timeout`` seconds, naming them.
        """
        limit = 60.0 if timeout is None else timeout
        try:
            self._thread.sync(self._request(lambda rid: Restart(rid, limit, wait_for_workers)))
        except UsageError as error:
            if str(error).startswith("TimeoutError"):
                raise TimeoutError(str(error)) from error
            raise
        return self

    def scatter(self, data: Any, workers: Any = None, broadcast: bool = False, hash: bool = True) -> Any:
        """Put local values on workers; return futures in the shape of the list, tuple or dict given, or one future.

        Parameters
        ----------
        workers
            Names or addresses of the workers that may be used.
        broadcast
            Put each value on all of them.
        hash
            Make the key from the value, so that the same value has the same key.
        """
        self._check_open()
        if isinstance(data, dict):
            named = {key_to_wire(name): value for name, value in data.items()}
        else:
            many = data if isinstance(data, list | tuple) else [data]
            named = {}
            for value in many:
                digest = uuid4().hex
                if hash:
                    from dask.tokenize import tokenize

                    digest = tokenize(value)
                named[f"{type(value).__name__}-{digest}"] = value
        payloads = {key: serialize.dumps(value, "scattered data") for key, value in named.items()}
        futures = {key: self._future(key) for key in payloads}
        chosen = [workers] if isinstance(workers, str) else workers
        self._thread.sync(self._put(payloads, chosen, broadcast))
        for future in futures.values():
            future._wait(60.0)
        if isinstance(data, dict):
            return {future.key: future for future in futures.values()}
        if isinstance(data, list | tuple):
            return type(data)(futures[key] for key in named)
        return next(iter(futures.values()))

    async def _put(self, payloads: dict[str, Any], workers: list[str] | None, broadcast: bool) -> None:
        targets = await self._ask("put_targets", workers=workers)
        if not targets:
            raise UsageError(f"no running worker to scatter to (workers={workers!r})")
        shares: dict[str, dict[str, Any]] = {}
        for number, (key, payload) in enumerate(payloads.items()):
            for target in targets if broadcast else [targets[number % len(targets)]]:
                shares.setdefault(target[0], {})[key] = payload
        addresses = {target[0]: target[1] for target in targets}
        await asyncio.gather(
            *(
                self._peers.request(peer, addresses[peer], lambda rid, items=items: PutData(rid, self.id, items))  # type: ignore[misc]
                for peer, items in shares.items()
            )
        )

    def who_has(self, futures: Any = None) -> dict[Any, Any]:
        """Addresses of the workers that hold each key."""
        keys = None if futures is None else [f._state.key for f in futures]
        found = self._query("who_has", keys=keys)
        return {key_from_wire(key): tuple(holders) for key, holders in found.items()}

    def has_what(self, workers: list[str] | None = None) -> dict[str, Any]:
        """Keys that each worker holds."""
        found = self._query("has_what", workers=workers)
        return {address: tuple(map(key_from_wire, keys)) for address, keys in found.items()}

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        """Who the scheduler is, and its workers."""
        info: dict[str, Any] = self._query("identity", n_workers=n_workers)
        info["address"] = self.scheduler_address
        return info

    def nthreads(self, workers: list[str] | None = None) -> dict[str, int]:
        """Threads of each worker."""
        found: dict[str, int] = self._query("nthreads", workers=workers)
        return found

    def _query(self, what: str, **args: Any) -> Any:
        return self._thread.sync(self._ask(what, **args))

    async def _ask(self, what: str, **args: Any) -> Any:
        return await self._request(lambda rid: Query(rid, what, args))

    async def _request(self, make: Callable[[int], Any]) -> Any:
        self._check_open()
        self._rid += 1
        rid = self._rid
        future = self._answers[rid] = self._loop.create_future()
        self._flush()
        self._link.send(make(rid))
        return await future

    # -------------------------------------------------------------------------------------------- the loop's side

    def _say(self, message: Any) -> None:
        self._check_open()
        self._todo.append(message)
        self._wake()

    def _wake(self) -> None:
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._flush)
            except RuntimeError:
                pass  # the loop is closed: the interpreter is ending

    def _release(self, state: FutureState) -> None:
        if not self._closed:
            self._todo.append(state)
            self._wake()

    def _flush(self) -> None:
        self._woken = False
        unwanted: list[str] = []
        while self._todo:
            item = self._todo.popleft()
            if isinstance(item, FutureState):
                with self._lock:
                    item.refs -= 1
                    if item.refs == 0 and self._states.get(item.key) is item:
                        del self._states[item.key]
                        unwanted.append(item.key)
                continue
            if unwanted:
                self._link.send(Unwant(unwanted))
                unwanted = []
            self._link.send(item)
        if unwanted:
            self._link.send(Unwant(unwanted))

    def _on_messages(self, link: Link, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case KeysDone():
                    for item in message.items:
                        state = self._states.get(item.key)
                        if state is not None:
                            state.value, state.type = item.value, item.type
                            state.settle("finished")
                case KeyErred() | KilledTask():
                    state = self._states.get(message.key)
                    if state is not None:
                        state.error = message.error if isinstance(message, KeyErred) else message
                        state.settle("error")
                case KeysCancelled():
                    for key in message.keys:
                        state = self._states.get(key)
                        if state is not None:
                            state.reason, state.lost = message.reason, message.lost
                            state.settle("cancelled")
                case KeysRestarted():
                    for key in message.keys:
                        state = self._states.get(key)
                        if state is not None:
                            state.restart()
                case Answer():
                    future = self._answers.pop(message.rid, None)
                    if future is not None and not future.done():
                        if message.error is None:
                            future.set_result(message.value)
                        else:
                            future.set_exception(UsageError(message.error))
                case ClientRegistered():
                    self._registered.set()
                case Bye():
                    self._on_closed(link, message.reason)

    def _on_closed(self, link: Link, reason: str) -> None:
        if self._closed:
            return
        self._closed = f"the link to the scheduler at {self.scheduler_address} closed: {reason}"
        for state in tuple(self._states.values()):
            if state.status == "pending":
                state.reason = self._closed
                state.settle("cancelled")
        for future in self._answers.values():
            if not future.done():
                future.set_exception(ClosedClientError(self._closed))

    def _when_done(self, state: FutureState, callback: Callable[[], None]) -> None:
        def add() -> None:
            if state.status == "pending":
                state.callbacks.append(callback)
            else:
                callback()

        self._loop.call_soon_threadsafe(add)

    def _run_callback(self, fn: Callable[[Future], Any], future: Future) -> None:
        if self._callbacks is None:
            self._callbacks = ThreadPoolExecutor(1, "shoal-callbacks")
        self._callbacks.submit(fn, future).add_done_callback(_log_failure)

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedClientError(f"this client is closed ({self._closed}); make a new one")

    def close(self) -> None:
        """Disconnect; futures that are still pending are cancelled."""
        if not self._closed:
            self._thread.sync(self._close())
        if self._callbacks is not None:
            self._callbacks.shutdown(wait=False)

    async def _close(self) -> None:
        self._flush()
        self._link.send(Bye("closed by its user"))
        self._link.close()
        self._peers.close()
        self._on_closed(self._link, "closed by its user")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client: {self.scheduler_address}{' closed' if self._closed else ''}, {len(self._states)} futures>"


def _options(
    priority: int, retries: int | None, workers: Any, allow_other_workers: bool, resources: dict[str, float] | None
) -> Options:
    if isinstance(workers, str):
        workers = [workers]
    named = None if workers is None else [str(worker) for worker in workers]
    return Options(priority, retries or 0, named, allow_other_workers, resources)


def _flatten(keys: Any, found: dict[Any, None]) -> None:
    if isinstance(keys, list):
        for key in keys:
            _flatten(key, found)
    else:
        found[keys] = None


def _reshape(keys: Any, found: dict[Any, Any]) -> Any:
    return [_reshape(key, found) for key in keys] if isinstance(keys, list) else found[keys]


def _log_failure(done: Any) -> None:
    error = done.exception()
    if error is not None:
        logger.error("a done-callback raised", exc_info=error)

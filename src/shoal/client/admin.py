"""What a client does to the cluster beside submitting tasks: control, and functions run outside of scheduling."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from shoal import checks, config
from shoal.client.base import ClientBase
from shoal.client.future import Future
from shoal.client.keeping import futures_of
from shoal.client.packing import own
from shoal.client.shapes import find_futures
from shoal.errors import LinkError, UsageError, WorkerStartTimeoutError
from shoal.messages import CANCELLED, Cancel, Restart, RunFunction
from shoal.messages import TaskError as SentError
from shoal.security import secret_of, write_scheduler_file
from shoal.shell import serialize

logger = logging.getLogger("shoal.client")
T = TypeVar("T")

#: About what a message takes of which nobody knows the size.
_TOLD_BYTES = 512


async def _nothing() -> None:
    pass


class AdminCalls(ClientBase):
    """Control."""

    # -------------------------------------------------------------------------------------------- control

    def _tell(self, message: Any, nbytes: int = 0) -> Any:
        self._check_open()
        self._connection.wait_for_room()
        self._connection.say(message, _TOLD_BYTES + nbytes)
        return self._said()

    def _said(self) -> Any:
        """What a call returns that waits for nothing: None, to be awaited by an asynchronous client's user."""
        return _nothing() if self.asynchronous else None

    def cancel(
        self,
        futures: Any,
        asynchronous: bool | None = None,
        force: bool = False,
        reason: str | None = None,
        msg: str | None = None,
    ) -> Any:
        """Cancel futures, and what depends on them; ``force`` overrides the interest of other clients."""
        self._check_open()
        why = None if not (reason or msg) else checks.note(reason or msg, "reason")
        self._connection.cancel(Cancel(self._keys_of(futures), checks.flag(force, "force"), why), why or CANCELLED)
        return self._said()

    def retry(self, futures: Any, asynchronous: bool | None = None) -> Any:
        """Run erred futures again, with the inputs whose failure made them fail.

        They are pending when this returns. Futures that did not fail stay as they are.
        """
        self._check_open()
        self._connection.retry(self._keys_of(futures))
        return self._said()

    def _keys_of(self, futures: Any) -> list[str]:
        flat: dict[Future, None] = {}
        find_futures(list(futures) if isinstance(futures, Iterator) else futures, flat)
        if not flat:
            flat = dict.fromkeys(futures_of(futures))
        return [own(future, self) for future in flat]

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        workers: Any = None,
        wait: bool = True,
        nanny: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> Any:
        """Call a function on every worker (or those named), outside of scheduling; results by address.

        A parameter named ``dask_worker`` receives the worker. Coroutine functions are awaited there.

        Parameters
        ----------
        wait
            False returns None at once.
        nanny
            Call it in the nannies' process instead.
        on_error
            ``"raise"`` the first error, ``"return"`` errors in place of results, or ``"ignore"`` those workers.
        """
        if on_error not in ("raise", "return", "ignore"):
            raise UsageError(f"on_error must be 'raise', 'return' or 'ignore', got {on_error!r}")
        payload = serialize.dumps((function, args, kwargs), "the function")
        checks.payload(serialize.payload_nbytes(payload), "the function with its arguments", "scatter what is large")
        named = checks.workers(workers)
        wait = checks.flag(wait, "wait")
        target = "nannies" if checks.flag(nanny, "nanny") else "workers"
        return self._sync(self._run(lambda rid: RunFunction(rid, payload, target, named, wait), wait, on_error))

    async def _run(self, make: Callable[[int], Any], wait: bool, on_error: str) -> Any:
        answer = await self._connection.request(make)
        return self._results(answer, on_error) if wait else None

    def _results(self, answer: dict[str, Any], on_error: str) -> dict[str, Any]:
        """What several peers answered, by address."""
        found: dict[str, Any] = {}
        for address, reason in answer["errors"].items():
            found[address] = LinkError(f"{address} did not answer: {reason}")
            if on_error == "raise":
                raise found[address]
        for address, result in answer["results"].items():
            try:
                found[address] = self._result(result)
            except Exception as error:
                if on_error == "raise":
                    raise
                if on_error == "return":
                    found[address] = error
        return found

    def _result(self, payload: Any) -> Any:
        """What a function returned elsewhere; what it raised is raised."""
        good, value = serialize.loads(payload)
        if not good:
            raise serialize.load_error(SentError(*value))
        return value

    def run_on_scheduler(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a function in the scheduler's process; a parameter ``dask_scheduler`` receives the scheduler."""
        payload = serialize.dumps((function, args, kwargs), "the function")
        checks.payload(serialize.payload_nbytes(payload), "the function with its arguments", "it is too large")
        return self._sync(self._run_on_scheduler(payload))

    async def _run_on_scheduler(self, payload: Any) -> Any:
        return self._result(await self._connection.request(lambda rid: RunFunction(rid, payload, "scheduler")))

    def restart(self, timeout: Any = None, wait_for_workers: bool = True) -> Any:
        """Forget all tasks (their futures are cancelled) and restart every worker process.

        Raises
        ------
        TimeoutError
            If workers are not back after ``timeout`` seconds, naming them.
        """
        wait = checks.flag(wait_for_workers, "wait_for_workers")
        return self._sync(self._restart(config.seconds(timeout, "timeout") or 60.0, wait))

    async def _restart(self, timeout: float, wait_for_workers: bool) -> Self:
        try:
            await self._connection.request(lambda rid: Restart(rid, timeout, wait_for_workers))
        except UsageError as error:
            if str(error).startswith("TimeoutError"):
                raise TimeoutError(str(error)) from error
            raise
        return self

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until ``n_workers`` are running.

        Raises
        ------
        WorkerStartTimeoutError
            After ``timeout`` seconds, saying how many there are. It is a TimeoutError.
        """
        n_workers = checks.whole(n_workers, "n_workers", 1)
        return self._sync(self._wait_for_workers(n_workers, config.seconds(timeout, "timeout")))

    async def _wait_for_workers(self, n_workers: int, timeout: float | None) -> None:
        running = 0
        try:
            async with asyncio.timeout(timeout):
                while True:
                    running = len(await self._connection.ask("put_targets", workers=None))
                    if running >= n_workers:
                        return
                    await asyncio.sleep(0.05)
        except TimeoutError:
            assert timeout is not None
            raise WorkerStartTimeoutError(running, n_workers, timeout) from None

    def write_scheduler_file(self, scheduler_file: str | Path) -> None:
        """Write the address and the secret of the cluster, readable by this user alone, for others to join with."""
        secret = secret_of(self._security, self._fallback)
        write_scheduler_file(Path(scheduler_file), "Scheduler", self._addresses, secret)

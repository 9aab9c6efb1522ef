"""Locks, locks of several names, and semaphores. Who holds one and dies, or falls silent for too long, loses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from shoal import checks
from shoal.coordination.base import Shared, limit
from shoal.errors import UsageError


class _Leased(Shared, ABC):
    """What is held by leases: how one is asked for, and given back."""

    def __init__(self, name: Any, client: Any) -> None:
        super().__init__(name, client)
        #: Ids of the leases that this object holds, the oldest first.
        self._leases: deque[str] = deque()

    async def _ask(self, what: str, timeout: float | None, **args: Any) -> bool:
        lease = uuid4().hex
        connection = self.client._connection

        def give_back(answer: tuple[int, Any]) -> None:
            if answer[1] is not None and not connection.closed:
                connection.say_meet("lease-release", self.name, lease=lease)

        seconds = await self._meet(what, undo=give_back, timeout=timeout, lease=lease, **args)
        if seconds is None:
            return False
        connection.leases.hold(lease, seconds)
        self._leases.append(lease)
        return True

    async def _give_back(self) -> bool:
        if not self._leases:
            raise RuntimeError(f"{self!r} is not held by this object")
        lease = self._leases.popleft()
        self.client._connection.leases.held.pop(lease, None)
        return bool(await self._meet("lease-release", lease=lease))

    @abstractmethod
    def acquire(self) -> Any:
        """Take it."""

    def release(self) -> Any:
        """Give back what was taken first.

        Returns
        -------
        bool
            Whether it was still held: it may have been taken back, from a client that was silent for too long.

        Raises
        ------
        RuntimeError
            If this object holds none.
        """
        return self.client._sync(self._give_back())

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()

    async def __aenter__(self) -> Self:
        await self.acquire()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.release()


class Semaphore(_Leased):
    """A number of leases, of which each can be held by one at a time, anywhere on the cluster.

    A lease holds for as long as its client lives and is heard of (``distributed.scheduler.locks.lease-timeout``); it is
    said by itself that it is still held.

    Parameters
    ----------
    max_leases
        How many there are. Objects of the same name must agree on it.
    name
        The same everywhere; a new one by default.
    client
        To speak through; the current one by default.
    scheduler_rpc, loop
        Accepted, and without effect.

    Raises
    ------
    UsageError
        If an argument makes no sense; on use, if there is a semaphore of that name with another number of leases.

    Examples
    --------
    >>> database = Semaphore(max_leases=5, name="database")  # doctest: +SKIP
    >>> def query(text):  # doctest: +SKIP
    ...     with database:
    ...         return ask_database(text)
    """

    def __init__(
        self,
        max_leases: int = 1,
        name: str | None = None,
        scheduler_rpc: Any = None,
        loop: Any = None,
        client: Any = None,
    ) -> None:
        super().__init__(name, client)
        self.max_leases = checks.whole(max_leases, "max_leases", 1)

    @property
    def scheduler(self) -> str:
        """Address of the scheduler that it lives in."""
        return self.client.scheduler_address

    @property
    def loop(self) -> Any:
        """The event loop of its client."""
        return self.client.loop

    def register(self) -> Any:
        """Make it known to the scheduler, which its first use does anyway.

        Raises
        ------
        UsageError
            If there is one of that name with another number of leases.
        """
        return self.client._sync(self._meet("semaphore-register", most=self.max_leases))

    def acquire(self, timeout: Any = None) -> Any:
        """Take a lease, waiting for it.

        Parameters
        ----------
        timeout
            Seconds, or text as ``"10 s"``; for ever by default.

        Returns
        -------
        bool
            Whether there was one in time.
        """
        return self.client._sync(self._ask("semaphore-acquire", limit(timeout), most=self.max_leases))

    def get_value(self) -> Any:
        """How many leases are out."""
        return self.client._sync(self._meet("semaphore-value"))

    def close(self) -> Any:
        """Have the scheduler forget it; who waits for a lease gets an error."""
        self._leases.clear()
        return self.client._sync(self._meet("semaphore-close"))

    def __reduce__(self) -> Any:
        return type(self), (self.max_leases, self.name)


class Lock(Semaphore):
    """A lock that one can hold at a time, anywhere on the cluster.

    Parameters
    ----------
    name
        The same everywhere; a new one by default.
    client
        To speak through; the current one by default.
    scheduler_rpc, loop
        Accepted, and without effect.

    Examples
    --------
    >>> lock = Lock("the file")  # doctest: +SKIP
    >>> with lock:  # doctest: +SKIP
    ...     write_file()
    """

    def __init__(
        self, name: str | None = None, client: Any = None, scheduler_rpc: Any = None, loop: Any = None
    ) -> None:
        super().__init__(1, name, client=client)

    def acquire(self, blocking: bool = True, timeout: Any = None) -> Any:  # type: ignore[override] # as threading.Lock
        """Take the lock, waiting for it.

        Parameters
        ----------
        blocking
            False only takes it if it is free.
        timeout
            Seconds, or text as ``"10 s"``; for ever by default.

        Returns
        -------
        bool
            Whether it was taken.

        Raises
        ------
        UsageError
            If a timeout is given without blocking.
        """
        return super().acquire(_patience(blocking, timeout))

    def locked(self) -> Any:
        """Whether anybody holds it."""

        async def ask() -> bool:
            return bool(await self._meet("semaphore-value"))

        return self.client._sync(ask())

    def __reduce__(self) -> Any:
        return type(self), (self.name,)


class MultiLock(_Leased):
    """Several locks that are taken together, or so many of them.

    What is asked for first is granted first, and nothing is held while something is waited for: those who want
    overlapping names cannot block each other for ever.

    Parameters
    ----------
    names
        What is to be locked. They are apart from those of :class:`Lock`.
    client
        To speak through; the current one by default.

    Examples
    --------
    >>> with MultiLock(names=["x", "y"]):  # doctest: +SKIP
    ...     change_both()
    """

    def __init__(self, names: Sequence[str] | None = None, client: Any = None) -> None:
        if isinstance(names, str | bytes):
            raise UsageError(f"names must be a list of texts, got {names!r:.200}")
        given = [checks.name(name, "names") for name in names or [uuid4().hex]]
        super().__init__(None, client)
        self.names = list(dict.fromkeys(given))

    def acquire(self, blocking: bool = True, timeout: Any = None, num_locks: int | None = None) -> Any:
        """Take all locks, or ``num_locks`` of them, waiting for them.

        Returns
        -------
        bool
            Whether they were taken.
        """
        count = len(self.names) if num_locks is None else checks.whole(num_locks, "num_locks", 1, len(self.names))
        if self._leases:
            raise RuntimeError(f"{self!r} holds locks already")
        return self.client._sync(
            self._ask("several-acquire", limit(_patience(blocking, timeout)), names=self.names, count=count)
        )

    def locked(self) -> bool:
        """Whether this object holds locks."""
        return bool(self._leases)

    def __reduce__(self) -> Any:
        return type(self), (self.names,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MultiLock) and other.names == self.names

    def __hash__(self) -> int:
        return hash(tuple(self.names))

    def __repr__(self) -> str:
        return f"<MultiLock: {', '.join(self.names)}>"


def _patience(blocking: bool, timeout: Any) -> Any:
    """The timeout that is meant."""
    if blocking:
        return timeout
    if timeout is not None:
        raise UsageError("a timeout means nothing without blocking")
    return 0

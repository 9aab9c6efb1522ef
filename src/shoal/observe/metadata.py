"""What is known of the tasks that ran while a block of code did."""

from __future__ import annotations

from time import time
from types import TracebackType
from typing import Any, Self

from shoal.client.current import get_client


class get_task_metadata:
    """Gather what is known of the tasks that end while a block of code runs.

    Attributes
    ----------
    metadata
        By key: ``worker``, ``thread``, ``start_time``, ``stop_time`` (seconds since 1970), ``nbytes``, ``peak_memory``,
        ``type``.
    state
        By key: ``"memory"`` or ``"erred"``.

    Examples
    --------
    >>> with get_task_metadata() as tasks:  # doctest: +SKIP
    ...     future = client.submit(sum, [1, 2])
    ...     future.result()
    >>> tasks.state[future.key]  # doctest: +SKIP
    'memory'
    """

    def __init__(self) -> None:
        self.metadata: dict[Any, dict[str, Any]] = {}
        self.state: dict[Any, str] = {}
        self._client: Any = None
        self._start = 0.0

    def __enter__(self) -> Self:
        self._client, self._start = get_client(), time()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._fill(self._client.get_task_stream(start=self._start))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._fill(await self._client.get_task_stream(start=self._start))

    def _fill(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            step = row["startstops"][0]
            self.state[row["key"]] = "memory" if row["status"] == "OK" else "erred"
            self.metadata[row["key"]] = {
                "start_time": step["start"],
                "stop_time": step["stop"],
                **{name: row[name] for name in ("worker", "thread", "nbytes", "peak_memory", "type")},
            }

    def __repr__(self) -> str:
        return f"<get_task_metadata: {len(self.state)} tasks>"

"""What a client leaves with the scheduler for others: datasets, metadata, the values of queues and variables."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Coroutine, Iterator, MutableMapping
from html import escape
from typing import Any, Final

from shoal import checks
from shoal.client.future import Future
from shoal.client.packing import own
from shoal.client.questions import Questions
from shoal.errors import UsageError
from shoal.ids import key_from_wire, key_to_wire
from shoal.shell import serialize

_NOTHING: Final = object()


class Packed:
    """A value as it was left, and futures that keep alive what is inside of it."""

    __slots__ = ("futures", "payload")

    def __init__(self, payload: Any, futures: list[Future]) -> None:
        self.payload, self.futures = payload, futures

    @property
    def keys(self) -> list[str]:
        """Of the futures, each once."""
        return list(dict.fromkeys(future._record.key for future in self.futures))


class Sharing(Questions):
    """Datasets, metadata, and how values are packed that stay with the scheduler."""

    # -------------------------------------------------------------------------------------------- values that stay

    def _pack_kept(self, value: Any) -> Packed:
        """A value as it is left, with the futures inside of it: to be held until the scheduler has it."""
        self._check_open()
        with serialize.collecting() as found:
            payload = serialize.dumps(value, "what is to be kept")
        checks.payload(serialize.payload_nbytes(payload), "what is to be kept", "scatter it, and keep the future")
        for future in found:
            own(future, self)
        return Packed(payload, list(found))

    async def _take_kept(self, what: str, name: str, undo: Any = None, **args: Any) -> list[Packed] | None:
        """Values that the scheduler gives out; their futures are wanted here before it lets go of them."""
        connection = self._connection
        rid, items = await connection.meet(what, name, undo=undo or (lambda told: connection.took(told[0])), **args)
        if items is None:
            return None
        packed = [Packed(payload, [self._future_of(key) for key in keys]) for payload, keys in items]
        connection.took(rid)
        return packed

    @abstractmethod
    def _future_of(self, wire: str) -> Future:
        """A future of a key that was not submitted here."""

    @abstractmethod
    def _load(self, payload: Any) -> Any:
        """Unpickle a value; futures inside of it become this client's."""

    def _load_kept(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What was taken, unpacked in the thread of the caller."""
        if self.asynchronous:

            async def load() -> Any:
                return self._unpack(await coroutine)

            return load()
        return self._unpack(self._thread.sync(coroutine))

    def _unpack(self, found: Any) -> Any:
        if isinstance(found, list):
            return [self._unpack(one) for one in found]
        return self._load(found.payload) if isinstance(found, Packed) else found

    async def _meet(self, what: str, name: str = "", **args: Any) -> Any:
        _, value = await self._await(self._connection.meet(what, name, **args))
        return value

    # -------------------------------------------------------------------------------------------- datasets

    def publish_dataset(self, *args: Any, name: Any = None, override: bool = False, **kwargs: Any) -> Any:
        """Keep collections, futures or other values under names, for other clients, also when this one has gone.

        Parameters
        ----------
        *args
            One value, with ``name``.
        name
            Text, or another key as dask has them.
        override
            Whether it takes the place of one of that name.
        **kwargs
            Values by name.

        Raises
        ------
        KeyError
            If there is one of that name.

        Examples
        --------
        >>> client.publish_dataset(accounts=frame.persist())  # doctest: +SKIP
        >>> other_client.get_dataset("accounts")  # doctest: +SKIP
        """
        if len(args) > 1 or (bool(args) != (name is not None)):
            raise TypeError("publish one value and its name=, or values as keyword arguments")
        if args:
            key_to_wire(name)
        many: dict[Any, Any] = {**({name: args[0]} if args else {}), **kwargs}
        packed = [(one, key_to_wire(one), self._pack_kept(value)) for one, value in many.items()]

        async def publish() -> None:
            for one, wire, kept in packed:
                args = {"payload": kept.payload, "keys": kept.keys, "override": override}
                if not await self._meet("dataset-publish", wire, **args):
                    raise KeyError(f"there is a dataset {one!r} already; give override=True to replace it")

        return self._sync(publish())

    def get_dataset(self, name: Any, default: Any = _NOTHING) -> Any:
        """The value that was published under a name.

        Raises
        ------
        KeyError
            If there is none, and no ``default``.
        """
        self._check_open()
        wire = key_to_wire(name)

        async def get() -> Any:
            found = await self._await(self._take_kept("dataset-get", wire))
            if found:
                return found[0]
            if default is _NOTHING:
                raise KeyError(f"there is no dataset {name!r}; those that there are: {await self._list_datasets()}")
            return default

        return self._load_kept(get())

    def unpublish_dataset(self, name: Any) -> Any:
        """Let go of what was published under a name.

        Raises
        ------
        KeyError
            If there is none.
        """
        self._check_open()
        wire = key_to_wire(name)

        async def delete() -> None:
            if not await self._meet("dataset-delete", wire):
                raise KeyError(f"there is no dataset {name!r}")

        return self._sync(delete())

    def list_datasets(self) -> Any:
        """The names of all datasets."""
        self._check_open()
        return self._sync(self._list_datasets())

    async def _list_datasets(self) -> tuple[Any, ...]:
        return tuple(key_from_wire(name) for name in await self._meet("dataset-list"))

    @property
    def datasets(self) -> Datasets:
        """All datasets, as a mapping."""
        return Datasets(self)

    # -------------------------------------------------------------------------------------------- metadata

    def set_metadata(self, key: Any, value: Any) -> Any:
        """Keep a small value with the scheduler, for all clients.

        Parameters
        ----------
        key
            Text, or a list of texts that name the way through nested mappings.
        value
            Plain values: numbers, texts, lists, mappings.

        Raises
        ------
        TypeError
            If msgpack cannot carry it.

        Examples
        --------
        >>> client.set_metadata(["runs", "first"], {"seed": 1})  # doctest: +SKIP
        >>> client.get_metadata(["runs", "first", "seed"])  # doctest: +SKIP
        1
        """
        self._check_open()
        names = _names(key)
        return self._sync(self._meet("metadata-set", names=names, value=serialize.check_plain(value, "value")))

    def get_metadata(self, keys: Any, default: Any = _NOTHING) -> Any:
        """What was kept with :meth:`set_metadata`.

        Raises
        ------
        KeyError
            If there is nothing, and no ``default``.
        """
        self._check_open()
        names = _names(keys)

        async def get() -> Any:
            found = await self._meet("metadata-get", names=names)
            if found:
                return found[0]
            if default is _NOTHING:
                raise KeyError(keys)
            return default

        return self._sync(get())


def _names(key: Any) -> list[Any]:
    names = list(key) if isinstance(key, list | tuple) else [key]
    if not names:
        raise UsageError("key must name at least one key of the metadata")
    for name in names:
        if not isinstance(name, int | float):
            checks.name(name, "key")
    return list(serialize.check_plain(names, "key"))


class Datasets(MutableMapping[Any, Any]):
    """The datasets that were published, as a mapping; of an asynchronous client, use its own methods."""

    def __init__(self, client: Sharing) -> None:
        self._client = client

    def __getitem__(self, name: Any) -> Any:
        return self._now(self._client.get_dataset, name)

    def __setitem__(self, name: Any, value: Any) -> None:
        self._now(lambda: self._client.publish_dataset(value, name=name))

    def __delitem__(self, name: Any) -> None:
        self._now(self._client.unpublish_dataset, name)

    def __contains__(self, name: object) -> bool:
        return name in self._now(self._client.list_datasets)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._now(self._client.list_datasets))

    def __aiter__(self) -> AsyncIterator[Any]:
        async def names() -> AsyncIterator[Any]:
            for name in await self._client._list_datasets():
                yield name

        return names()

    def __len__(self) -> int:
        return len(self._now(self._client.list_datasets))

    def _now(self, call: Any, *args: Any) -> Any:
        if self._client.asynchronous:
            raise TypeError("the client is asynchronous: await its get_dataset, publish_dataset, list_datasets, …")
        return call(*args)

    def __repr__(self) -> str:
        names = "asynchronous" if self._client.asynchronous else ", ".join(map(repr, self))
        return f"<Datasets: {names}>"

    def _repr_html_(self) -> str:
        return f"<b>Datasets</b> {escape(repr(self))}"

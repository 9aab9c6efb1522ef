"""The plugins that one program has installed, in the order of their coming."""

from __future__ import annotations

import inspect
import logging
import warnings
from typing import Any
from uuid import uuid4

from shoal.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin, hooks_of
from shoal.shell import serialize

logger = logging.getLogger("shoal.plugins")

_BASES: dict[str, type] = {"worker": WorkerPlugin, "nanny": NannyPlugin, "scheduler": SchedulerPlugin}


class Plugins:
    """What is hooked into a worker, a nanny or a scheduler.

    Parameters
    ----------
    kind
        ``"worker"``, ``"nanny"`` or ``"scheduler"``.
    server
        What their hooks are given.
    """

    def __init__(self, kind: str, server: Any) -> None:
        self._kind, self._server = kind, server
        self.installed: dict[str, Any] = {}

    async def add(self, plugin: Any, name: str | None = None) -> str:
        """Install a plugin, in place of one of the same name; return its name.

        Raises
        ------
        Exception
            What its set-up raised; it is not installed then.
        """
        base = _BASES[self._kind]
        if not isinstance(plugin, base):
            warnings.warn(
                f"{type(plugin).__name__} does not derive from shoal.{base.__name__}; it will have to",
                DeprecationWarning,
                stacklevel=2,
            )
        name = name or getattr(plugin, "name", None) or f"{type(plugin).__name__}-{uuid4().hex}"
        if name in self.installed:
            await self.remove(name)
        self.installed[name] = plugin
        try:
            await self._call(plugin, "start" if self._kind == "scheduler" else "setup")
        except BaseException:
            self.installed.pop(name, None)
            raise
        return name

    async def remove(self, name: str) -> None:
        """Tear a plugin down and forget it.

        Raises
        ------
        KeyError
            If there is none of that name.
        Exception
            What its teardown raised; it is removed all the same.
        """
        if name not in self.installed:
            raise KeyError(f"there is no {self._kind} plugin {name!r}; there are {sorted(self.installed)}")
        plugin = self.installed.pop(name)
        if self._kind == "scheduler":
            value = plugin.close() if hasattr(plugin, "close") else None
            if inspect.isawaitable(value):
                await value
        else:
            await self._call(plugin, "teardown")

    async def _call(self, plugin: Any, hook: str) -> None:
        function = getattr(plugin, hook, None)
        if function is not None:
            value = function(self._server)
            if inspect.isawaitable(value):
                await value

    async def change(self, name: str, payload: Any) -> Any:
        """Install a pickled plugin, or (None) remove one; return the payload of (succeeded, value or error)."""
        try:
            if payload is None:
                await self.remove(name)
            else:
                await self.add(serialize.loads(payload), name)
            return serialize.dumps((True, {"status": "OK"}))
        except Exception as error:
            logger.warning("the %s plugin %s failed: %r", self._kind, name, error, exc_info=error)
            return serialize.dumps((False, serialize.error_parts(error)))

    async def install_all(self, payloads: dict[str, Any]) -> None:
        """Install what was registered before this program joined; one that fails is logged and left out."""
        for name, payload in payloads.items():
            await self.change(name, payload)

    async def before_close(self) -> None:
        """Tell the scheduler's plugins that it is about to close."""
        for name, plugin in tuple(self.installed.items()):
            try:
                value = plugin.before_close() if hasattr(plugin, "before_close") else None
                if inspect.isawaitable(value):
                    await value
            except Exception:
                logger.exception("before_close of the plugin %s failed", name)

    async def close(self) -> None:
        """Tear all down, the last first; one that fails is logged."""
        for name in reversed(tuple(self.installed)):
            try:
                await self.remove(name)
            except Exception:
                logger.exception("the teardown of the %s plugin %s failed", self._kind, name)

    def hooks(self) -> dict[str, list[str]]:
        """The hooks of the scheduler's plugins, by name."""
        return {name: hooks_of(plugin) for name, plugin in self.installed.items()}

    @property
    def watch_transitions(self) -> bool:
        """Whether a plugin of a worker's wants to hear of transitions."""
        return any(
            getattr(type(plugin), "transition", WorkerPlugin.transition) is not WorkerPlugin.transition
            for plugin in self.installed.values()
        )

    def notify(self, hook: str, *args: Any, **kwargs: Any) -> list[Any]:
        """Call a hook of all plugins that have it; return what is to be awaited. One that fails is logged."""
        waiting = []
        for name, plugin in tuple(self.installed.items()):
            function = getattr(plugin, hook, None)
            if function is None:
                continue
            try:
                value = function(*args, **kwargs)
                if inspect.isawaitable(value):
                    waiting.append(value)
            except Exception:
                logger.exception("the hook %s of the %s plugin %s failed", hook, self._kind, name)
        return waiting

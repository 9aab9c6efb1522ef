"""The plugins that one program has installed, in the order of their coming."""

from __future__ import annotations

import inspect
import warnings
from typing import Any
from uuid import uuid4

from shoal.plugins.base import NannyPlugin, SchedulerPlugin, WorkerPlugin, hooks_of
from shoal.shell import doors, serialize

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
            if hasattr(plugin, "close"):
                await doors.settled(plugin.close())
        else:
            await self._call(plugin, "teardown")

    async def _call(self, plugin: Any, hook: str) -> None:
        function = getattr(plugin, hook, None)
        if function is not None:
            await doors.settled(function(self._server))

    async def change(self, name: str, payload: Any) -> Any:
        """Install a pickled plugin, or (None) remove one; return the payload of (succeeded, value or error)."""
        try:
            if payload is None:
                await self.remove(name)
            else:
                await self.add(serialize.loads(payload), name)
            return serialize.dumps((True, {"status": "OK"}))
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            doors.report("hook", error, f"the {self._kind} plugin {name}")
            return serialize.dumps((False, serialize.error_parts(error)))

    async def install_all(self, payloads: dict[str, Any]) -> None:
        """Install what was registered before this program joined; one that fails is logged and left out."""
        for name, payload in payloads.items():
            await self.change(name, payload)

    async def before_close(self) -> None:
        """Tell the scheduler's plugins that it is about to close."""
        for name, plugin in tuple(self.installed.items()):
            await self._safely(f"before_close of the plugin {name}", _before_close, plugin)

    async def close(self) -> None:
        """Tear all down, the last first; one that fails is logged."""
        for name in reversed(tuple(self.installed)):
            await self._safely(f"the teardown of the {self._kind} plugin {name}", self.remove, name)

    async def _safely(self, what: str, function: Any, *args: Any) -> None:
        try:
            await doors.settled(function(*args))
        except BaseException as error:
            if doors.is_for_us(error, awaiting=True):
                raise
            doors.report("hook", error, what)

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
            try:
                function = getattr(plugin, hook, None)
                if function is not None and inspect.isawaitable(value := function(*args, **kwargs)):
                    waiting.append(value)
            except BaseException as error:
                if doors.is_for_us(error):
                    raise
                doors.report("hook", error, f"the hook {hook} of the {self._kind} plugin {name}")
        return waiting


def _before_close(plugin: Any) -> Any:
    return plugin.before_close() if hasattr(plugin, "before_close") else None

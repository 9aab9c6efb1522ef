"""Has ``import distributed`` find shoal: a finder of modules whose names are looked up in :mod:`shoal.compat.names`."""

from __future__ import annotations

import dis
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from shoal import config
from shoal.compat.names import MODULES

_ADVICE = "docs/compatibility.md lists what shoal leaves out, and why"


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds ``distributed`` and its modules."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != "distributed" and not name.startswith("distributed."):
            return None
        if name not in MODULES:
            text = f"shoal, which stands for dask.distributed here, has no {name}; {_ADVICE}"
            raise ModuleNotFoundError(text, name=name)
        spec = ModuleSpec(name, self, origin="shoal", is_package=_is_package(name))
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stand(spec.name, f"shoal, by the name of {spec.name}.")

    def exec_module(self, module: ModuleType) -> None:
        """Names are looked up when they are asked for."""


class _Stand(ModuleType):
    """A module of dask.distributed's names."""

    def __getattr__(self, name: str) -> Any:
        names = MODULES[self.__name__]
        if name == "__all__":
            return sorted(one for one in names if not one.startswith("_"))
        place = names.get(name)
        if place is not None:
            module, _, attribute = place.partition(":")
            found = import_module(module)
            found = getattr(found, attribute) if attribute else found
            self.__dict__[name] = found
            return found
        inner = f"{self.__name__}.{name}"
        if inner in MODULES:
            return import_module(inner)
        text = f"shoal, which stands for dask.distributed here, has no {inner}; {_ADVICE}"
        frame = sys._getframe(1)
        if frame.f_code.co_code[frame.f_lasti] == dis.opmap["IMPORT_FROM"]:
            raise ImportError(text, name=self.__name__)
        raise AttributeError(text)

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, _Stand) and name in MODULES[self.__name__]:
            return  # `distributed.worker_client` stays the function, as it does there, though a module has its name
        super().__setattr__(name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *MODULES[self.__name__]})


def _is_package(name: str) -> bool:
    return any(other.startswith(name + ".") for other in MODULES)


def as_distributed() -> None:
    """Have shoal found by the name of dask.distributed, in this process and the workers that it starts.

    ``import distributed``, ``from distributed.client import Client``, ``dask.distributed`` and what dask itself and
    other libraries look up find shoal then. A name that shoal does not have is an ImportError that says so. Call it
    first of all: what other modules have imported from dask.distributed before stays as it is.

    ``python -m shoal run script.py`` does this before it runs a script. In worker processes, ``distributed`` is shoal
    anyway where dask.distributed is not installed.

    Examples
    --------
    >>> import shoal  # doctest: +SKIP
    >>> shoal.as_distributed()  # doctest: +SKIP
    >>> from distributed import Client  # doctest: +SKIP
    """
    known = [finder for finder in sys.meta_path if isinstance(finder, _Finder)]
    if known and sys.meta_path[0] is known[0]:
        return
    for finder in known:
        sys.meta_path.remove(finder)
    for name in [name for name in sys.modules if name.partition(".")[0] == "distributed" or name == "dask.distributed"]:
        del sys.modules[name]
    sys.meta_path.insert(0, _Finder())
    config.stand_for_distributed()
    dask, base = sys.modules.get("dask"), sys.modules.get("dask.base")
    if dask is not None:
        vars(dask).pop("distributed", None)
    if base is not None:
        base._DISTRIBUTED_AVAILABLE = None  # type: ignore[attr-defined] # it looks anew


def where_nothing_else_is() -> None:
    """In a process of shoal's own: as :func:`as_distributed` if its parent asked for that, or else as a fallback."""
    if config.stands_for_distributed():
        as_distributed()
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())

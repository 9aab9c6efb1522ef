"""dask's graphs and collections, as tasks of shoal's."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shoal import checks
from shoal.client.future import Future
from shoal.client.packing import own
from shoal.core.client.future import FutureRecord
from shoal.ids import key_to_wire
from shoal.messages import Options, TaskSpec
from shoal.shell import serialize

#: What is asked for beyond the graph itself: a function of the annotations of a task.
Asking = Callable[[dict[str, Any]], Options]


def graph_tasks(dsk: Any, client: Any, asking: Asking) -> tuple[list[TaskSpec], list[Future]]:
    """Return the tasks of a dask graph (or of an expression that makes one), in dask's order, and futures inside.

    A future in the graph is a reference to a task that the scheduler has: it is an input of the task that it stands
    in, and where it stands for a whole node of its own key, that node is left out. Layers that were annotated have
    options of their own.

    Raises
    ------
    SerializationError
        If a task cannot be pickled, naming its key.
    ForeignFutureError
        If a future belongs to another client, or to a closed one.
    UsageError
        If an annotation makes no sense.
    """
    with _no_collection():
        return _graph_tasks(dsk, client, asking)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Hundreds of thousands of objects are made that all stay: looking for garbage takes a third of the time."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _graph_tasks(dsk: Any, client: Any, asking: Asking) -> tuple[list[TaskSpec], list[Future]]:
    from dask._task_spec import Alias, convert_legacy_graph
    from dask.order import order

    noted: dict[str, dict[Any, Any]] = getattr(dsk, "__dask_annotations__", dict)()
    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    plain = dict(dsk)
    futures = [value for value in plain.values() if type(value) is Future]
    graph = {
        key: node
        for key, node in convert_legacy_graph(plain).items()
        if not (isinstance(node, Alias) and node.target == key)
    }
    ranks = order(graph)
    special = _options_by_key(noted, asking)
    wires = {key: key_to_wire(key) for key in graph}
    specs = []
    for key, node in graph.items():
        with serialize.collecting(in_graph=True) as inside:
            payload = serialize.dumps(node, f"task {key!r}")
        if type(payload) is not bytes:
            checks.payload(payload.nbytes, f"task {key!r:.200}")
        deps = dict.fromkeys(wires.get(dep) or key_to_wire(dep) for dep in node.dependencies if dep != key)
        if inside:
            deps.update(dict.fromkeys(own(future, client) for future in inside))
            futures += inside
        specs.append(TaskSpec(wires[key], "", payload, list(deps), int(ranks[key]), special.get(key)))
    for future in futures:
        own(future, client)
    specs.sort(key=lambda spec: spec.order)
    return specs, futures


def _options_by_key(noted: dict[str, dict[Any, Any]], asking: Asking) -> dict[Any, Options]:
    """The options of each annotated key; those that are alike are one object."""
    by_key: dict[Any, dict[str, Any]] = {}
    for name, values in noted.items():
        for key, value in values.items():
            by_key.setdefault(key, {})[name] = value
    made: dict[str, Options] = {}
    found = {}
    for key, told in by_key.items():
        text = repr(sorted(told.items()))
        if text not in made:
            made[text] = asking(told)
        found[key] = made[text]
    return found


def finalized(collections: list[Any], optimize_graph: bool) -> tuple[Any, list[Any]]:
    """Return the graph that computes collections to concrete values, and the keys of these values, in order."""
    from dask._expr import FinalizeCompute
    from dask.base import collections_to_expr
    from dask.core import flatten

    expression = FinalizeCompute(collections_to_expr(collections, optimize_graph)).optimize()
    return expression, list(flatten(expression.__dask_keys__()))


def persisted(
    collections: list[Any], optimize_graph: bool, submit: Callable[[Any, list[Any]], dict[Any, Future]]
) -> list[Any]:
    """Submit the parts of collections together, and return collections that are made of their futures."""
    from dask._expr import CompositeExpr
    from dask.base import _rebuild_composite_collection, collections_to_expr
    from dask.core import flatten

    expression = collections_to_expr(collections, optimize_graph)
    composite = any(isinstance(inner, CompositeExpr) for inner in expression.operands)
    if optimize_graph:
        expression = expression.optimize()
    keys = [list(flatten(part)) for part in expression.__dask_keys__()]
    futures = submit(expression, list(dict.fromkeys(key for part in keys for key in part)))
    found = []
    for number, collection in enumerate(collections):
        if composite:
            inner = expression.operands[number]
        if composite and isinstance(inner, CompositeExpr):
            found.append(_rebuild_composite_collection(collection, inner, futures, cull_to_child_keys=True))
        else:
            rebuild, args = collection.__dask_postpersist__()
            found.append(rebuild({key: futures[key] for key in keys[number]}, *args))
    return found


def with_futures(collection: Any, known: Mapping[str, FutureRecord], make: Callable[[str], Future]) -> Any:
    """``collection`` with the futures of keys that are known in place of the tasks of these keys."""
    from dask.optimization import cull

    graph = dict(collection.__dask_graph__())
    found = {key: make(wire) for key in graph if (wire := key_to_wire(key)) in known and not known[wire].over}
    if not found:
        return collection
    from dask.core import flatten

    dsk, _ = cull({**graph, **found}, list(flatten(collection.__dask_keys__())))
    rebuild, args = collection.__dask_postpersist__()
    return rebuild(dsk, *args)

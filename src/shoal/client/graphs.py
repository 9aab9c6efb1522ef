"""dask's graphs and collections, as tasks of shoal's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shoal.client.future import Future
from shoal.client.packing import own
from shoal.ids import key_to_wire
from shoal.messages import TaskSpec
from shoal.shell import serialize


def graph_tasks(dsk: Any, client: Any) -> tuple[list[TaskSpec], list[Future]]:
    """Return the tasks of a dask graph (or of an expression that makes one), in dask's order, and futures inside.

    A future in the graph is a reference to a task that the scheduler has: it is an input of the task that it stands
    in, and where it stands for a whole node of its own key, that node is left out.

    Raises
    ------
    SerializationError
        If a task cannot be pickled, naming its key.
    ForeignFutureError
        If a future belongs to another client, or to a closed one.
    """
    from dask._task_spec import Alias, convert_legacy_graph
    from dask.order import order

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
    specs = []
    for key, node in graph.items():
        with serialize.collecting(in_graph=True) as inside:
            payload = serialize.dumps(node, f"task {key!r}")
        deps = dict.fromkeys(key_to_wire(dep) for dep in node.dependencies if dep != key)
        deps.update(dict.fromkeys(own(future, client) for future in inside))
        futures += inside
        specs.append(TaskSpec(key_to_wire(key), "", payload, list(deps), int(ranks[key])))
    for future in futures:
        own(future, client)
    specs.sort(key=lambda spec: spec.order)
    return specs, futures


def finalized(collection: Any, optimize_graph: bool) -> tuple[Any, Any]:
    """Return the graph that computes one collection to a concrete value, and the key of that value."""
    from dask._expr import FinalizeCompute
    from dask.base import collections_to_expr
    from dask.core import flatten

    expression = FinalizeCompute(collections_to_expr([collection], optimize_graph)).optimize()
    (key,) = flatten(expression.__dask_keys__())
    return expression, key


def persisted(
    collections: list[Any], optimize_graph: bool, submit: Callable[[Any, list[Any]], dict[Any, Future]]
) -> list[Any]:
    """Submit the parts of each collection, and return collections that are made of their futures."""
    from dask.base import collections_to_expr, is_dask_collection
    from dask.core import flatten

    found = []
    for collection in collections:
        if not is_dask_collection(collection):
            found.append(collection)
            continue
        expression = collections_to_expr([collection], optimize_graph)
        if optimize_graph:
            expression = expression.optimize()
        futures = submit(expression, list(flatten(expression.__dask_keys__())))
        rebuild, args = collection.__dask_postpersist__()
        found.append(rebuild(futures, *args))
    return found

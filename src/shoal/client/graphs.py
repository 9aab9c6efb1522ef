"""dask's graphs and collections, as tasks of shoal's."""

from __future__ import annotations

from typing import Any

from shoal.ids import key_to_wire
from shoal.messages import TaskSpec
from shoal.shell import serialize


def graph_tasks(dsk: Any) -> list[TaskSpec]:
    """Return the tasks of a dask graph (or of an expression that makes one), in dask's order.

    Raises
    ------
    SerializationError
        If a task cannot be pickled, naming its key.
    """
    from dask._task_spec import convert_legacy_graph
    from dask.order import order

    if hasattr(dsk, "__dask_graph__"):
        dsk = dsk.__dask_graph__()
    graph = convert_legacy_graph(dict(dsk))
    ranks = order(graph)
    specs = []
    for key, node in graph.items():
        deps = [key_to_wire(dep) for dep in node.dependencies if dep != key]
        payload = serialize.dumps(node, f"task {key!r}")
        specs.append(TaskSpec(key_to_wire(key), "", payload, deps, int(ranks[key])))
    specs.sort(key=lambda spec: spec.order)
    return specs


def finalized(collection: Any, optimize_graph: bool) -> tuple[Any, Any]:
    """Return the graph that computes one collection to a concrete value, and the key of that value."""
    from dask._expr import FinalizeCompute
    from dask.base import collections_to_expr
    from dask.core import flatten

    expression = FinalizeCompute(collections_to_expr([collection], optimize_graph)).optimize()
    (key,) = flatten(expression.__dask_keys__())
    return expression, key

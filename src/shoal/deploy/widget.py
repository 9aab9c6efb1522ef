"""A cluster in a notebook: what it is, and buttons to scale it where ``ipywidgets`` is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from shoal import config
from shoal.errors import ShoalError
from shoal.shell.tasks import Every

if TYPE_CHECKING:
    from shoal.deploy.cluster import Cluster


def display(cluster: Cluster) -> None:
    """Show ``cluster`` in the notebook that this runs in."""
    from IPython.display import display as show

    panel = make(cluster)
    if panel is not None:
        show(panel)
    else:
        show({"text/plain": repr(cluster), "text/html": cluster._repr_html_()}, raw=True)


def make(cluster: Cluster) -> Any:
    """Controls for ``cluster``; None where there is no ``ipywidgets``."""
    try:
        import ipywidgets as w
    except ImportError:
        return None
    status = w.HTML(cluster._repr_html_())
    said = w.HTML("")
    wanted = w.IntText(len(cluster.plan), description="Workers")
    least, most = w.IntText(0, description="Minimum"), w.IntText(0, description="Maximum")
    scale, adapt = w.Button(description="Scale"), w.Button(description="Adapt")

    def do(action: Any) -> None:
        try:
            action()
            said.value = ""
        except (ShoalError, NotImplementedError) as error:
            said.value = str(error)

    scale.on_click(lambda _: do(lambda: cluster.scale(wanted.value)))
    adapt.on_click(lambda _: do(lambda: cluster.adapt(minimum=least.value, maximum=most.value)))
    name = "distributed.deploy.cluster-repr-interval"
    interval = config.seconds(config.get(name, 0.5), name) or 0.5

    def refresh() -> float | None:
        status.value = cluster._repr_html_()
        return interval if cluster.status == "running" else None

    cluster.loop.call_soon_threadsafe(lambda: Every(0.0, refresh, "the widget of a cluster"))
    by_hand, by_itself = w.HBox([wanted, scale]), w.HBox([least, most, adapt])
    return w.VBox([status, by_hand, by_itself, said])

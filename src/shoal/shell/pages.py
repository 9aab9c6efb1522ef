"""Task streams, profiles and tables as HTML that stands by itself: no scripts or fonts from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from shoal import private

#: Rectangles of a task stream that are drawn, the longest first, and frames of a profile.
_MOST: Final = 20_000
_WIDTH, _ROW = 1200, 18

_STYLE: Final = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 1.5em auto; max-width: 80em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: .5em 0 } td, th { padding: .2em .8em .2em 0; text-align: left }
th { border-bottom: 1px solid #bbb } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { background: #fafafa; border: 1px solid #ddd; width: 100%; height: auto }
pre { overflow: auto; background: #f6f6f6; padding: .8em }
details { margin: .1em 0 .1em 1em } summary { cursor: default } summary i { color: #888; font-style: normal }
"""


class Page:
    """A piece of HTML, which notebooks show and :meth:`save` writes into a file.

    Parameters
    ----------
    title
        Of the file.
    body
        Its HTML.
    """

    def __init__(self, title: str, body: str) -> None:
        self.title, self.body = title, body

    def save(self, filename: str | Path) -> None:
        """Write it as a file that stands by itself, and that only this user may read if it is a new one.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        private.write(filename, self.html.encode("utf-8", "backslashreplace"))

    @property
    def html(self) -> str:
        """The whole page."""
        return (
            f"<!DOCTYPE html><html><head><meta charset='utf-8'><title>{escape(self.title)}</title>"
            f"<style>{_STYLE}</style></head><body><h1>{escape(self.title)}</h1>{self.body}</body></html>"
        )

    def _repr_html_(self) -> str:
        return self.body

    def __repr__(self) -> str:
        return f"<Page {self.title!r}, {len(self.body):,} characters; .save(filename) writes it>"


def color(name: str) -> str:
    """Always the same color for a name."""
    hue = hashlib.blake2b(name.encode(), digest_size=2).digest()
    return f"hsl({int.from_bytes(hue, 'big') % 360}, 55%, 55%)"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table; numbers stand to the right."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"<td class='n'>{value:,.3f}</td>"
    if isinstance(value, int):
        return f"<td class='n'>{value:,}</td>"
    return f"<td>{escape(str(value))}</td>"


def task_stream(rows: Sequence[dict[str, Any]], prefix_of: Any) -> str:
    """Executions as rectangles: time to the right, a line for each thread of a worker; as SVG."""
    spans = [(row, step) for row in rows for step in row["startstops"]]
    if not spans:
        return "<p>no task ran</p>"
    begin = min(step["start"] for _, step in spans)
    end = max(step["stop"] for _, step in spans)
    scale = _WIDTH / max(end - begin, 1e-6)
    lanes: dict[tuple[str, int], int] = {}
    for worker, thread in sorted({(row["worker"], row["thread"]) for row, _ in spans}):
        lanes[worker, thread] = len(lanes)
    shown = sorted(spans, key=lambda one: one[1]["start"] - one[1]["stop"])[:_MOST]
    parts = []
    for row, step in shown:
        prefix = prefix_of(row["key"])
        seconds = step["stop"] - step["start"]
        x, width = (step["start"] - begin) * scale, max(seconds * scale, 0.3)
        y = lanes[row["worker"], row["thread"]] * _ROW
        fill = "#222" if row["status"] == "error" else color(prefix)
        told = f"{row['key']}\n{seconds:.4g} s on {row['worker']}, thread {row['thread']}, {row['status']}"
        parts.append(
            f"<rect x='{x:.2f}' y='{y}' width='{width:.2f}' height='{_ROW - 2}' fill='{fill}'>"
            f"<title>{escape(told)}</title></rect>"
        )
    legend = " ".join(
        f"<span style='color:{color(name)}'>■</span> {escape(name)}"
        for name in sorted({prefix_of(row["key"]) for row, _ in shown})
    )
    left = f"<p>{len(spans) - len(shown):,} short ones are not drawn</p>" if len(shown) < len(spans) else ""
    height = len(lanes) * _ROW
    return (
        f"<p>{legend}</p><svg viewBox='0 0 {_WIDTH} {height}' preserveAspectRatio='none'>{''.join(parts)}</svg>"
        f"<p>{end - begin:.3f} s, {len(lanes)} threads, {len(spans):,} executions; black: failed</p>{left}"
    )


def profile(tree: dict[str, Any]) -> str:
    """A profile as lists that open: where the time went, the most first."""
    if not tree["count"]:
        return "<p>nothing was seen: tasks were too short, or did not run</p>"
    budget = [_MOST]
    return f"<p>{tree['count']:,} looks</p>" + _branch(tree, tree["count"], budget, 0)


def _branch(tree: dict[str, Any], total: int, budget: list[int], depth: int) -> str:
    parts = []
    for child in sorted(tree["children"].values(), key=lambda one: -one["count"]):
        if child["count"] < total / 500 or budget[0] <= 0 or depth > 120:
            break
        budget[0] -= 1
        told, share = child["description"], child["count"] / total
        where = f"{told['filename']}:{told['line_number']}"
        parts.append(
            f"<details{' open' if share > 0.2 else ''}><summary><b>{share:.1%}</b> {escape(told['name'])} "
            f"<i>{escape(where)}</i> <code>{escape(told['line'])}</code></summary>"
            f"{_branch(child, total, budget, depth + 1)}</details>"
        )
    return "".join(parts)

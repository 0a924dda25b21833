"""What results look like: sizes in words, and small HTML tables for notebooks.

The tables set no colours and no fonts, so that they follow the notebook's theme, and every value is escaped:
names and texts come from content that anybody may have made.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

MAX_ROWS: Final = 100
"""Rows that a table shows; what is beyond is counted in a last line."""
MAX_CELL: Final = 300
"""Characters of one value; a longer one is cut with an ellipsis."""


def size_text(size: int) -> str:
    """A number of bytes for people, in powers of 1024: `817 bytes`, `5.3 MiB`."""
    if size < 1024:
        return f"{size} byte" if size == 1 else f"{size} bytes"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def a_kind(value: object) -> str:
    """The name of a value's type with its article: `an int`, `a dict`."""
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeioAEIO' else 'a'} {name}"


def time_text(seconds: float) -> str:
    """A time since the epoch as local date and time; empty for 0, which stands for unknown."""
    if not seconds:
        return ""
    return dt.datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def table_html(headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> str:
    """A table with one row per item."""
    shown = [_row("td", row) for row in rows[:MAX_ROWS]]
    if len(rows) > MAX_ROWS:
        shown.append(f"<tr><td colspan='{len(headers)}'>… and {len(rows) - MAX_ROWS} more</td></tr>")
    title = f"<caption>{_cell(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead>{_row('th', headers)}</thead><tbody>{''.join(shown)}</tbody></table>"


def facts_html(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """A table of names and values, without those that are None or empty."""
    rows = "".join(
        f"<tr><th scope='row'>{_cell(name)}</th><td>{_cell(value)}</td></tr>"
        for name, value in facts
        if value is not None and value != ""
    )
    return f"<table><caption>{_cell(title)}</caption><tbody>{rows}</tbody></table>"


def _row(tag: str, values: Iterable[object]) -> str:
    return "<tr>" + "".join(f"<{tag}>{_cell(value)}</{tag}>" for value in values) + "</tr>"


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    return escape(text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…")

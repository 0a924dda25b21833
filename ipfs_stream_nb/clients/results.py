"""The lists that the clients give back, and hints for misspelt arguments."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Entry, GCResult, Pin
from ipfs_stream_nb.display import MAX_ROWS, facts_html, size_text, table_html, time_text

C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])


class Entries(list[Entry]):
    """The entries of a directory; `entries["name"]` finds one by name too.

    A size is that of all blocks below the entry (Tsize), which is a little more than its bytes: `stat` tells those.
    """

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, str):
            return super().__getitem__(key)
        for entry in self:
            if entry.name == key:
                return entry
        raise KeyError(key)

    def _rows(self) -> list[tuple[str, str, str, CID]]:
        return [(one.name, one.kind or "", size_text(one.size), one.cid) for one in self]

    def _title(self) -> str:
        return _count(self, "entry", "entries") + ("; sizes with blocks" if self else "")

    def __repr__(self) -> str:
        return _lines(self._title(), self._rows())

    def _repr_html_(self) -> str:
        title = _count(self, "entry", "entries")
        if any(one.kind for one in self):
            return table_html(("name", "kind", "size with blocks", "CID"), self._rows(), title)
        rows = [(name, size, cid) for name, _, size, cid in self._rows()]
        return table_html(("name", "size with blocks", "CID"), rows, title)


@dataclass(frozen=True, slots=True)
class Removed(GCResult):
    """What `remove` took away; `kept_blocks` is what the store holds now."""

    still_here: bool = False
    """Whether the content stays, unpinned, since something else needs it."""

    def _facts(self) -> list[tuple[str, str]]:
        taken = f"{self.blocks} block{'' if self.blocks == 1 else 's'}, {size_text(self.bytes)}"
        kept = "the content: other pins, or who reads or adds now, still need it"
        return [("taken away", taken), *([("kept", kept)] if self.still_here else [])]

    def __repr__(self) -> str:
        return f"Removed({'; '.join(f'{name}: {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return facts_html("removed", self._facts())


class Pins(list[Pin]):
    """The pins of a node, oldest first."""

    def __repr__(self) -> str:
        return _lines(_count(self, "pin", "pins"), [(one.cid, one.name) for one in self])

    def _repr_html_(self) -> str:
        rows = [(one.name, one.cid, time_text(one.created)) for one in self]
        return table_html(("name", "CID", "pinned"), rows, _count(self, "pin", "pins"))


def _count(items: list[Any], one: str, many: str) -> str:
    return f"{len(items)} {one if len(items) == 1 else many}"


def _lines(title: str, rows: list[Any]) -> str:
    shown = ["  " + "  ".join(str(value) for value in row if value != "") for row in rows[:MAX_ROWS]]
    more = [f"  … and {len(rows) - MAX_ROWS} more"] if len(rows) > MAX_ROWS else []
    return "\n".join([title, *shown, *more])


def hinted(call: F) -> F:
    """A function whose unknown keyword arguments are refused with the name that may have been meant."""
    known = [
        name
        for name, parameter in inspect.signature(call).parameters.items()
        if parameter.kind in {parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY}
    ]
    takes_any = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(call).parameters.values())

    @functools.wraps(call)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name in () if takes_any else kwargs:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = (
                    f"did you mean {close[0]!r}?"
                    if close
                    else f"it has {', '.join(known).replace('self, ', '')}"
                )
                raise TypeError(f"{call.__qualname__}() has no argument {name!r}; {hint}")
        return call(*args, **kwargs)

    return checked  # type: ignore[return-value]  # the same signature


def hinted_methods(kind: C) -> C:
    """A class whose public methods are all `hinted`."""
    for name, member in vars(kind).copy().items():
        if inspect.isfunction(member) and not name.startswith("_"):
            setattr(kind, name, hinted(member))
    return kind

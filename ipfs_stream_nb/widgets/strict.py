"""What our widgets have in common: no mistyped trait is taken in silence, and a closed one is known as such."""

from __future__ import annotations

import difflib
from typing import Any

import anywidget


class StrictWidget(anywidget.AnyWidget):
    """A widget that refuses public attributes that it does not have."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a trait. Python would take a mistyped one as a new attribute that nobody reads."""
        if not name.startswith("_") and not hasattr(type(self), name):
            own = [
                one for one, trait in type(self).class_traits().items() if one[0] != "_" and _is_ours(trait)
            ]
            close = difflib.get_close_matches(name, own, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"what can be set is {', '.join(own)}"
            raise AttributeError(f"{type(self).__name__} has no {name!r}; {hint}")
        super().__setattr__(name, value)

    @property
    def _closed(self) -> bool:
        return self.comm is None


def _is_ours(trait: Any) -> bool:
    return not trait.read_only and issubclass(trait.this_class, StrictWidget)

"""One ES module out of several, and one style sheet: a front end takes a widget's JavaScript and its CSS as single texts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_IMPORT: Final = re.compile(r'^import \{([^}]*)\} from "\./([\w-]+\.js)";$', re.MULTILINE)
_EXPORT: Final = re.compile(r"^export ((?:async )?(?:function\*?|class|const) (\w+))", re.MULTILINE)


def join_modules(entry: Path) -> str:
    """The module `entry` with what it imports from its own folder set before it, each once and in a scope of its own.

    Each file stays a module by itself. Imports are `import { a, b as c } from "./file.js";` on one line, exports are
    declarations: `export const`, `function` or `class`; the entry's own exports may be any.
    """
    scopes: dict[str, str] = {}
    body = _resolved(entry, scopes)
    return "".join(scopes.values()) + body


def themed(sheet: Path) -> str:
    """A widget's style sheet after what all widgets have, theme.css of the same folder."""
    return (sheet.parent / "theme.css").read_text("utf-8") + sheet.read_text("utf-8")


def _resolved(path: Path, scopes: dict[str, str]) -> str:
    """A module's text with its imports taken from the scopes, to which they are added in the order of their needs."""

    def take(match: re.Match[str]) -> str:
        name = match[2]
        if name not in scopes:
            text = _resolved(path.parent / name, scopes)
            exported = ", ".join(found[2] for found in _EXPORT.finditer(text))
            inner = _EXPORT.sub(r"\1", text)
            scopes[name] = f"const {_scope(name)} = (() => {{\n{inner}\nreturn {{ {exported} }};\n}})();\n"
        names = re.sub(r"(\w+) as (\w+)", r"\1: \2", match[1])
        return f"const {{{names}}} = {_scope(name)};"

    return _IMPORT.sub(take, path.read_text("utf-8"))


def _scope(name: str) -> str:
    return "module_" + re.sub(r"\W", "_", name)

"""What RFC 9110 says of a Range header, worked out in another way than `ipfs_stream_nb.content.ranges` does it.

The header is matched as a whole against the ABNF of sections 5.6.1 and 14.1 turned into one regular
expression, and each range is the *set of byte positions* that it names, so that clamping, satisfiability,
order and overlap are plain set arithmetic. Fit for small representations only, and for numbers of any length:
they are compared as digit strings.
"""

import itertools
import re

OWS = r"[ \t]*"
INT_RANGE = r"[0-9]+-[0-9]*"
SUFFIX_RANGE = r"-[0-9]+"
RANGE_SPEC = rf"(?:{INT_RANGE}|{SUFFIX_RANGE})"
# what a recipient must accept for 1#range-spec: empty elements too, but at least one that is not
RANGE_SET = rf"(?:{RANGE_SPEC})?(?:{OWS},{OWS}(?:{RANGE_SPEC})?)*"
RANGES_SPECIFIER = re.compile(rf"(?i:bytes)=({RANGE_SET})")

# the limits that the server documents (they stand here again, on purpose)
MAX_RANGES = 64
MAX_OVERLAP = 2
MAX_UNORDERED = 8


def digits_at_most(left: str, right: str) -> bool:
    """left <= right as numbers, digit by digit, without int()."""
    width = max(len(left), len(right))
    return left.rjust(width, "0") <= right.rjust(width, "0")


def positions(spec: str, size: int) -> set[int]:
    """The positions of a representation of `size` bytes that one range-spec names."""
    first, last = spec.split("-")
    if first == "":
        return {p for p in range(size) if digits_at_most(str(size - p), last)}
    return {
        p for p in range(size) if digits_at_most(first, str(p)) and (not last or digits_at_most(str(p), last))
    }


def expected(header: str | None, size: int) -> list[tuple[int, int]] | None:
    """(first, last) of each part, inclusive; None for a 200 with everything; [] for a 416."""
    match = RANGES_SPECIFIER.fullmatch((header or "").strip(" \t"))
    specs = re.findall(RANGE_SPEC, match[1]) if match else []
    if not specs:
        return None
    for spec in specs:
        first, last = spec.split("-")
        if first and last and not digits_at_most(first, last):
            return None
    if size == 0 and any(spec.startswith("-") and spec.strip("-0") for spec in specs):
        return None  # satisfiable by the letter, but no Content-Range can say it
    named = [found for found in (positions(spec, size) for spec in specs) if found]
    return None if abusive(named, size) else [(min(one), max(one)) for one in named]


def abusive(named: list[set[int]], size: int) -> bool:
    """Whether the ranges are over one of the limits."""
    return (
        len(named) > MAX_RANGES
        or any(sum(p in one for one in named) > MAX_OVERLAP for p in range(size))
        or (len(named) > MAX_UNORDERED and any(min(a) > min(b) for a, b in itertools.pairwise(named)))
    )


def response(header: str | None, content: bytes) -> tuple[int, list[tuple[str, bytes]]]:
    """The status, and (Content-Range, bytes) of each part; ("", everything) for a 200."""
    size = len(content)
    parts = expected(header, size)
    if parts is None:
        return 200, [("", content)]
    if not parts:
        return 416, [(f"bytes */{size}", b"")]
    return 206, [(f"bytes {first}-{last}/{size}", content[first : last + 1]) for first, last in parts]

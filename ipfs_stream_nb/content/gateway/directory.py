"""Directories: their index.html or a listing, always at a URL that ends with a slash."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Final

from ipfs_stream_nb.content.gateway import listing
from ipfs_stream_nb.content.gateway.messages import Answer, GatewayResponse
from ipfs_stream_nb.content.gateway.negotiation import Choice, ContentPath
from ipfs_stream_nb.content.gateway.representation import whole
from ipfs_stream_nb.content.node import Entry, Node, Stat
from ipfs_stream_nb.errors import BadRequestError, NotFoundError, TooLargeError

LISTING_MAX_AGE: Final = 3600
"""Seconds that a listing may be cached: its content never changes, how it is shown does."""
MAX_LISTED: Final = 200_000
"""Entries that pages can reach; directories have no index, so the pages before must be walked through."""
INDEX: Final = "index.html"
_PAGE: Final = re.compile(r"[1-9][0-9]{0,8}")


async def find_index(node: Node, path: ContentPath, choice: Choice, query: dict[str, str]) -> Stat | None:
    """The directory's index.html, where it is a file and no listing is asked for (`?listing=1`, or as JSON)."""
    if choice.prefers_json or query.get("listing") in {"true", "1"}:
        return None
    try:
        stat = await node.stat(f"{path.node_path}/{INDEX}")
    except NotFoundError:
        return None
    return stat if stat.kind == "file" else None


def redirect_to_slash(answer: Answer, path: ContentPath) -> GatewayResponse:
    """301 to the URL with a slash at its end, which relative links need; relative itself, so good at any base URL."""
    answer.set(Location=path.relative(answer.request.query, slash=True))
    return answer.respond(301)


async def serve_listing(
    node: Node, answer: Answer, path: ContentPath, stat: Stat, choice: Choice
) -> GatewayResponse:
    """One page of the directory's entries. HEAD does not read them."""
    number = _page_number(answer)
    kind = "json" if choice.prefers_json else "html"
    answer.limit_age(LISTING_MAX_AGE)
    early = answer.precondition(f'"DirIndex-{listing.VERSION}-{kind}-{number}_CID-{stat.cid}"')
    if early is not None:
        return early
    answer.set(Accept_Ranges="none", Content_Security_Policy=listing.POLICY)
    answer.set(Content_Type="application/json" if choice.prefers_json else "text/html; charset=utf-8")
    if answer.is_head:
        return answer.respond(200)
    entries = await _entries(node, path, number, answer.settings.listing_entries)
    page_size = answer.settings.listing_entries
    page = listing.Page(
        path, str(stat.cid), entries[:page_size], number, len(entries) > page_size, answer.request.query
    )
    body = listing.as_json(page) if choice.prefers_json else listing.as_html(page)
    answer.set(Content_Length=len(body))
    return answer.respond(200, whole(body))


def _page_number(answer: Answer) -> int:
    text = answer.request.query.get("page", "1")
    if not _PAGE.fullmatch(text):
        raise BadRequestError(f"page is a number from 1, not {text[:40]!r}")
    number = int(text)
    if (number - 1) * answer.settings.listing_entries >= MAX_LISTED:
        raise TooLargeError(
            f"pages reach the first {MAX_LISTED:,} entries of a directory; use client.ls() for all of them"
        )
    return number


async def _entries(node: Node, path: ContentPath, number: int, page_size: int) -> list[Entry]:
    """The entries of a page, and one more if there is a page after it."""
    skip = (number - 1) * page_size
    entries: list[Entry] = []
    async with aclosing(node.ls(path.node_path)) as found:
        async for entry in found:
            if skip:
                skip -= 1
                continue
            entries.append(entry)
            if len(entries) > page_size:
                break
    return entries

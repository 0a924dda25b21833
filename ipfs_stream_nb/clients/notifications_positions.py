"""What a subscriber wants, and how far it is: which events are new, and with what to subscribe again. No I/O."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipfs_stream_nb.clients.notifications_json import plain
from ipfs_stream_nb.errors import BadRequestError, RetrievalError
from ipfs_stream_nb.notifications.events import NotificationType

Since = int | str
"""The id of an event, or "epoch-id", which tells whether the log is still the same."""

_CURSOR: Final = re.compile(r"(?P<epoch>[A-Za-z0-9._]+)-(?P<id>[0-9]{1,18})")


class GapError(Exception):
    """The server has sent an event that did not come."""


@dataclass
class _Wanted:
    """One type."""

    filters: str
    """As JSON."""
    epoch: str
    at: int
    """The id up to which everything has come."""
    live: bool = True
    """Whether it is subscribed to on this connection."""


def read_since(since: object, epoch: str) -> tuple[str, int]:
    """The epoch and id of a cursor; a bare id is one of `epoch`. Raises BadRequestError."""
    if isinstance(since, int) and not isinstance(since, bool) and since >= 0:
        return epoch, since
    if isinstance(since, str) and (found := _CURSOR.fullmatch(since)):
        return found["epoch"], int(found["id"])
    raise BadRequestError(
        f"since={since!r}: it is the id of an event, or a client's cursor such as '8f3a-120'"
    )


def read_types(types: object) -> list[str]:
    """The names of notification types: one, or several. Raises BadRequestError."""
    names = [types] if isinstance(types, str) else types
    if not isinstance(names, Iterable) or isinstance(names, Mapping | bytes):
        raise BadRequestError(f"notification_types is a list of types, not a {type(types).__name__}")
    listed = list(names)
    wrong = [name for name in listed if not isinstance(name, str)]
    if wrong or not listed:
        raise BadRequestError(
            f"notification_types has {wrong[0]!r}, which is no text"
            if wrong
            else "notification_types is empty; 'all_events' stands for all of them"
        )
    return [str(getattr(name, "value", name)) for name in listed]


def read_type(name: object) -> str:
    """The name of one notification type. Raises BadRequestError."""
    names = read_types(name)
    if len(names) > 1:
        raise BadRequestError(
            f"notification_type is one type, not {len(names)}: ask for each, or for all of them"
        )
    return names[0]


def read_filters(filters: object) -> dict[str, Any]:
    """A copy of the filters as they are sent. Raises BadRequestError for what is no JSON object."""
    if filters is None:
        return {}
    if not isinstance(filters, Mapping):
        raise BadRequestError(
            f"filters are a dictionary such as {{'cid': '…'}}, not a {type(filters).__name__}"
        )
    copy: dict[str, Any] = json.loads(json.dumps(plain(filters, "filters")))  # keys are text then
    return copy


class Positions:
    """The types that are wanted, and up to which id each one's events have come.

    A server sends what a connection wants in one rising order. It begins that order anew, further back, only where the
    connection subscribes with an older cursor, and then leaves out the types that were further already.
    """

    def __init__(self) -> None:
        self.epoch = ""
        self.passed = 0
        """The highest id that has come, or that was told."""
        self._available: list[str] = []
        self._wanted: dict[str, _Wanted] = {}
        self._prev: int | None = None
        """What the next event is to name as the one before it; None where that is not known."""

    @property
    def wants(self) -> bool:
        """Whether there is any subscription."""
        return bool(self._wanted)

    def welcome(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        """Begin a connection. Gives the `subscribe` commands that go on where the last one ended."""
        if message.get("type") != "welcome":
            raise RetrievalError("the server did not begin with a welcome")
        groups: dict[tuple[int, str, str], list[str]] = {}
        for name, wanted in self._wanted.items():
            groups.setdefault((wanted.at, wanted.epoch, wanted.filters), []).append(name)
        # the furthest first: a server that goes back for a later one then leaves these where they are
        commands = [
            subscribe_command(names, json.loads(filters), (epoch, at))
            for (at, epoch, filters), names in sorted(groups.items(), reverse=True)
        ]
        epoch, last = str(message.get("epoch")), message.get("last_id")
        last = last if isinstance(last, int) else 0
        if epoch != self.epoch or last < self.passed:
            self.passed = last
        self.epoch, self._prev = epoch, None
        for wanted in self._wanted.values():
            wanted.live = False
            if wanted.epoch == epoch and wanted.at > last:
                wanted.epoch = ""  # a log that was put back to what it was: the ids are given again
        told = message.get("available_notifications")
        self._available = [str(name) for name in told] if isinstance(told, list) else []
        return commands

    def subscribed(self, filters: dict[str, Any], confirmation: dict[str, Any]) -> None:
        """Take the confirmation of a new subscription: what it names is behind its `since` from here on."""
        epoch, at = str(confirmation.get("epoch", self.epoch)), int(confirmation.get("since", self.passed))
        for name in self._each(confirmation):
            self._wanted[name] = _Wanted(json.dumps(filters, sort_keys=True), epoch, at)
        if epoch == self.epoch:
            self.passed = max(self.passed, at)
        self._prev = None

    def unsubscribed(self, confirmation: dict[str, Any]) -> None:
        """Want some types no more."""
        for name in self._each(confirmation):
            self._wanted.pop(name, None)

    def _each(self, confirmation: dict[str, Any]) -> list[str]:
        names = [str(name) for name in confirmation.get("notification_types") or ()]
        if NotificationType.ALL_EVENTS in names:
            names = [name for name in self._available if name != NotificationType.ALL_EVENTS]
        return names

    def resumed(self, confirmation: dict[str, Any]) -> None:
        """Take the confirmation of a subscription that `welcome` gave."""
        for name in self._each(confirmation):
            if name in self._wanted:
                self._wanted[name].live = True
        self._prev = None

    def reset(self, message: dict[str, Any], asked: tuple[str, int] | None = None) -> list[int | None]:
        """The log does not have what was asked for: it begins with `first`. `asked`: the cursor of a new subscription
        whose confirmation is waited for.

        Gives for each subscription that this concerns how many events are lost at the most, others' among them, or None
        where the ids of another log tell nothing.
        """
        epoch, first = str(message["epoch"]), int(message["first"])
        lost: list[int | None] = []
        if asked is not None:
            known = asked[0] == epoch and asked[1] < first
            lost.append(first - 1 - asked[1] if known else None)
        for wanted in self._wanted.values():
            if wanted.epoch != epoch or wanted.at < first - 1:
                lost.append(first - 1 - wanted.at if wanted.epoch == epoch else None)
                wanted.epoch, wanted.at = epoch, first - 1
        self.passed = first - 1 if epoch != self.epoch else max(self.passed, first - 1)
        self.epoch, self._prev = epoch, None
        return lost

    def take(self, event: dict[str, Any]) -> bool:
        """Whether an event is wanted and new; it counts as come. Raises GapError where one before it is missing."""
        wanted = self._wanted.get(str(event.get("notification_type")))
        for_all = event.get("type") == "system_notification"
        number, prev = event.get("id"), event.get("prev")
        if not isinstance(number, int):
            return wanted is not None or for_all
        if isinstance(prev, int) and (prev > self.passed if self._prev is None else prev != self._prev):
            raise GapError(f"the event {number} comes after the event {prev}, which did not come")
        self._prev = number
        come = self.passed if wanted is None else self._at(wanted)
        self.passed = max(self.passed, number)
        for one in self._wanted.values():
            if one.live and self._at(one) < number:
                one.epoch, one.at = self.epoch, number
        return number > come and (wanted is not None or for_all)

    @property
    def cursor(self) -> str | None:
        """Up to where nothing is missing of any type; None where that cannot be told."""
        behind = min((self._at(wanted) for wanted in self._wanted.values()), default=self.passed)
        return f"{self.epoch}-{behind}" if behind >= 0 else None

    def _at(self, wanted: _Wanted) -> int:
        return wanted.at if wanted.epoch == self.epoch else -1


def subscribe_command(
    types: list[str], filters: dict[str, Any], cursor: tuple[str, int] | None
) -> dict[str, Any]:
    """The message that subscribes, from behind `cursor` where there is one."""
    command: dict[str, Any] = {"action": "subscribe", "notification_types": types}
    if filters:
        command["filters"] = filters
    if cursor is not None:
        command["epoch"], command["since"] = cursor
    return command

"""Which events a subscriber is sent: its subscriptions and its rights, shared by all who want the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar
from weakref import WeakValueDictionary

from ipfs_stream_nb.notifications.events import Record
from ipfs_stream_nb.notifications.filters import Filters
from ipfs_stream_nb.notifications.rights import Principal, may_see


class Batch:
    """Some records, each parsed at most once, and only where a filter looks into it."""

    def __init__(self, records: list[Record]) -> None:
        self.records = records
        self._parsed: dict[int, dict[str, Any] | None] = {}

    def message(self, index: int) -> dict[str, Any] | None:
        """One of them as the notification that filters look at; None where it cannot be read."""
        if index not in self._parsed:
            self._parsed[index] = readable(self.records[index])
        return self._parsed[index]


def readable(record: Record) -> dict[str, Any] | None:
    """A record's message. None for one that is no JSON, or too deep: others can write to a log, too."""
    try:
        return record.message()
    except (ValueError, RecursionError):
        return None


class Selection:
    """Subscriptions, by type, and the rights of whoever has them. Immutable: two that are equal are one object."""

    _all: ClassVar[WeakValueDictionary[object, Selection]] = WeakValueDictionary()

    __slots__ = ("__weakref__", "_filters", "_principal")

    def __init__(self, filters: Mapping[str, Filters], principal: Principal | None) -> None:
        self._filters = dict(filters)
        self._principal = principal

    @classmethod
    def of(cls, filters: Mapping[str, Filters], principal: Principal | None) -> Selection:
        """The selection of these subscriptions for somebody; None, who is nobody, may see nothing."""
        key = (frozenset(filters.items()), principal)
        found = cls._all.get(key)
        if found is None:
            found = cls._all[key] = cls(filters, principal)
        return found

    def wanted(self, batch: Batch) -> Iterator[Record]:
        """Those of a batch that are to be sent, in order."""
        for index, record in enumerate(batch.records):
            # rights first: what somebody may not see costs nothing to look for
            if may_see(self._principal, record.notification_type, record.owner) and self._matches(
                record, index, batch
            ):
                yield record

    def _matches(self, record: Record, index: int, batch: Batch) -> bool:
        if record.kind == "system_notification":
            return True  # for all who are connected
        filters = self._filters.get(record.notification_type)
        if filters is None or not filters:
            return filters is not None
        message = batch.message(index)
        return message is not None and filters.passes(message)

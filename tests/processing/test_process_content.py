"""process_content: the guide's events."""

import asyncio
import json

import pytest

import ipfs_stream_nb as ipfs
from ipfs_stream_nb.content.embedded import EmbeddedNode
from ipfs_stream_nb.errors import BadRequestError, TooLargeError, UnsupportedMediaError
from ipfs_stream_nb.notifications.events import Event
from ipfs_stream_nb.processing.processor import process_content


class Log:
    """An emitter that keeps what it is given, if that makes an event."""

    def __init__(self):
        self.events, self.options, self._changed = [], [], asyncio.Event()

    def __call__(self, notification_type, data, *, source=None, owner=None, keep=True):
        body = Event(notification_type, data, source=source, owner=owner).body
        message = json.loads(body + b"}")
        self.events.append((message["notification_type"], message["data"]))
        self.options.append((message["data"]["status"], owner, keep))
        self._changed.set()

    async def wait_for(self, status):
        while status not in self.statuses:
            await self._changed.wait()
            self._changed.clear()

    @property
    def statuses(self):
        return [data["status"] for _, data in self.events]


async def test_the_guides_events(node, add):
    """Starting, processing and completed, with the guide's fields and no others."""
    cid, log = await add(node, b"x" * 3_000_000), Log()
    result = await process_content(node, cid, "task-1", "checksums", log, owner="ada")
    common = {"task_id": "task-1", "cid": str(cid)}
    assert log.events[0] == (
        "system_info",
        {"message": f"Starting checksums processing for {cid}", **common, "status": "starting"},
    )
    assert log.events[-1] == (
        "system_info",
        {
            "message": "checksums processing completed",
            **common,
            "status": "completed",
            "result": result,
        },
    )
    for kind, data in log.events[1:-1]:
        progress = data.pop("progress")
        assert set(progress) == {"percent", "bytes_processed", "total_bytes"}
        expected = {"message": "checksums processing in progress", **common, "status": "processing"}
        assert (kind, data) == ("system_info", expected)
    assert progress["percent"] == 100.0
    assert {keep for status, _, keep in log.options if status == "processing"} == {False}
    assert {keep for status, _, keep in log.options if status != "processing"} == {True}
    assert {owner for _, owner, _ in log.options} == {"ada"}


async def test_a_failure(node, add):
    """It is told as a system_error with its text, and raised; a task without a name gets one."""
    cid, log = await add(node, b"no video"), Log()
    with pytest.raises(UnsupportedMediaError) as caught:
        await process_content(node, cid, None, "transcode", log)
    kind, data = log.events[-1]
    assert kind == "system_error"
    assert data == {
        "message": "transcode processing failed",
        "task_id": log.events[0][1]["task_id"],
        "cid": str(cid),
        "status": "failed",
        "error": str(caught.value),
    }
    assert len(data["task_id"]) == 32
    assert log.statuses == ["starting", "failed"]


@pytest.mark.parametrize(
    ("content", "process_type", "options"),
    [
        ("x" * 10_000, "probe", {}),
        (b"\xff", "probe", {}),
        ("bafkqaaa", "y" * 100_000, {}),
        ("bafkqaaa", "probe", {"a": 1}),
    ],
)
async def test_bad_input_fails_as_the_guide_says(node, content, process_type, options):
    """What makes no sense is announced, fails, and makes no event too large for the log."""
    log = Log()
    with pytest.raises((BadRequestError, TooLargeError)):
        await process_content(node, content, "t", process_type, log, **options)
    assert log.statuses == ["starting", "failed"]


async def test_the_text_of_an_internal_error_is_hidden(node, add, monkeypatch):
    """Whoever listens learns that it failed, and no more; who called gets the error itself."""
    cid, log = await add(node, b"x"), Log()

    async def broken(*_):
        raise RuntimeError("secret: hunter2")

    monkeypatch.setattr(node, "read", broken)
    with pytest.raises(RuntimeError, match="hunter2"):
        await process_content(node, cid, "t", "checksums", log)
    assert log.events[-1][1]["error"] == "an internal error"


async def test_a_cancellation_has_its_event(held, add):
    """A cancelled task ends with an event that says so, and nothing after it."""
    cid, log = await add(held, b"x"), Log()
    task = asyncio.create_task(process_content(held, cid, "t", "checksums", log))
    await held.held.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert log.events[-1] == (
        "system_info",
        {
            "message": "checksums processing cancelled",
            "task_id": "t",
            "cid": str(cid),
            "status": "cancelled",
        },
    )
    assert log.statuses == ["starting", "cancelled"]
    await asyncio.sleep(0.05)
    assert len(log.events) == 2


async def test_many_at_once(node, add):
    """Many tasks at once each tell their own story to its end."""
    cids = [await add(node, bytes([number]) * 2000) for number in range(20)]
    log = Log()
    await asyncio.gather(
        *(process_content(node, cid, f"t{n}", "checksums", log) for n, cid in enumerate(cids))
    )
    for number, cid in enumerate(cids):
        mine = [data for _, data in log.events if data["task_id"] == f"t{number}"]
        assert {data["cid"] for data in mine} == {str(cid)}
        assert [data["status"] for data in mine] == ["starting", "processing", "completed"] or (
            mine[0]["status"],
            mine[-1]["status"],
        ) == ("starting", "completed")


def test_an_interrupted_program_ends(tmp_path, add):
    """asyncio.run with work under way ends in no time, with the cancelled event."""
    log = Log()

    async def main():
        async with await EmbeddedNode.open(tmp_path / "repo") as node:
            data = ipfs.samples.video(width=320, height=240, duration=4.0, grain=20)
            task = asyncio.create_task(process_content(node, await add(node, data), "t", "transcode", log))
            await log.wait_for("processing")
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(main())
    assert log.statuses[-1] == "cancelled"

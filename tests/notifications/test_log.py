"""The log of events in a file of SQLite: crashes, damage, full disks, other programs, and how much it keeps."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import event_child
from ipfs_stream_nb.errors import BadRequestError, BusyError, DiskFullError, StoreError
from ipfs_stream_nb.notifications import log, log_feed, log_file, log_places, log_writer
from ipfs_stream_nb.notifications.engine import Bounds, EpochChangedError
from ipfs_stream_nb.notifications.events import MAX_EVENT, Event
from ipfs_stream_nb.notifications.log import SQLiteEngine
from ipfs_stream_nb.notifications.log_file import LogFile
from small_disks import small_disk

KILLS = 200


def event(n=0, size=0, **more):
    return Event("custom_event", {"n": n, "filling": "x" * size}, **more)


def numbers(records):
    return [record.message()["data"]["n"] for record in records]


async def publish(engine, count, size=0, **more):
    return await asyncio.gather(*(engine.publish(event(n, size, **more)) for n in range(count)))


@asynccontextmanager
async def opened(directory, **options):
    engine = SQLiteEngine(directory, **options)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "log"


@contextmanager
def other_program(path):
    """A connection as any other program could have it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


def asides(home):
    return sorted(path.name for path in home.glob("*.damaged-*") if not path.name.endswith(("-wal", "-shm")))


# processes that die


class Nursery:
    """event_child.py, and what it says."""

    def __init__(self, process):
        self._process = process

    def line(self):
        return self._process.stdout.readline()

    def start(self):
        """A child's pid and its log's epoch."""
        self._process.stdin.write("go\n")
        _, pid, epoch = self.line().split()
        return int(pid), epoch

    def until_dead(self):
        """The lines up to the end of the child that is killed."""
        return list(iter(self.line, "dead\n"))


@contextmanager
def nursery(home):
    command = [sys.executable, event_child.__file__, home]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen(command, **pipes, env=os.environ | {"PYTHONASYNCIODEBUG": ""}) as process:
        yield Nursery(process)  # it ends with its stdin


def test_200_kills_lose_nothing_that_was_acknowledged(home):
    """Killed while they publish and trim, at any moment: each acknowledged event is there under its id, ids are dense and
    in each publisher's order, and the epoch stays."""
    chooser = random.Random(5)
    epochs, last, acknowledged = set(), 0, 0
    with nursery(home) as children:
        for _ in range(KILLS):
            pid, epoch = children.start()
            lines = [children.line() for _ in range(chooser.randrange(60))]
            time.sleep(chooser.random() * 0.004)
            os.kill(pid, 9)
            acks = [tuple(map(int, line.split())) for line in lines + children.until_dead()]
            with closing(
                LogFile(home / "notifications.sqlite", synchronous="NORMAL")
            ) as left:  # checked, not trimmed
                bounds, records = Bounds(left.epoch, left.first, left.last), left.read(last, 10**6, 10**9)
            epochs |= {epoch, bounds.epoch}
            # what an earlier one left has been looked at, or was trimmed since
            assert [record.id for record in records] == list(
                range(max(last + 1, bounds.first), bounds.last + 1)
            )
            data = {record.id: record.message()["data"] for record in records}
            found = {number: (each["publisher"], each["number"]) for number, each in data.items()}
            assert max((number for number, _, _ in acks), default=0) <= bounds.last
            assert all(number < bounds.first or found[number] == tuple(ack) for number, *ack in acks)
            for publisher in range(event_child.PUBLISHERS):
                told = [number for who, number in found.values() if who == publisher]
                assert told == list(range(told[0], told[0] + len(told))) if told else True
                assert not told or told[0] == 1 or bounds.first > last + 1
            acknowledged += len(acks)
            last = bounds.last
    assert len(epochs) == 1
    assert acknowledged > 10 * KILLS
    assert bounds.first > 1  # it was trimmed


async def test_a_process_that_dies_gives_its_name_back(home):
    """Each server that shares the directory takes the first free name, and a dead one's is free."""
    with nursery(home) as children:
        pid, epoch = children.start()
        async with opened(home) as second, opened(home) as third:
            assert len({epoch, (await second.bounds()).epoch, (await third.bounds()).epoch}) == 3
            os.kill(pid, 9)
            children.until_dead()
            async with opened(home) as fourth:
                assert (await fourth.bounds()).epoch == epoch
    assert {path.name for path in home.glob("*.sqlite")} == {
        *("notifications.sqlite", "notifications-1.sqlite", "notifications-2.sqlite")
    }


async def test_more_servers_than_names_are_told(home, monkeypatch):
    """The error says what would help."""
    monkeypatch.setattr(log_places, "MAX_LOGS", 2)
    async with opened(home), opened(home):
        with pytest.raises(StoreError, match="close one of them"):
            await SQLiteEngine(home).open()


# the model


class Reader:
    """A subscriber that reads when it is told to."""

    def __init__(self, engine, since):
        self.batches = engine.subscribe(since)
        self.since = self.at = since
        self.ids = []
        self.next = None

    async def read(self, seconds=0.05):
        """One batch; whether one came in time."""
        self.next = self.next or asyncio.ensure_future(anext(self.batches))
        done, _ = await asyncio.wait([self.next], timeout=seconds)
        if not done:
            return False
        self.ids += [record.id for record in self.next.result() if record.id]
        self.next = None
        return True

    async def close(self):
        if self.next is not None:
            self.next.cancel()
            await asyncio.wait([self.next])
        await self.batches.aclose()


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 30)),
        st.tuples(st.just("read"), st.integers(-3, 200)),
        st.tuples(st.just("read_back"), st.integers(-3, 200)),
        st.tuples(st.just("subscribe"), st.integers(0, 200)),
        st.tuples(st.sampled_from(["receive", "announce", "trim", "reopen", "bounds"]), st.just(0)),
    ),
    max_size=40,
)


@settings(max_examples=30)
@given(steps=STEPS, max_events=st.integers(1, 60))
def test_a_log_is_a_list(steps, max_events):
    """Whatever is published, read, followed, trimmed and opened again, in whatever order: it is as a list would be."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as home:
        patch.setattr(log_feed, "LIVE_EVENTS", 20)  # so that subscribers are too slow at times
        patch.setattr(log, "PAGE_EVENTS", 7)
        patch.setattr(log_writer, "BATCH_EVENTS", 10)
        asyncio.run(_follow_steps(home, steps, max_events))


async def _follow_steps(home, steps, max_events):  # noqa: C901  # one branch for each step
    engine = SQLiteEngine(home, max_events=max_events, synchronous="NORMAL")
    await engine.open()
    epoch = (await engine.bounds()).epoch
    model, readers = [], []
    for step, value in [*steps, ("bounds", 0)]:
        if step == "publish":
            new = list(range(len(model), len(model) + value))
            assert await asyncio.gather(*(engine.publish(event(n)) for n in new)) == [n + 1 for n in new]
            model += new
        elif step == "subscribe":
            readers.append(Reader(engine, value))
            await readers[-1].read()
        elif step == "receive":
            for reader in readers:
                await reader.read()
        elif step == "announce":
            await engine.announce(event(-1))
        elif step == "trim":
            await engine.trim()
            assert (await engine.bounds()).first == max(1, len(model) - max_events + 1)
        elif step == "reopen":
            await _caught_up(engine, readers, len(model))
            readers = []
            await engine.close()
            await engine.open()
        bounds = await engine.bounds()
        assert (bounds.epoch, bounds.last) == (epoch, len(model))
        assert bounds.last - bounds.first + 1 >= min(len(model), max_events)
        # it trims itself meanwhile, or not
        lows = range(bounds.first, max(bounds.first, len(model) - max_events + 1) + 1)
        if step == "read":
            records = await engine.read(value, 17)
            found = [record.id for record in records]
            assert found in [list(range(max(value + 1, low), bounds.last + 1))[:17] for low in lows]
            assert numbers(records) == [model[number - 1] for number in found]
        elif step == "read_back":
            found = [record.id for record in await engine.read_back(value, 17)]
            assert found in [list(range(low, min(value, bounds.last + 1)))[-17:] for low in lows]
    await _caught_up(engine, readers, len(model))
    await engine.close()
    assert engine.take_setbacks() == []


async def _caught_up(engine, readers, last):
    """Each got every id after its own up to the last, but for what is trimmed by now."""
    for reader in readers:
        while reader.since < last and reader.ids[-1:] != [last]:  # the newest is never trimmed
            assert await reader.read(30)
        await reader.close()
    await engine._writer.call(lambda: None)  # it has told of all that it has trimmed
    first = (await engine.bounds()).first
    for reader in readers:
        wanted = range(reader.since + 1, last + 1)
        assert reader.ids == sorted(set(reader.ids))
        assert set(wanted) >= set(reader.ids)
        assert all(number < first for number in set(wanted) - set(reader.ids))


# damage


def _make_log(home, count=200):
    async def make():
        async with opened(home) as engine:
            await publish(engine, count, 200)
            return (await engine.bounds()).epoch

    return asyncio.run(make())


def _overwrite(at, data):
    def damage(path):
        with path.open("r+b") as file:
            file.seek(at)
            file.write(data)

    return damage


def _sql(*statements):
    def damage(path):
        with other_program(path) as db:
            for statement in statements:
                db.execute(statement)

    return damage


DAMAGE = {
    "no database": lambda path: path.write_bytes(b"not a database, but long enough to be one" * 1000),
    "overwritten header": _overwrite(0, bytes(100)),
    "overwritten page": _overwrite(4096 * 5, b"\xff" * 9000),
    "cut short": lambda path: os.truncate(path, 4096 * 6),
    "another program's": _sql("PRAGMA application_id=7"),
    "of a newer version": _sql("PRAGMA user_version=99"),
    "another table": _sql("CREATE TABLE more (x)"),
    "no table": _sql("DROP TABLE events"),
    "no epoch": _sql("DELETE FROM log"),
    "a gap": _sql("DELETE FROM events WHERE id = 77"),
    "a missing front": _sql("DELETE FROM events WHERE id < 10"),
    "an id that is too large": _sql("UPDATE log SET trimmed = 9223372036854775806", "DELETE FROM events"),
    "an id that is none": _sql("UPDATE log SET trimmed = 'none'"),
    "another epoch": _sql("UPDATE log SET epoch = x'00'"),
    "a body that is no text": _sql("UPDATE events SET body = x'7bff' WHERE id = 195"),
    "a body of two lines": _sql("UPDATE events SET body = x'7b0a' WHERE id = 5"),
}


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_log_is_set_aside_when_it_is_opened(home, damage, large, monkeypatch):
    """A new epoch begins, the old file is kept and named, and it works."""
    epoch = _make_log(home)
    path = home / "notifications.sqlite"
    DAMAGE[damage](path)
    if large:  # only its ends are looked at then
        monkeypatch.setattr(log_file, "CHECKED_BYTES", 0)
        monkeypatch.setattr(log_file, "CHECKED_ROWS", 100)

    async def check():
        async with opened(home) as engine:
            bounds = await engine.bounds()
            assert bounds.epoch != epoch
            assert (bounds.first, bounds.last) == (1, 0)
            (text,) = engine.take_setbacks()
            assert engine.take_setbacks() == []
            (aside,) = asides(home)
            assert str(path) in text
            assert aside in text
            assert await publish(engine, 3) == [1, 2, 3]

    asyncio.run(check())


def test_the_last_three_damaged_logs_are_kept(home):
    """Older ones are removed, with what belongs to them."""
    for number in range(5):
        _make_log(home, 1)
        path = home / "notifications.sqlite"
        path.write_bytes(b"damage %d, in a file that is no database" % number * 100)
        Path(f"{path}-wal").write_bytes(b"and its log")
    _make_log(home, 1)
    kept = [(home / name).read_bytes()[:8] for name in asides(home)]
    assert kept == [b"damage 2", b"damage 3", b"damage 4"]
    assert len(list(home.glob("*.damaged-*"))) <= 6


@pytest.mark.parametrize("who", ["reader", "writer", "subscriber"])
async def test_damage_that_is_found_later_begins_a_new_epoch(home, follow, who, monkeypatch):
    """Whether reading, subscribing or trimming meets it: subscribers are told, and publishing goes on."""
    async with opened(home) as engine:
        await publish(engine, 4000, 1500)
        before = await engine.bounds()
    monkeypatch.setattr(log_file, "CHECKED_BYTES", 0)
    async with opened(home, max_events=4001) as engine:
        follower = follow(engine, before.last)
        await engine.publish(event())
        await follower.until(bool)
        path = home / "notifications.sqlite"
        _overwrite(4096 * 300, b"\xff" * 2_000_000)(path)
        if who == "writer":
            await publish(engine, 1000, 1500)
            await engine.trim()
        elif who == "reader":
            try:
                await engine.read(0, 10**6, 10**9)
            except StoreError as error:
                assert "cannot be used" in str(error)  # noqa: PT017  # trimming may have met it first
            else:
                assert (await engine.bounds()).epoch != before.epoch
        else:
            async with aclosing(engine.subscribe(0)) as batches:
                with pytest.raises(EpochChangedError):
                    while True:
                        await anext(batches)
        with pytest.raises(EpochChangedError):
            await follower.ended()
        after = await engine.bounds()
        assert after.epoch != before.epoch
        assert await publish(engine, 5) == list(range(after.last + 1, after.last + 6))
        assert after.first == 1
        assert len(await engine.read(0, 10**6, 10**9)) == after.last + 5
        assert len(engine.take_setbacks()) == 1
        assert len(asides(home)) == 1


FOREIGN = {
    "all are deleted": "DELETE FROM events",
    "the newest are deleted": "DELETE FROM events WHERE id > 90",
    "one is added behind a gap": "INSERT INTO events SELECT id + 1000000, type, owner, kind, time, body FROM events "
    "WHERE id = 100",
    "some are deleted": "DELETE FROM events WHERE id BETWEEN 40 AND 50",
    "the oldest are deleted": "DELETE FROM events WHERE id < 5",
}


async def _read_all(engine):
    at = 0
    while page := await engine.read(at, 30):
        at = page[-1].id


async def _read_all_back(engine):
    at = 1 << 40
    while page := await engine.read_back(at, 30):
        at = page[0].id


async def _follow_all(engine):
    async with aclosing(engine.subscribe(0)) as batches:
        async for _ in batches:
            pass


@pytest.mark.parametrize("change", FOREIGN)
@pytest.mark.parametrize("act", [_read_all, _read_all_back, _follow_all])
async def test_who_reads_what_another_program_has_changed(home, change, act):
    """A log with a hole is not given for a whole one: it fails, and a new log is begun, as after other damage."""
    async with opened(home) as engine:
        await publish(engine, 100)
        before = await engine.bounds()
        _sql(FOREIGN[change])(home / "notifications.sqlite")
        with pytest.raises(EpochChangedError if act is _follow_all else StoreError):
            await asyncio.wait_for(act(engine), 10)
        assert (await engine.bounds()).epoch != before.epoch
        assert len(asides(home)) == len(engine.take_setbacks()) == 1
        assert await engine.publish(event()) == 1


@pytest.mark.parametrize("change", list(FOREIGN)[:3])
async def test_who_publishes_behind_what_another_program_has_changed(home, change):
    """Where the newest event is not the one that was, it goes to a new log."""
    async with opened(home) as engine:
        await publish(engine, 100)
        _sql(FOREIGN[change])(home / "notifications.sqlite")
        assert await publish(engine, 3) == [1, 2, 3]
        assert len(asides(home)) == len(engine.take_setbacks()) == 1


@pytest.mark.parametrize("late", [False, True])
async def test_who_reads_at_once_where_the_log_is_lost(home, follow, late, monkeypatch):
    """However soon it reads after EpochChangedError, it reads the new log; and nobody who reads meanwhile fails."""
    post = log_writer.LogWriter._post

    def slowly(writer, callback, *values):
        if callback == writer._listener.began and late:
            time.sleep(0.02)
        post(writer, callback, *values)
        if callback == writer._listener.began and not late:
            time.sleep(0.02)

    monkeypatch.setattr(log_writer.LogWriter, "_post", slowly)

    async def read_on(engine):
        while not done.is_set():
            await engine.read(0, 10)

    done = asyncio.Event()
    async with opened(home) as engine:
        reading = asyncio.create_task(read_on(engine))
        for n in range(5):
            await publish(engine, 3)
            follower = follow(engine)
            await follower.until(bool)
            home.rename(home.with_name(f"away {n}"))
            publishing = asyncio.create_task(engine.publish(event(n)))
            with pytest.raises(EpochChangedError):
                await follower.ended()
            assert set(numbers(await engine.read(0, 10))) <= {n}
            assert await publishing == 1
        done.set()
        await reading


async def test_a_log_that_is_opened_again_while_it_is_followed(home, follow):
    """Who reads waits for it; who follows it goes on, for the epoch is the same."""
    async with opened(home) as engine:
        await publish(engine, 3)
        follower = follow(engine)
        await follower.until(lambda records: len(records) == 3)
        bounds = await engine.bounds()
        await engine._writer.call(engine._writer._close)
        assert numbers(await engine.read(0, 10)) == [0, 1, 2]
        assert await engine.bounds() == bounds
        assert await engine.publish(event(3)) == 4
        await follower.until(lambda records: len(records) == 4)
        assert engine.take_setbacks() == []


async def test_a_failing_write_is_tried_again_in_a_new_log(home, follow):
    """An input/output error (here: files may not grow) sets the log aside, and what was being published is committed."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with opened(home) as engine:
        await publish(engine, 2000, 1000)
        old = await engine.bounds()
        follower = follow(engine, old.last)
        await asyncio.sleep(0)
        limit = (home / "notifications.sqlite-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            for n in range(200):
                await engine.publish(event(n, MAX_EVENT - 1000))
                new = await engine.bounds()
                if new.epoch != old.epoch:
                    break
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert new.epoch != old.epoch
        assert numbers(await engine.read(0, 5)) == [n]
        with pytest.raises(EpochChangedError):
            await follower.ended()
        assert len(engine.take_setbacks()) == 1


@pytest.mark.parametrize("gone", ["directory", "notifications.sqlite", "notifications.sqlite-wal"])
async def test_files_that_are_deleted_while_they_are_open(home, gone):
    """What is published is not acknowledged from a deleted file: it goes to a new one, in a new epoch."""
    async with opened(home) as engine:
        await publish(engine, 10)
        before = await engine.bounds()
        if gone == "directory":
            shutil.rmtree(home)
        else:
            (home / gone).unlink()
        assert await publish(engine, 3) == [1, 2, 3]
        after = await engine.bounds()
        assert after.epoch != before.epoch
        assert len(engine.take_setbacks()) == 1
    async with opened(home) as engine:
        assert await engine.bounds() == after


async def test_a_directory_that_cannot_be_made_again(home):
    """Publishers are told while it is so, and served again later."""
    async with opened(home) as engine:
        await publish(engine, 3)
        shutil.rmtree(home)
        home.write_text("in its place")
        for _ in range(2):
            with pytest.raises(StoreError, match="name a directory"):
                await engine.publish(event())
        with pytest.raises(StoreError):
            await engine.read(0, 1)
        home.unlink()
        assert await engine.publish(event()) == 1
        assert numbers(await engine.read(0, 5)) == [0]


def _make_read_only(disk):
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)


async def test_a_place_that_cannot_hold_a_log(home, tmp_path):
    """A file in its place, or a filesystem that may only be read, is named in the error."""
    home.write_text("a file")
    with pytest.raises(StoreError, match=f"{home}.*name a directory"):
        await SQLiteEngine(home).open()
    with small_disk(tmp_path / "disk") as disk:
        _make_read_only(disk)
        with pytest.raises(StoreError, match=r"Read-only.*name a directory"):
            await SQLiteEngine(disk / "log").open()


# other programs


async def test_a_log_that_is_locked_when_it_is_opened(home, monkeypatch):
    """Another name is used after a short wait, and the setback says so."""
    monkeypatch.setattr(log_file, "START_LOCK_SECONDS", 0.1)
    async with opened(home) as engine:
        epoch = (await engine.bounds()).epoch
    with other_program(home / "notifications.sqlite") as db:
        db.execute("BEGIN EXCLUSIVE")
        async with opened(home) as engine:
            assert (await engine.bounds()).epoch != epoch
            assert await engine.publish(event()) == 1
            assert "locked by another program" in engine.take_setbacks()[0]
    async with opened(home) as engine:
        assert (await engine.bounds()).epoch == epoch
    assert asides(home) == []


async def test_a_log_that_is_locked_meanwhile(home, monkeypatch):
    """All who wait get an error after the time-out, together; later events get the next ids."""
    monkeypatch.setattr(log_file, "LOCK_SECONDS", 0.3)
    monkeypatch.setattr(log_writer, "BATCH_EVENTS", 100)
    async with opened(home) as engine:
        await publish(engine, 3)
        with other_program(home / "notifications.sqlite") as db:
            db.execute("BEGIN EXCLUSIVE")
            pending = asyncio.gather(
                *(engine.publish(event(n, 1000)) for n in range(15_000)), return_exceptions=True
            )
            await asyncio.sleep(0)  # all of them wait now
            start = time.monotonic()
            while not pending.done():
                assert len(await engine.read(0, 10)) == 3
                await asyncio.sleep(0.05)
            assert all(isinstance(error, StoreError) for error in await pending)
            assert time.monotonic() - start < 30  # one batch after the other would take 45
            db.execute("ROLLBACK")
        assert await publish(engine, 3) == [4, 5, 6]
        assert engine.take_setbacks() == []


async def test_a_log_that_is_locked_while_it_is_closed(home, monkeypatch):
    """Closing waits no longer than the time-out; what waits is refused."""
    monkeypatch.setattr(log_file, "LOCK_SECONDS", 0.2)
    monkeypatch.setattr(log_writer, "BATCH_EVENTS", 20)
    engine = SQLiteEngine(home)
    await engine.open()
    with other_program(home / "notifications.sqlite") as db:
        db.execute("BEGIN EXCLUSIVE")
        pending = [asyncio.create_task(engine.publish(event(n))) for n in range(5000)]
        await asyncio.sleep(0)
        async with asyncio.timeout(30):  # one batch after the other would take 50
            await engine.close()
        results = await asyncio.gather(*pending, return_exceptions=True)
    assert all(isinstance(result, StoreError) for result in results)


# full disks


@pytest.mark.parametrize("reserve", [log_file.MIN_FREE, 0])
async def test_a_disk_that_fills_up(tmp_path, reserve, monkeypatch):
    """Publishers are told, what was acknowledged stays and is readable, and with room ids go on without a gap."""
    monkeypatch.setattr(log_file, "MIN_FREE", reserve)  # with none, it is SQLite that finds the disk full
    with small_disk(tmp_path / "disk") as disk:
        (disk / "ballast").write_bytes(bytes(4 << 20))
        async with opened(disk / "log") as engine:
            acknowledged = []
            with pytest.raises(DiskFullError, match="free some space"):
                while True:
                    acknowledged += await publish(engine, 5, 20_000)
            before = await engine.bounds()
            with pytest.raises(DiskFullError):
                for _ in range(100):
                    await engine.publish(event(0, MAX_EVENT - 1000))
            records = await engine.read(0, 10**6, 10**9)
            assert [record.id for record in records][: len(acknowledged)] == acknowledged
            (disk / "ballast").unlink()
            last = (await engine.bounds()).last
            assert await publish(engine, 20, 20_000) == list(range(last + 1, last + 21))
            assert engine.take_setbacks() == []
        async with opened(disk / "log") as engine:
            bounds = await engine.bounds()
            assert (bounds.epoch, bounds.first, bounds.last) == (before.epoch, 1, last + 20)
        assert asides(disk / "log") == []


async def test_a_disk_that_is_full_when_the_log_is_opened(tmp_path):
    """A log that is there is not taken for damaged, nor is one made: the error says that there is no room."""
    with small_disk(tmp_path / "disk") as disk:
        async with opened(disk / "old") as engine:
            await publish(engine, 5000, 300)
            bounds = await engine.bounds()
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(bytes(16 << 20))
        for name in ("old", "new"):
            with pytest.raises(DiskFullError, match="free some space"):
                async with opened(disk / name) as engine:
                    await publish(engine, 1)
        (disk / "ballast").unlink()
        async with opened(disk / "old") as engine:
            assert await engine.bounds() == bounds
            assert engine.take_setbacks() == []


@pytest.mark.parametrize("died", [False, True])
async def test_a_log_is_read_on_a_full_disk(tmp_path, died, follow):
    """Also one that a process has left open as it died. Publishing fails until there is room, and then goes on; who follows
    it, in the same epoch."""
    with small_disk(tmp_path / "disk") as disk:
        async with opened(disk / "log") as engine:
            await publish(engine, 2000, 300)
            bounds = await engine.bounds()
            if died:
                shutil.copytree(disk / "log", tmp_path / "copy")
        if died:
            shutil.rmtree(disk / "log")
            shutil.copytree(tmp_path / "copy", disk / "log")
            (disk / "log" / "notifications.sqlite-shm").unlink()
            assert (disk / "log" / "notifications.sqlite-wal").stat().st_size
        with pytest.raises(OSError, match="No space"):
            (disk / "ballast").write_bytes(bytes(16 << 20))
        async with opened(disk / "log") as engine:
            assert await engine.bounds() == bounds
            follower = follow(engine)
            await follower.until(lambda records: len(records) == 2000)
            assert numbers(await engine.read(1000, 100)) == list(range(1000, 1100))
            assert numbers(await engine.read_back(2001, 5)) == list(range(1995, 2000))
            for _ in range(2):
                with pytest.raises(DiskFullError, match="free some space"):
                    await engine.publish(event())
            with pytest.raises(DiskFullError):
                await engine.trim()
            (disk / "ballast").unlink()
            assert await publish(engine, 5) == list(range(2001, 2006))
            await follower.until(lambda records: len(records) == 2005)
            assert (await engine.bounds()).epoch == bounds.epoch
            assert len(await engine.read(2000, 10)) == 5
            await engine.trim()
            assert engine.take_setbacks() == []
        async with opened(disk / "log") as engine:
            assert (await engine.bounds()).last == 2005
        assert asides(disk / "log") == []


async def test_a_full_disk_is_given_what_is_over_the_limits(tmp_path, monkeypatch):
    """Trimming comes before refusing."""
    for limit in ("TRIM_EVENTS", "TRIM_BYTES"):
        monkeypatch.setattr(log_writer, limit, 10**9)
    monkeypatch.setattr(log_writer, "TRIM_PART", 1e-9)
    with small_disk(tmp_path / "disk") as disk:
        async with opened(disk / "log", max_events=10**9) as engine:
            await publish(engine, 200, 20_000)
            epoch = (await engine.bounds()).epoch
        async with opened(disk / "log", max_events=150) as engine:
            for _ in range(40):
                await publish(engine, 20, 20_000)
            bounds = await engine.bounds()
            assert (bounds.epoch, bounds.last) == (epoch, 1000)


# what it keeps


def _footprint(home):
    return sum(path.stat().st_size for path in home.glob("notifications.sqlite*"))


async def test_space_is_used_again(home):
    """A log at its limit of events stays as large as it is, its write-ahead log included."""
    async with opened(home, max_events=2000, synchronous="NORMAL") as engine:
        sizes = []
        for _ in range(12):
            await publish(engine, 2000, 500)
            await engine.trim()  # it does so by itself, now sooner and now later
            sizes.append(_footprint(home))
    assert max(sizes) < 16 << 20
    assert max(sizes[7:]) <= max(sizes[:7]) * 1.4  # twice, if it was not


async def test_the_limit_of_bytes(home):
    """The oldest go until the file is within it, and free space is given back to the filesystem, a part each time."""
    async with opened(home) as engine:
        await publish(engine, 300, 60_000)
    path = home / "notifications.sqlite"
    assert path.stat().st_size > 18_000_000
    async with opened(home, max_bytes=2 << 20) as engine:
        for _ in range(6):
            await engine.trim()
        bounds = await engine.bounds()
        assert 300 - (2 << 20) // 60_000 < bounds.first <= 290
        assert bounds.last == 300
        assert numbers(await engine.read(0, 1)) == [bounds.first - 1]
    assert path.stat().st_size < 8 << 20


async def test_the_limit_of_age(home):
    """What is older goes, up to the first that is not; where all go, ids go on from there, also in the next process."""
    async with opened(home, max_age=3600.0) as engine:
        old = time.time() - 4000
        await publish(engine, 5, timestamp=old)
        await publish(engine, 1)
        await publish(engine, 5, timestamp=old)
        await engine.trim()
        assert (await engine.bounds()).first == 6
        await publish(engine, 1)
    async with opened(home, max_age=0.001) as engine:
        await asyncio.sleep(0.01)
        await engine.trim()
        bounds = await engine.bounds()
        assert (bounds.first, bounds.last) == (13, 12)
        assert await engine.read(0, 10) == await engine.read_back(100, 10) == []
    async with opened(home) as engine:
        assert await engine.bounds() == bounds
        assert await engine.publish(event()) == 13
        assert (await engine.bounds()).first == 13


@pytest.mark.parametrize("reopened", [False, True])
async def test_a_clock_that_is_far_ahead_for_a_while(home, reopened, monkeypatch):
    """Nothing goes for its age then, whatever is published; where the clock stays so, it goes as time passes."""
    clock = time.time
    ahead = 30 * 86400.0
    async with opened(home) as engine:
        await publish(engine, 5)
        monkeypatch.setattr(time, "time", lambda: clock() + ahead)
        if reopened:
            await engine.close()
            await engine.open()
        await publish(engine, 5, timestamp=time.time())
        await engine.trim()
        assert (await engine.bounds()).first == 1
        engine._log._seen_at -= ahead
        await engine.trim()
        assert (await engine.bounds()).first == 6


async def test_a_subscriber_of_what_was_trimmed_wholly(home):
    """It waits without reading over and over, and gets what comes."""
    async with opened(home, max_age=60.0) as engine:
        await publish(engine, 10, timestamp=time.time() - 1000)
        await engine.trim()
        async with aclosing(engine.subscribe(0)) as batches:
            first = asyncio.ensure_future(anext(batches))
            await asyncio.wait([first], timeout=0.05)
            spent = time.process_time()
            await asyncio.wait([first], timeout=0.2)
            assert time.process_time() - spent < 0.1
            assert await engine.publish(event()) == 11
            assert [record.id for record in await first] == [11]


async def test_a_log_trims_itself(home):
    """Without being asked, after some events."""
    async with opened(home, max_events=100) as engine:
        for _ in range(10):
            await publish(engine, 100)
        bounds = await engine.bounds()
        assert 100 <= bounds.last - bounds.first + 1 <= 300


# bounds of memory and time


async def test_what_waits_for_a_slow_subscriber_is_bounded(home, monkeypatch):
    """Of 5,000 events, at most the limit is kept for it; what is announced beyond that is dropped."""
    monkeypatch.setattr(log_feed, "LIVE_EVENTS", 100)
    async with opened(home) as engine, aclosing(engine.subscribe(0)) as batches:
        await engine.publish(event())
        await anext(batches)
        (subscriber,) = engine._feed._subscribers
        for _ in range(50):
            await asyncio.gather(*(engine.publish(event()) for _ in range(90)))
            await engine.announce(event(-1))
            assert sum(map(len, subscriber.batches)) <= 100
        for _ in range(500):
            await engine.announce(event(-1))
        assert sum(map(len, subscriber.batches)) <= 100
        got = []
        while not got or got[-1] < 4501:
            got += [record.id for record in await anext(batches) if record.id]
        assert got == list(range(2, 4502))


async def test_too_much_that_waits_is_refused(home, monkeypatch):
    """BusyError beyond either limit, and what waits is committed all the same."""
    monkeypatch.setattr(log, "MAX_WAITING", 50)
    async with opened(home) as engine:
        results = await asyncio.gather(*(engine.publish(event()) for _ in range(80)), return_exceptions=True)
        assert results[:50] == list(range(1, 51))
        assert all(isinstance(result, BusyError) for result in results[50:])
        monkeypatch.setattr(log, "MAX_WAITING_BYTES", 100_000)
        results = await asyncio.gather(
            *(engine.publish(event(0, 30_000)) for _ in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [int] * 3 + [BusyError] * 2
        assert await engine.publish(event()) == 54


async def test_an_event_that_cannot_be_written_fails_alone(home):
    """A user's name that is no text is refused, and those that are published with it are not."""
    async with opened(home) as engine:
        results = await asyncio.gather(
            engine.publish(event()),
            engine.publish(event(owner="\ud800")),
            engine.publish(event(owner=5)),
            engine.publish(event(timestamp=10**400)),
            engine.publish(event()),
            return_exceptions=True,
        )
        assert [type(result) for result in results] == [int, *[BadRequestError] * 3, int]
        assert len(await engine.read(0, 10)) == 2


async def test_files_are_private_to_the_user(home):
    """Whatever the umask allows."""
    umask = os.umask(0)
    try:
        async with opened(home) as engine:
            await engine.publish(event())
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.iterdir()}
    finally:
        os.umask(umask)
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert len(modes) == 4
    assert set(modes.values()) == {0o600}


@pytest.mark.parametrize(
    "wrong", [{"max_events": 0}, {"max_age": 0}, {"max_age": float("nan")}, {"max_bytes": 1000}]
)
def test_limits_that_keep_nothing_are_refused(home, wrong):
    """With a text that says what would be right."""
    with pytest.raises(BadRequestError, match="a log of events"):
        SQLiteEngine(home, **wrong)


async def test_threads_end_with_the_log(home):
    """Both, when it is closed, and when it could not be opened."""
    before = set(threading.enumerate())
    engine = SQLiteEngine(home)
    await engine.open()
    await engine.open()
    await engine.read(0, 1)
    assert len(set(threading.enumerate()) - before) == 2
    await asyncio.gather(engine.close(), engine.close())
    assert set(threading.enumerate()) <= before
    with pytest.raises(StoreError):
        await engine.trim()
    (home / "notifications.lock").unlink()
    (home / "notifications.lock").mkdir()
    with pytest.raises(StoreError):
        await engine.open()
    assert set(threading.enumerate()) <= before


async def test_opening_that_is_cancelled_leaves_nothing_behind(home):
    """Neither a thread nor a name that is taken."""
    before = set(threading.enumerate())
    engine = SQLiteEngine(home)
    opening = asyncio.create_task(engine.open())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    assert set(threading.enumerate()) <= before
    async with opened(home):
        assert [path.name for path in home.glob("*.lock")] == ["notifications.lock"]


def test_an_event_loop_that_ends_without_closing(home, monkeypatch):
    """The thread ends when it next has something to say, and the log is free again."""
    monkeypatch.setattr(log_writer, "TRIM_SECONDS", 0.05)

    async def forget():
        engine = SQLiteEngine(home)
        await engine.open()
        task = asyncio.create_task(engine.publish(event()))
        await asyncio.sleep(0)
        task.cancel()
        engine._readers.shutdown()
        return engine._writer

    writer = asyncio.run(forget())
    writer.join(10)
    assert not writer.is_alive()
    gc.collect()
    assert _make_log(home, 1)
    assert asides(home) == []

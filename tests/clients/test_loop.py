"""Blocking calls into an event loop of another thread."""

import asyncio
import os
import signal
import threading
import time

import pytest

from ipfs_stream_nb.clients.loop import LoopThread, run_in
from ipfs_stream_nb.errors import BadRequestError


@pytest.fixture
def loop():
    """A loop in a thread."""
    loop = LoopThread("test loop")
    yield loop
    loop.stop()


def test_gives_results_and_errors(loop):
    """What the operation returns or raises is what the caller gets, a TimeoutError too."""

    async def double(value):
        return value * 2

    async def late():
        raise TimeoutError("late")

    assert loop.run(lambda: double(21)) == 42
    with pytest.raises(TimeoutError, match="late"):
        loop.run(late)


def test_ctrl_c_cancels_the_operation(loop, monkeypatch):
    """KeyboardInterrupt ends the wait at once, after the operation has cleaned up."""
    # longer than a busy machine takes: what waits for the end of it is told by the clock below
    monkeypatch.setattr("ipfs_stream_nb.clients.loop.CANCEL_WAIT", 60.0)
    cleaned = threading.Event()
    begun = threading.Event()

    async def forever():
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    def interrupt():
        begun.wait()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        loop.run(forever)
    assert cleaned.is_set()
    assert time.monotonic() - started < 30


def test_works_while_a_loop_runs(loop):
    """In a notebook a loop runs already: the call blocks it and works all the same."""

    async def answer():
        return 42

    async def cell():
        return loop.run(answer)

    assert asyncio.run(cell()) == 42


async def test_a_call_on_its_own_loop_is_refused():
    """It could only wait for itself."""

    async def never():
        raise AssertionError

    with pytest.raises(BadRequestError, match="use a thread"):
        run_in(asyncio.get_running_loop(), never)


def test_after_the_end_calls_are_refused(loop):
    """A stopped loop gives the error of a closed client, and stopping twice is fine."""
    loop.stop()
    loop.stop()
    assert not loop.alive
    with pytest.raises(BadRequestError, match="closed"):
        loop.run(lambda: asyncio.sleep(0))


def test_the_end_cancels_what_runs():
    """A call in another thread ends with a clear error when the loop is stopped under it."""
    loop = LoopThread("test loop")
    begun = threading.Event()
    errors = []

    async def forever():
        begun.set()
        await asyncio.Event().wait()

    def call():
        try:
            loop.run(forever)
        except BadRequestError as error:
            errors.append(str(error))

    caller = threading.Thread(target=call)
    caller.start()
    begun.wait()
    loop.stop()
    caller.join(60)
    assert errors == ["this client was closed in the middle of the call"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_child_is_told_to_connect_again(loop):
    """The loop's thread does not come along with a fork, so that waiting for it would be for ever."""
    child = os.fork()
    if child == 0:
        try:
            loop.run(lambda: asyncio.sleep(0))
        except BadRequestError as error:
            os._exit(0 if "connect() again" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

"""Progress: counted in one thread, shown in another."""

import io
import threading

import pytest
from fsspec.callbacks import Callback
from tqdm import tqdm

from ipfs_stream_nb.clients.loop import LoopThread
from ipfs_stream_nb.clients.progress import Progress
from ipfs_stream_nb.errors import BadRequestError


def test_a_tqdm_bar_of_the_caller_moves():
    """The bar gets the total and each step, and is left open for its owner."""
    with tqdm(file=io.StringIO()) as bar:
        with Progress.of(bar) as progress:
            progress.begin("add x", 10)
            progress.advance(4)
            progress.advance(6)
        assert (bar.total, bar.n, bar.disable) == (10, 10, False)


def test_an_fsspec_callback_is_told():
    """fsspec's own interface is served."""
    callback = Callback()
    with Progress.of(callback) as progress:
        progress.begin("add x", 10)
        progress.advance(4)
    assert (callback.size, callback.value) == (10, 4)


def test_nothing_is_shown_for_what_is_quick(capsys, monkeypatch):
    """Without a wish, a bar comes only when it takes long."""
    monkeypatch.setattr(
        "ipfs_stream_nb.clients.progress.SHOW_AFTER", 60.0
    )  # on a busy machine this takes longer
    with Progress.of(None) as progress:
        progress.begin("add x", 10)
        progress.advance(10)
    assert capsys.readouterr().err == ""


def test_a_bar_is_shown_at_once_when_asked(capsys):
    """True shows a bar, with what is done."""
    with Progress.of(True) as progress:
        progress.begin("add x", 2048)
        progress.advance(2048)
    shown = capsys.readouterr().err
    assert "add x" in shown
    assert "2.00k/2.00k" in shown


def test_a_total_that_changes_is_followed():
    """A pin knows its total only once the tree is walked."""
    with tqdm(file=io.StringIO()) as bar, Progress.of(bar) as progress:
        progress.begin("pin x", None)
        progress.reach(10, None)
        progress.reach(20, 100)
        assert (bar.total, bar.n) == (100, 20)


@pytest.mark.parametrize("target", ["yes", 3, print])
def test_other_things_are_refused(target):
    """What cannot show progress is named, with what can."""
    with pytest.raises(BadRequestError, match="tqdm"):
        Progress(target)


def test_the_bar_moves_in_the_thread_that_waits():
    """A notebook puts output below the cell of the thread that made it, so that must be the user's thread."""
    threads = set()

    class Watching(Callback):
        def relative_update(self, inc=1):
            threads.add(threading.current_thread())
            super().relative_update(inc)

    callback = Watching()
    loop = LoopThread("test")
    progress = Progress(callback, inline=False)

    async def work():
        progress.begin("work", 3)
        progress.advance(3)

    try:
        loop.run(work, progress)
        progress.end()
    finally:
        loop.stop()
    assert callback.value == 3
    assert threads == {threading.current_thread()}

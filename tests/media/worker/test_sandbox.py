"""What a worker cannot do."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from ipfs_stream_nb.errors import IPFSStreamError
from ipfs_stream_nb.media.worker.process import Worker, _environment

TRIES = """
import os, resource, socket, sys, threading
from ipfs_stream_nb.media.worker import sandbox
sandbox._lower = sandbox._lower if sys.argv[1] == "limits" else lambda name, limit: None
if sys.argv[1] == "limits":
    sandbox._filter_system_calls = lambda: False
print(sandbox.shut(2**31, 1000))
def attempt(name, call):
    try:
        call()
        print(name, "works")
    except OSError as error:
        print(name, os.strerror(error.errno))
attempt("open", lambda: open("/etc/passwd"))
attempt("create", lambda: os.open("/tmp/x", os.O_CREAT | os.O_WRONLY))
attempt("socket", lambda: socket.socket())
attempt("pipe", os.pipe)
if sys.argv[1] == "limits":
    sys.exit()
attempt("kill", lambda: os.kill(os.getppid(), 0))
attempt("fork", lambda: os.fork() or os._exit(0))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
thread = threading.Thread(target=lambda: print("thread works"))
thread.start()
thread.join()
"""


def attempts(kind):
    done = subprocess.run(
        [sys.executable, "-c", TRIES, kind], env=_environment(), stdin=subprocess.DEVNULL, text=True,
        capture_output=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.mark.skipif(sys.platform != "linux", reason="system calls are filtered on Linux")
def test_filter_leaves_only_memory_threads_and_the_socket():
    """By the filter alone: no file, socket, pipe, signal to others or process; threads work."""
    filtered, *rest = attempts("filter")
    assert filtered == "True"
    names = ["open", "create", "socket", "pipe", "kill", "fork", "exec"]
    assert rest == [f"{name} Operation not permitted" for name in names] + ["thread works"]


def test_limits_alone_open_nothing():
    """Where there is no filter, no descriptor is left for a file, a socket or a pipe."""
    filtered, *rest = attempts("limits")
    assert filtered == "False"
    assert rest == [f"{name} Too many open files" for name in ("open", "create", "socket", "pipe")]


def test_environment_holds_no_secret(monkeypatch):
    """Tokens and proxies of the server are not handed on."""
    monkeypatch.setenv("JUPYTER_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "secret")
    assert "secret" not in _environment().values()


HOSTILE = {
    "ffconcat": b"ffconcat version 1.0\nfile '/etc/passwd'\n",
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n",
}


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
async def test_no_file_or_address_is_opened(pool, open_clip, clip, take, tmp_path):
    """By strace: a hostile playlist, and a film as well, make the worker open no file and no address."""
    for name, content in (*HOSTILE.items(), ("film", clip(duration=1.0))):
        worker = await pool.take()
        log = tmp_path / f"{name}.log"
        calls = "open,openat,openat2,creat,socket,connect,execve,fork,vfork,unlink"
        trace = subprocess.Popen(  # noqa: ASYNC220 - it is read at once
            ["strace", "-f", "-e", f"trace={calls},sendto,recvfrom", "-o", log, "-p", str(worker.pid)],
            stderr=subprocess.PIPE,
        )
        try:
            first = trace.stderr.readline()
            if b"attached" not in first:
                pytest.skip(f"strace may not attach here: {first.decode().strip()}")
            pool._spare = _done(worker)
            try:
                source = await open_clip(content)
                assert name == "film"
                await take(source, "video")
                await take(source, "audio")
                await source.close()
            except IPFSStreamError:
                assert name != "film"
            await worker.close()
        finally:
            trace.terminate()
            trace.communicate()
        lines = log.read_text().splitlines()
        assert any("sendto" in line for line in lines), "the control: it is traced"
        starts = [start for call in calls.split(",") for start in (f" {call}(", f"<... {call} resumed")]
        forbidden = [line for line in lines if any(start in line for start in starts)]
        # another thread may come in between: the line that resumes it says what came of it
        assert [line for line in forbidden if "= -1" not in line and "<unfinished" not in line] == []


def _done(worker):
    import asyncio  # noqa: PLC0415

    async def give():
        return worker

    return asyncio.get_running_loop().create_task(give())


async def test_worker_dies_with_its_parent(tmp_path, peer):
    """A parent that is killed leaves no worker, not even one that is stopped."""
    program = (
        "import asyncio, os\n"
        "from ipfs_stream_nb.media.worker.process import Worker\n"
        "from ipfs_stream_nb.media.worker.limits import WorkerLimits\n"
        "async def main():\n"
        "    worker = await Worker.start(WorkerLimits())\n"
        "    await worker.ready()\n"
        "    print(worker.pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220
    with parent.stdout:
        pid = int(parent.stdout.readline())
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
        parent.wait()
    await peer.wait_until(lambda: not _runs(pid))


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_limits_of_the_process(pool):
    """The limits that are set are those of the running worker, which gives way to others."""
    worker = await pool.take()
    assert isinstance(worker, Worker)
    with open(f"/proc/{worker.pid}/limits") as file:  # noqa: ASYNC230, PTH123
        limits = {line[:26].strip(): line[26:47].strip() for line in file}
    assert limits["Max address space"] == str(pool.limits.memory_bytes)
    assert limits["Max cpu time"] == str(pool.limits.cpu_seconds)
    assert limits["Max open files"] == "3"
    assert limits["Max file size"] == limits["Max core file size"] == "0"
    assert os.getpriority(os.PRIO_PROCESS, worker.pid) > os.getpriority(os.PRIO_PROCESS, 0)
    await worker.close()

"""What a worker takes from itself before it sees the first byte of a file.

Everywhere: limits on memory, processor time and files. NOFILE stands at the descriptors that are open, all below it
taken, so that not one file, socket or pipe can be opened any more, whatever the platform. On Linux (x86-64, aarch64)
moreover a seccomp filter: a list of system calls for memory, threads, time and the one socket; all others fail with EPERM,
those that open files, make sockets or start programs among them. NPROC would count threads too, which decoders
need, so that new processes are forbidden by the filter alone.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
import sys
from typing import Final

DESCRIPTORS: Final = 3
"""0 is the socket, 1 nowhere, 2 the server's log."""

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SECCOMP_MODE_FILTER, _SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC = 2, 1, 1
# classic BPF: opcodes (linux/bpf_common.h) and actions (linux/seccomp.h)
_LOAD, _EQUAL, _SET, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_EPERM, _ENOSYS = 1, 38
_NR, _ARCH, _ARG0 = (
    0,
    4,
    16,
)  # places in struct seccomp_data; of an argument the lower half, on little-endian machines
_CLONE_THREAD = 0x10000

# Numbers of system calls: (AUDIT_ARCH, seccomp, clone, clone3, those that are allowed). x86-64 from
# arch/x86/entry/syscalls/syscall_64.tbl, aarch64 from include/uapi/asm-generic/unistd.h.
_X86_64 = (0xC000003E, 317, 56, 435, {
    "read": 0, "write": 1, "close": 3, "fstat": 5, "poll": 7, "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11,
    "brk": 12, "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "readv": 19, "writev": 20, "select": 23,
    "sched_yield": 24, "mremap": 25, "madvise": 28, "nanosleep": 35, "getpid": 39, "sendto": 44, "recvfrom": 45,
    "sendmsg": 46, "recvmsg": 47, "exit": 60, "uname": 63, "gettimeofday": 96, "getrusage": 98, "sysinfo": 99,
    "getuid": 102, "getppid": 110, "sigaltstack": 131, "gettid": 186, "futex": 202, "sched_getaffinity": 204,
    "restart_syscall": 219, "clock_gettime": 228, "clock_nanosleep": 230, "exit_group": 231, "tgkill": 234,
    "set_robust_list": 273, "ppoll": 271, "getcpu": 309, "getrandom": 318, "membarrier": 324, "rseq": 334,
})  # fmt: skip
_AARCH64 = (0xC00000B7, 277, 220, 435, {
    "close": 57, "lseek": 62, "read": 63, "write": 64, "readv": 65, "writev": 66, "pselect6": 72, "ppoll": 73,
    "fstat": 80, "exit": 93, "exit_group": 94, "futex": 98, "set_robust_list": 99, "nanosleep": 101,
    "clock_gettime": 113, "clock_nanosleep": 115, "sched_getaffinity": 123, "sched_yield": 124, "restart_syscall": 128,
    "tgkill": 131, "sigaltstack": 132, "rt_sigaction": 134, "rt_sigprocmask": 135, "rt_sigreturn": 139, "uname": 160,
    "getrusage": 165, "getcpu": 168, "gettimeofday": 169, "getpid": 172, "getppid": 173, "getuid": 174, "gettid": 178,
    "sysinfo": 179, "sendto": 206, "recvfrom": 207, "sendmsg": 211, "recvmsg": 212, "brk": 214, "munmap": 215,
    "mremap": 216, "mmap": 222, "mprotect": 226, "madvise": 233, "getrandom": 278, "membarrier": 283, "rseq": 293,
})  # fmt: skip
_TABLES = {"x86_64": _X86_64, "aarch64": _AARCH64}


def settle(parent: int, nice: int) -> None:
    """At the start: die with the parent, give way to it, leave no core file, and let Ctrl-C be the parent's affair."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it was gone before
        raise SystemExit(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(nice)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def shut(memory_bytes: int, cpu_seconds: int) -> bool:
    """After the last import: no file, address or process from here on. Whether the system-call filter is on, too."""
    for name, limit in (
        ("RLIMIT_AS", memory_bytes),
        ("RLIMIT_CPU", cpu_seconds),
        ("RLIMIT_FSIZE", 0),
        ("RLIMIT_NOFILE", DESCRIPTORS),
    ):
        _lower(name, limit)
    return _filter_system_calls()


def _lower(name: str, limit: int) -> None:
    which = getattr(resource, name, None)
    if which is None:
        return
    hard = resource.getrlimit(which)[1]
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    try:
        resource.setrlimit(which, (limit, limit))
    except (OSError, ValueError):
        if name != "RLIMIT_AS":  # macOS has none that is kept
            raise


def _filter_system_calls() -> bool:
    table = _TABLES.get(platform.machine()) if sys.platform == "linux" and sys.byteorder == "little" else None
    if table is None:
        return False
    architecture, seccomp, clone, clone3, allowed = table
    code = _program(architecture, clone, clone3, sorted(allowed.values()))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    # of all threads; the older call knows the calling thread alone
    if libc.syscall(seccomp, _SECCOMP_SET_MODE_FILTER, _FLAG_TSYNC, program) == 0:
        return True
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0) == 0)


def _program(architecture: int, clone: int, clone3: int, allowed: list[int]) -> bytes:
    """The filter in classic BPF: (opcode, steps if true, steps if false, value)."""
    steps = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NR),
        (_EQUAL, 0, 1, clone3),  # its flags cannot be looked at: glibc then takes clone
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARG0),
        (_SET, 0, 1, _CLONE_THREAD),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
    ]
    for number in allowed:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _ERRNO | _EPERM))
    return b"".join(struct.pack("@HBBI", *step) for step in steps)

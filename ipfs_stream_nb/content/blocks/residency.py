"""Whether mapped memory is in the page cache, so that reading it waits for no disk (mincore, Linux)."""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any, Final

_RESIDENT: Final = 1
_LOW_BIT: Final = bytes(value & _RESIDENT for value in range(256))
"""The other bits of mincore's answer are undefined."""
_SIMPLE: Final = 0  # PyBUF_SIMPLE


class _Buffer(ctypes.Structure):
    """Py_buffer, of the stable ABI since Python 3.11 (https://docs.python.org/3/c-api/buffer.html)."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


def _find_mincore() -> Any:
    if not sys.platform.startswith("linux"):
        return None
    mincore = ctypes.PyDLL(None).mincore  # quick, so the GIL is kept
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    return mincore


_mincore: Final = _find_mincore()
_get_buffer: Final = ctypes.pythonapi.PyObject_GetBuffer
_get_buffer.argtypes = (ctypes.py_object, ctypes.POINTER(_Buffer), ctypes.c_int)
_release_buffer: Final = ctypes.pythonapi.PyBuffer_Release
_release_buffer.argtypes = (ctypes.POINTER(_Buffer),)
_release_buffer.restype = None


def is_resident(view: memoryview) -> bool:
    """Whether every page of this mapped memory is in the page cache now. False where nobody can tell."""
    if _mincore is None or not len(view):
        return False
    buffer = _Buffer()
    _get_buffer(view, buffer, _SIMPLE)
    start = buffer.buf - buffer.buf % mmap.PAGESIZE
    length = buffer.buf + buffer.len - start
    _release_buffer(buffer)
    pages = -(-length // mmap.PAGESIZE)
    found = ctypes.create_string_buffer(pages)
    if _mincore(start, length, found) != 0:
        return False
    return bool(found.raw.translate(_LOW_BIT).count(_RESIDENT) == pages)

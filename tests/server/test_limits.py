"""Slots: what may run at once."""

import pytest

from ipfs_stream_nb.errors import BusyError
from ipfs_stream_nb_server.limits import Slots


def test_total_and_per_user():
    """Over either limit the next is refused, and a slot that is left can be had again."""
    slots = Slots("downloads", 3, 2)
    with slots.slot("ann"), slots.slot("ann"):
        with pytest.raises(BusyError, match="you have 2 downloads"), slots.slot("ann"):
            pass
        with slots.slot("bob"):
            assert slots.active == 3
            with pytest.raises(BusyError, match="3 downloads are running"), slots.slot("cat"):
                pass
        assert slots.active == 2
    assert slots.active == 0
    with slots.slot("ann"):
        assert slots.active == 1


def test_a_slot_is_free_after_an_error():
    """An exception inside gives the slot back."""
    slots = Slots("uploads", 1)
    with pytest.raises(ValueError, match="x"), slots.slot("ann"):
        raise ValueError("x")
    assert slots.active == 0

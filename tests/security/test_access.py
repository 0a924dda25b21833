"""The access policy."""

import pytest

from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import UnauthorizedError
from ipfs_stream_nb.notifications.events import EVENT_TYPES
from ipfs_stream_nb.notifications.rights import principal_of, split_types
from ipfs_stream_nb.security.access import AccessPolicy, Action

A = CID.of(b"a")


async def test_default_lets_every_user_do_everything():
    """The default policy says yes to each action, with and without a CID."""
    policy = AccessPolicy()
    for action in Action:
        await policy.require("anybody", action, A)
        await policy.require("anybody", action, None)


async def test_subclass_refuses_with_the_action_and_the_cid_named():
    """A narrower policy's no becomes an error that says what was refused."""

    class ReadOnly(AccessPolicy):
        async def allows(self, user, action, cid):
            return action is Action.READ and user == "ann"

    await ReadOnly().require("ann", Action.READ, A)
    with pytest.raises(UnauthorizedError, match=f"pin {A}"):
        await ReadOnly().require("ann", Action.PIN, A)
    with pytest.raises(UnauthorizedError, match="gc"):
        await ReadOnly().require("ann", Action.GC, None)
    with pytest.raises(UnauthorizedError):
        await ReadOnly().require("bob", Action.READ, A)


async def test_default_lets_every_user_see_all_notifications():
    """By the default policy everybody is an admin with the permission of WebRTC, so all types may be seen."""
    policy = AccessPolicy()
    user = {"id": "ann", "role": await policy.role("ann"), "permissions": await policy.permissions("ann")}
    assert split_types("all_events", principal_of(user)).types == EVENT_TYPES

"""Routes whose paths begin with an IPNS name: rights go by what it stands for."""

from __future__ import annotations

from ipfs_stream_nb.content.ipns.resolver import NameResolver, ResolvedName
from ipfs_stream_nb.content.resolver import parse_path
from ipfs_stream_nb.errors import BadRequestError
from ipfs_stream_nb.security.access import Action
from ipfs_stream_nb_server.handlers.base import access
from ipfs_stream_nb_server.handlers.content import GatewayHandler
from ipfs_stream_nb_server.handlers.streaming import StreamingHandler


class NamedHandler(StreamingHandler):
    """Resolves the name, once for the whole request, and has the policy asked about the root that it stands for.

    Others are asked for it, so that it takes one of the server's slots and its time, and ends with the client: methods
    call `find` inside of `serving`, before all else. Capability tokens are for CIDs: they open no name, which may stand
    for something else tomorrow.
    """

    asks_later = True

    async def find(self) -> ResolvedName:
        """What the name stands for at this time, where the policy lets the user read it."""
        names: NameResolver | None = getattr(await self.node(), "names", None)
        if names is None:
            raise BadRequestError(
                "this server's node resolves no names: that needs a gateway, a router or a Kubo daemon"
            )
        found = await names.resolve(self.path_args[0].partition("/")[0])
        await self.context.policy.require(self.user, Action.READ, parse_path(found.path)[0])
        return found


class NameHandler(NamedHandler):
    """GET /ipfs-stream/names/{name}: the path that it stands for now, /ipfs/<cid>[/name…], and for how long (s)."""

    @access(Action.READ)
    async def get(self, name: str) -> None:
        """Answer with what there is to know of a name."""
        async with self.serving(self.context.limits.answer_timeout):
            found = await self.find()
            self.send_json({"name": name, "path": found.path, "ttl": found.ttl, "stale": found.stale})


class NamedContentHandler(NamedHandler, GatewayHandler):
    """/ipns/{name}[/path]: what is below it, as below /ipfs/."""

    async def _answer(self) -> None:
        self.resolved = await self.find()
        await super()._answer()

"""GET, HEAD and DELETE /ipfs over real HTTP."""


async def test_round_trip(server):
    """What was posted comes back, whole and as a range."""
    data = bytes(range(256)) * 5000
    cid = await server.add(data)
    async with server.request("GET", f"ipfs/{cid}") as answer:
        assert answer.status == 200
        assert await answer.read() == data

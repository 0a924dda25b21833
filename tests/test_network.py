"""NetworkOptimizer, on a Kubo whose peers are on another host at distances that the tests set."""

from __future__ import annotations

import asyncio
import json
import os
import random
from contextlib import aclosing
from types import SimpleNamespace

import pytest

from ipfs_stream_nb import EmbeddedNode, NetworkOptimizer
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.kubo.answers import Answer
from ipfs_stream_nb.content.kubo.discovery import find_kubo
from ipfs_stream_nb.content.kubo.rpc import KuboRPC
from ipfs_stream_nb.content.nodes import NodeSettings, open_node
from ipfs_stream_nb.errors import BadRequestError, IPFSStreamError, RetrievalError
from ipfs_stream_nb.network import (
    ConfigPlan,
    NetworkReport,
    NetworkState,
    PeerLatency,
    Provided,
    optimizer,
)


@pytest.fixture
async def api_of(two_hosts):
    """Makes what the optimizer is given: the near daemon's RPC, of a class that may do more."""
    made = []

    def make(kind=KuboRPC):
        made.append(kind(find_kubo(two_hosts.near.api)))
        return SimpleNamespace(rpc=made[-1])

    yield make
    for rpc in made:
        await rpc.close()


@pytest.fixture
def api(api_of):
    """The same with the RPC as it is."""
    return api_of()


@pytest.fixture
def quick(monkeypatch):
    """One ping to a peer, since Kubo waits a second before the next. Not where it matters who is the nearest: a daemon that stands
    still for a moment would be taken for far away."""
    monkeypatch.setattr(optimizer, "PINGS", 1)


def peering(two_hosts):
    """The ids of the peers that the near daemon keeps connected."""
    lines = two_hosts.near.run("swarm", "peering", "ls").splitlines()
    return {line for line in lines if line and not line.startswith("\t")}


def restart(two_hosts):
    """Start the near daemon again, with the settings that its file now holds, and connect it to the far ones."""
    two_hosts.near.stop()
    two_hosts.near.start()
    for far in two_hosts.fars:
        two_hosts.connect(far)


async def test_peers_are_ranked_by_their_latency(two_hosts, api):
    """The nearest are chosen and kept connected; no measured time is shorter than the relay's delay both ways."""
    config = two_hosts.config_file.read_bytes()
    near, middle, distant = (far.peer for far in two_hosts.fars)
    network = NetworkOptimizer(api, max_preferred_peers=2)
    report = await network.optimize()
    assert [one.peer for one in report.peers] == [near, middle, distant]
    for one, far in zip(report.peers, two_hosts.fars, strict=True):
        assert one.latency >= 2 * far.delay
        assert one.loss == 0
        assert one.address == far.swarm_address
        assert network.peer_latencies[one.peer] == one.latency
    assert network.preferred_peers == [near, middle] == list(report.chosen) == list(report.added)
    assert peering(two_hosts) == {near, middle}
    assert (report.before.connected, report.before.peered) == (3, 0)
    assert (report.after.connected, report.after.peered) == (3, 2)
    assert two_hosts.config_file.read_bytes() == config


async def test_undo_leaves_peering_as_it_was(two_hosts, api, quick):
    """What was added is removed, and what the user had peered stays, though it was chosen."""
    users = two_hosts.fars[0]
    two_hosts.near.run("swarm", "peering", "add", users.full_address)
    network = NetworkOptimizer(api)
    report = await network.optimize()
    assert set(report.chosen) == peering(two_hosts) == {far.peer for far in two_hosts.fars}
    assert set(report.added) == {far.peer for far in two_hosts.fars[1:]}
    assert set(await network.undo()) == set(report.added)
    assert peering(two_hosts) == {users.peer}
    assert network.preferred_peers == []
    assert await network.undo() == ()
    assert len(await api.rpc.swarm_peers()) == 3


async def test_another_run_lets_go_of_who_is_no_longer_among_the_best(two_hosts, api):
    """There are never more peers of ours than preferred ones."""
    first, second, _ = two_hosts.fars
    network = NetworkOptimizer(api, max_preferred_peers=1)
    assert (await network.optimize()).added == (first.peer,)
    first.relay.delay = 0.3
    report = await network.optimize()
    assert (report.added, report.dropped) == ((second.peer,), (first.peer,))
    assert peering(two_hosts) == {second.peer}
    assert await network.undo() == (second.peer,)


async def test_peers_of_a_daemon_that_was_started_again_are_added_again(two_hosts, api, quick):
    """Its peering is forgotten then; undo still takes each back once."""
    network = NetworkOptimizer(api)
    everybody = {far.peer for far in two_hosts.fars}
    assert set((await network.optimize()).added) == everybody
    await asyncio.to_thread(restart, two_hosts)
    assert peering(two_hosts) == set()
    assert set((await network.optimize()).added) == everybody == peering(two_hosts)
    assert sorted(await network.undo()) == sorted(everybody)
    assert peering(two_hosts) == set()


async def test_no_peers(two_hosts, api):
    """Nothing is measured, nothing is kept, and the report says so."""
    for far in two_hosts.fars:
        far.stop()
    await until(lambda: not two_hosts.near.run("swarm", "peers"))
    network = NetworkOptimizer(api)
    report = await network.optimize()
    assert report.peers == report.chosen == report.added == ()
    assert report.after == NetworkState(0, 0, report.after.bitswap)
    assert "no peers" in repr(report)
    assert await network.plan_config() == ConfigPlan()


async def until(condition):
    """Wait for what another process does in its own time."""
    while not condition():  # noqa: ASYNC110  # it sends no event
        await asyncio.sleep(0.02)


async def test_a_silent_peer_is_not_chosen(two_hosts, api, monkeypatch, quick):
    """It is connected, but its pings do not return."""
    monkeypatch.setattr(optimizer, "PING_SECONDS", 6)  # the others' daemons may stand still for less
    two_hosts.fars[0].relay.silence()
    network = NetworkOptimizer(api)
    report = await network.optimize()
    lost = report.peers[-1]
    assert (lost.peer, lost.times, lost.loss, lost.reachable) == (two_hosts.fars[0].peer, (), 1, False)
    assert lost.note == "no answer in 6 s"
    assert network.peer_latencies[lost.peer] == float("inf")
    assert set(report.chosen) == peering(two_hosts) == {far.peer for far in two_hosts.fars[1:]}
    assert "no answer" in repr(report)


@pytest.mark.parametrize("pongs", [1, 3])
async def test_a_peer_that_dies_while_it_is_pinged_is_not_chosen(two_hosts, api_of, pongs):
    """Though it is the nearest and has answered once, or even each time."""
    victim = two_hosts.fars[0]

    class Deadly(KuboRPC):
        async def lines(self, command, *args, **options):
            seen = 0
            async with aclosing(super().lines(command, *args, **options)) as lines:
                async for line in lines:
                    seen += bool(line.number("Time", 0))
                    if args == (victim.peer,) and seen == pongs:
                        await asyncio.to_thread(victim.kill)
                        await until(lambda: victim.peer not in two_hosts.near.run("swarm", "peers"))
                    yield line

    report = await NetworkOptimizer(api_of(Deadly)).optimize()
    (dead,) = [one for one in report.peers if one.peer == victim.peer]
    # the next ping is on its way while Kubo waits to tell of it
    assert len(dead.times) in {pongs, pongs + 1}
    assert bool(dead.note) == (len(dead.times) < 3)
    assert victim.peer not in report.chosen
    assert peering(two_hosts) == set(report.chosen) == {far.peer for far in two_hosts.fars[1:]}


async def test_a_daemon_that_stops_meanwhile(two_hosts, api_of, quick):
    """The error is the RPC's; what was added before is still known, and can be taken back from the next daemon."""

    class Stopping(KuboRPC):
        async def peering_add(self, address):
            await super().peering_add(address)
            await asyncio.to_thread(two_hosts.near.stop)

    network = NetworkOptimizer(api_of(Stopping), max_preferred_peers=2)
    with pytest.raises(IPFSStreamError, match=two_hosts.near.api):
        await network.optimize()
    with pytest.raises(IPFSStreamError, match=two_hosts.near.api):
        await network.undo()
    await asyncio.to_thread(restart, two_hosts)
    two_hosts.near.run("swarm", "peering", "add", two_hosts.fars[2].full_address)
    assert set(await network.undo()) <= {far.peer for far in two_hosts.fars[:2]}
    assert peering(two_hosts) == {two_hosts.fars[2].peer}


async def test_a_daemon_that_stops_during_the_pings(two_hosts, api_of):
    """That is not taken for a network without peers."""
    network = NetworkOptimizer(api_of())
    measure = network._measure_peer_latency

    async def stop_and_measure(peer, address):
        await asyncio.to_thread(two_hosts.near.kill)
        return await measure(peer, address)

    network._measure_peer_latency = stop_and_measure
    with pytest.raises(IPFSStreamError, match=two_hosts.near.api):
        await network.optimize()


async def test_a_cancelled_run_can_be_undone(two_hosts, api_of):
    """Also where the daemon had done what was asked, and its answer was not awaited."""
    asked = asyncio.Event()

    class Slow(KuboRPC):
        async def peering_add(self, address):
            await super().peering_add(address)
            asked.set()
            await asyncio.Event().wait()

    network = NetworkOptimizer(api_of(Slow))
    run = asyncio.create_task(network.optimize())
    await asked.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert peering(two_hosts) == {two_hosts.fars[0].peer}
    assert await network.undo() == (two_hosts.fars[0].peer,)
    assert peering(two_hosts) == set()


async def test_only_so_many_are_pinged(api_of, monkeypatch):
    """At most `max_measured` peers, those first that Kubo knows to be near; PINGS_AT_ONCE of them at a time."""
    monkeypatch.setattr(optimizer, "PINGS_AT_ONCE", 2)
    running, most = set(), 0
    latencies = [*(number / 1000 for number in range(20)), *([None] * 20)]
    random.Random(1).shuffle(latencies)

    class Crowded(KuboRPC):
        async def lines(self, command, peer, **options):
            nonlocal most
            running.add(peer)
            most = max(most, len(running))
            try:
                for _ in range(3):
                    await asyncio.sleep(0)
                    yield Answer({"Success": True, "Time": 1_000_000}, "a stand-in")
            finally:
                running.remove(peer)

        async def swarm_peers(self):
            # the second connection to a peer is not another peer
            return [
                {"peer": str(value), "address": "/ip4/192.0.2.1/tcp/4001", "latency": value}
                for value in latencies * 2
            ]

    peers = await NetworkOptimizer(api_of(Crowded), max_measured=7)._measure_peers()
    assert {one.peer for one in peers} == {str(number / 1000) for number in range(7)}
    assert len(peers) == 7
    assert most == 2


# -- announcing


async def test_what_is_streamed_is_announced(two_hosts, api, quick):
    """Other nodes find the near one by the root's CID."""
    two_hosts.hurry()
    cids = [two_hosts.near.run("add", "-Q", "--cid-version=1", data=os.urandom(100)) for _ in range(3)]
    network = NetworkOptimizer(api)
    assert await network.provide(f"/ipfs/{cids[0]}") == Provided(CID.parse(cids[0]), True, "announced")
    report = await network.optimize(content=cids[1:])
    assert [one.announced for one in report.provided] == [True, True]
    near = two_hosts.near.run("config", "Identity.PeerID")
    for cid in cids:
        for far in two_hosts.fars:
            found = await asyncio.to_thread(far.run, "routing", "findprovs", "--num-providers=1", cid)
            assert found.split() == [near]


async def test_the_daemon_finds_who_has_announced(two_hosts, api):
    """The other way round, by the RPC."""
    two_hosts.hurry()
    cid = two_hosts.add_far(os.urandom(100))
    two_hosts.far.run("routing", "provide", cid)
    assert two_hosts.far.peer in await api.rpc.find_providers(CID.parse(cid))


async def test_what_cannot_be_announced_is_told(two_hosts, api):
    """Content that the daemon does not hold, and a daemon that announces nothing: a line, and no exception."""
    two_hosts.hurry()
    network = NetworkOptimizer(api)
    cid = two_hosts.add_far(os.urandom(100))
    missing = await network.provide(cid)
    assert not missing.announced
    assert "not found locally" in str(missing)
    assert cid in str(missing)
    two_hosts.near.configure("Routing.Type", "none")
    held = two_hosts.near.run("add", "-Q", data=os.urandom(100))
    await asyncio.to_thread(restart, two_hosts)
    silent = await network.provide(held)
    assert not silent.announced
    assert "Routing.Type is none" in silent.text
    for far in two_hosts.fars:
        await asyncio.to_thread(far.stop)
    assert not (await network.provide(held)).announced


async def test_an_announcement_that_takes_too_long(two_hosts, api_of, monkeypatch):
    """It is given up after PROVIDE_SECONDS."""
    monkeypatch.setattr(optimizer, "PROVIDE_SECONDS", 0.05)

    class Slow(KuboRPC):
        async def provide(self, cid):
            await asyncio.Event().wait()

    held = two_hosts.near.run("add", "-Q", data=b"slow")
    assert (await NetworkOptimizer(api_of(Slow)).provide(held)).text.endswith("longer than 0.05 s")


async def test_roots_are_announced(api):
    """Not paths below them, nor what is no CID: before anything else is done."""
    network = NetworkOptimizer(api)
    with pytest.raises(BadRequestError, match="a path below one"):
        await network.optimize(content="bafkqaaa/name")
    with pytest.raises(BadRequestError):
        await network.provide("nonsense")


# -- settings


async def test_settings_are_changed_by_wish_only_and_put_back(two_hosts, api):
    """The difference is shown before it is made, a daemon started anew keeps it, and undo gives the file's bytes."""
    network = NetworkOptimizer(api, max_preferred_peers=2)
    await network.optimize()
    untouched = two_hosts.config_file.read_bytes()
    plan = await network.plan_config()
    entries = [{"ID": far.peer, "Addrs": [far.swarm_address]} for far in two_hosts.fars[:2]]
    assert [(one.key, one.old, one.new) for one in plan.changes] == [("Peering.Peers", None, entries)]
    assert two_hosts.config_file.read_bytes() == untouched

    shown = []

    def show(plan):
        assert two_hosts.config_file.read_bytes() == untouched
        shown.append(plan)

    report = await network.optimize(apply_config=True, show=show)
    assert shown == [plan] == [report.config]
    assert "start it again for them to take effect" in repr(report)
    before, after = json.loads(untouched), json.loads(two_hosts.config_file.read_bytes())
    assert after["Peering"].pop("Peers") == entries
    before["Peering"].pop("Peers")
    assert before == after
    await asyncio.to_thread(restart, two_hosts)
    assert peering(two_hosts) == {far.peer for far in two_hosts.fars[:2]}

    undone = await network.undo_config()
    assert [(one.key, one.old, one.new) for one in undone.changes] == [("Peering.Peers", entries, None)]
    assert two_hosts.config_file.read_bytes() == untouched
    assert await network.undo_config() == ConfigPlan()


async def test_settings_that_the_file_does_not_name(two_hosts, api, quick):
    """They are as the defaults."""
    two_hosts.hurry()
    config = json.loads(two_hosts.config_file.read_bytes())
    del config["Routing"]["Type"], config["Peering"]
    two_hosts.config_file.write_text(json.dumps(config))
    await asyncio.to_thread(restart, two_hosts)
    held = two_hosts.near.run("add", "-Q", data=os.urandom(100))
    network = NetworkOptimizer(api, max_preferred_peers=1)
    report = await network.optimize(content=held, apply_config=True, show=lambda _plan: None)
    assert report.provided[0].announced
    assert report.config.changes[0].old is None
    await network.undo_config()
    assert await api.rpc.config("Peering.Peers") is None


async def test_settings_of_others_stay(two_hosts, api):
    """Peers that the user has set, before or meanwhile, are neither taken out nor set twice."""
    first, second, third = ({"ID": far.peer, "Addrs": [far.swarm_address]} for far in two_hosts.fars)
    await api.rpc.set_config("Peering.Peers", [first])
    network = NetworkOptimizer(api, max_preferred_peers=2)
    report = await network.optimize(apply_config=True, show=lambda _plan: None)
    assert report.config.changes[0].new == [first, second]
    await api.rpc.set_config("Peering.Peers", [first, second, third])
    await network.undo_config()
    assert await api.rpc.config("Peering.Peers") == [first, third]


async def test_settings_follow_the_choice(two_hosts, api):
    """A second run replaces what the first had set; undo still leads to what was before both."""
    first, second, _ = two_hosts.fars
    untouched = two_hosts.config_file.read_bytes()
    network = NetworkOptimizer(api, max_preferred_peers=1)
    await network.optimize(apply_config=True, show=lambda _plan: None)
    first.relay.delay = 0.3
    await network.optimize(apply_config=True, show=lambda _plan: None)
    assert [one["ID"] for one in await api.rpc.config("Peering.Peers")] == [second.peer]
    await network.undo_config()
    assert two_hosts.config_file.read_bytes() == untouched


@pytest.mark.parametrize("written", [False, True])
async def test_a_change_of_settings_that_fails_can_be_put_back(two_hosts, api_of, written):
    """Whether or not the daemon had made it before its answer was lost; so can the change before that."""
    untouched = two_hosts.config_file.read_bytes()

    class Failing(KuboRPC):
        calls = 0

        async def set_config(self, key, value):
            self.calls += 1
            if written or self.calls != 2:
                await super().set_config(key, value)
            if self.calls == 2:
                raise RetrievalError("the answer was lost")

    network = NetworkOptimizer(api_of(Failing), max_preferred_peers=1)
    await network.optimize(apply_config=True, show=lambda _plan: None)
    two_hosts.fars[0].relay.delay = 0.3
    with pytest.raises(RetrievalError, match="was lost"):
        await network.optimize(apply_config=True, show=lambda _plan: None)
    assert two_hosts.config_file.read_bytes() != untouched
    await network.undo_config()
    assert two_hosts.config_file.read_bytes() == untouched


# -- what is read through it


async def test_what_a_far_node_alone_has_is_read_verified(two_hosts, tmp_path, quick):
    """The near daemon gets it by bitswap, our reader gives the same bytes, and the optimizer counts them."""
    two_hosts.hurry()
    content = random.Random(5).randbytes(3_000_000)
    cid = two_hosts.add_far(content, far=two_hosts.fars[1])
    settings = NodeSettings("kubo", repo=tmp_path, kubo_api=two_hosts.near.api)
    async with await open_node(settings) as node:
        network = NetworkOptimizer(node)
        before = (await network.optimize()).after
        assert await node.read(cid, 0, len(content)) == content
        report = await network.optimize(content=cid)
        assert report.before.bitswap["DataReceived"] - before.bitswap["DataReceived"] >= len(content)
        assert report.provided[0].announced


# -- what it is given and gives


async def test_an_embedded_node_is_refused(tmp_path):
    """It has no peers; the text says what has, and how to get it."""
    async with await EmbeddedNode.open(tmp_path) as node:
        with pytest.raises(
            BadRequestError, match=r"an EmbeddedNode has none; start one .*open_node\(NodeSettings"
        ):
            NetworkOptimizer(node)
    for wrong in ({"max_preferred_peers": 0}, {"max_measured": 0}):
        with pytest.raises(BadRequestError, match="at least 1"):
            NetworkOptimizer(SimpleNamespace(rpc=None or object()), **wrong)


def test_ranks():
    """Fewest lost pings first, then the shortest median; more than half lost is not reachable."""
    assert PeerLatency("a", "", (3.0, 1.0, 2.0), 3).latency == 2.0
    assert PeerLatency("a", "", (3.0, 1.0), 3).reachable
    assert not PeerLatency("a", "", (3.0,), 3).reachable


def test_the_report_as_a_table():
    """Everything it holds is shown, and escaped; pandas gets a row per peer."""
    cid = CID.parse("bafkqaaa")
    state = NetworkState(2, 0, {"BlocksReceived": 3})
    report = NetworkReport(
        peers=(
            PeerLatency("near", "/ip4/192.0.2.1/tcp/4001", (0.01, 0.02, 0.03), 3),
            PeerLatency("<b>", "/ip4/192.0.2.2/tcp/4001", (), 3, note="no <answer>"),
        ),
        chosen=("near",),
        added=("near",),
        dropped=(),
        provided=(Provided(cid, announced=True, text="announced"),),
        before=state,
        after=NetworkState(2, 1, {"BlocksReceived": 5}),
    )
    html = report._repr_html_()
    for text in ("20.0 ms", "added", "&lt;b&gt;", "no &lt;answer&gt;", "<td>3</td><td>5</td>", str(cid)):
        assert text in html
    assert "<b>" not in html
    assert "near  20.0 ms  0%  added" in repr(report)
    frame = report.to_pandas()
    assert list(frame["peer"]) == ["near", "<b>"]
    assert list(frame["latency"]) == [0.02, float("inf")]
    assert list(frame["chosen"]) == [True, False]

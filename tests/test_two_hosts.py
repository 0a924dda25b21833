"""The second host that the tests of peers need."""

import os
import subprocess

import pytest


def test_a_far_node_is_reached_by_its_relay(two_hosts):
    """Content of a far node comes to the near one by bitswap, and through the relay that counts it."""
    content = os.urandom(300_000)
    far = two_hosts.fars[1]
    cid = two_hosts.add_far(content, far=far)
    before = far.relay.from_target
    assert two_hosts.near.run_binary("cat", cid) == content
    assert far.relay.from_target - before > len(content)
    assert two_hosts.near_has(cid)


def test_a_file_of_any_size_is_added_by_its_path(two_hosts, tmp_path):
    """It is on the far node alone, with the CID that the near one would give it."""
    path = tmp_path / "large"
    path.write_bytes(os.urandom(5_000_000))
    cid = two_hosts.add_far(path, "--chunker=size-1048576")
    assert not two_hosts.near_has(cid)
    options = ("-Q", "--cid-version=1", "--chunker=size-1048576", "--only-hash")
    assert two_hosts.near.run("add", *options, str(path)) == cid


def test_pings_take_as_long_as_the_relays_hold_them(two_hosts):
    """Both ways are delayed."""
    times = [far.run("ping", "-n", "1", near_id(two_hosts)) for far in two_hosts.fars]
    for far, text in zip(two_hosts.fars, times, strict=True):
        assert float(text.split("time=")[1].split()[0]) >= 2000 * far.delay


def test_a_silent_relay_keeps_its_connections(two_hosts):
    """Nothing comes through, until it goes on."""
    cid = two_hosts.add_far(os.urandom(1000))
    for far in two_hosts.fars:
        far.relay.silence()
    with pytest.raises(subprocess.CalledProcessError):
        two_hosts.near.run("--timeout=500ms", "cat", cid)
    for far in two_hosts.fars:
        far.relay.resume()
    assert len(two_hosts.near.run_binary("cat", cid)) == 1000
    assert len(two_hosts.near.run("swarm", "peers").split()) == len(two_hosts.fars)


def test_announcements_are_found(two_hosts):
    """The DHT of these nodes works on their private addresses."""
    two_hosts.hurry()
    cid = two_hosts.near.run("add", "-Q", data=os.urandom(100))
    two_hosts.near.run("routing", "provide", cid)
    for far in two_hosts.fars:
        assert near_id(two_hosts) in far.run("routing", "findprovs", "--num-providers=1", cid)


def near_id(two_hosts):
    """The near node's peer id."""
    return two_hosts.near.run("config", "Identity.PeerID")

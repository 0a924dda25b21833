"""The store against a model: any sequence of calls leaves what the model says."""

from __future__ import annotations

import tempfile

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.errors import NotFoundError, RetrievalError
from store_trees import keys_of, stored_keys, tree

TREES = [tree(seed, size) for seed, size in enumerate([0, 900, 2_500, 5_000, 9_999])]
SHARED = tree(4, 3_000)  # a sub-tree of the last one: its first three leaves under one node
TREES.append(SHARED)


class StoreMachine(RuleBasedStateMachine):
    """A store beside a model of sets: what is there, what is pinned, and what transfers and readers hold."""

    transfers = Bundle("transfers")
    trees = st.sampled_from(TREES)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = BlockStore.open(self.folder.name, min_free=0)
        self.there: set[bytes] = set()
        self.pinned: list[CID] = []
        self.held: dict[object, set[bytes]] = {}
        self.of = {made.root: keys_of(made) for made in TREES}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(made=trees, position=st.integers(0, 30))
    def put(self, made, position) -> None:
        block = made.blocks[position % len(made.blocks)]
        self.store.put(*block)
        self.there.add(block.cid.multihash)

    @rule(target=transfers, made=trees, cut=st.integers(0, 30))
    def begin(self, made, cut):
        transfer = self.store.transfer()
        part = made.blocks[: cut % (len(made.blocks) + 1)]
        transfer.put(part)
        keys = {block.cid.multihash for block in part}
        self.there |= keys
        self.held[transfer] = keys
        return transfer, made

    @rule(begun=transfers, pin=st.booleans())
    def commit(self, begun, pin) -> None:
        transfer, made = begun
        if transfer in self.held:
            transfer.put(made.blocks)
            transfer.commit(made.root, pin=pin)
            del self.held[transfer]
            self.there |= self.of[made.root]
            if pin and made.root not in self.pinned:
                self.pinned.append(made.root)

    @rule(begun=transfers)
    def abort(self, begun) -> None:
        begun[0].abort()
        self.held.pop(begun[0], None)

    @rule(made=trees)
    def pin(self, made) -> None:
        if self.of[made.root] <= self.there:
            self.store.pin(made.root)
            if made.root not in self.pinned:
                self.pinned.append(made.root)
        else:
            error = RetrievalError if made.root.multihash in self.there else NotFoundError
            with pytest.raises(error, match=r"missing in this|not in this"):
                self.store.pin(made.root)

    @rule(made=trees)
    def unpin(self, made) -> None:
        if made.root in self.pinned:
            self.store.unpin(made.root)
            self.pinned.remove(made.root)
        else:
            with pytest.raises(NotFoundError):
                self.store.unpin(made.root)

    @rule(made=st.one_of(st.none(), trees))
    def collect(self, made) -> None:
        needed = set().union(*(self.of[root] for root in self.pinned), *self.held.values())
        if made is not None:
            with self.store.reading(made.root):
                self.store.gc()
            if made.root.multihash in self.there:
                needed |= self.of[made.root]
        else:
            self.store.gc()
        self.there &= needed

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = BlockStore.open(self.folder.name, min_free=0)
        self.held.clear()

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @invariant()
    def agrees(self) -> None:
        assert stored_keys(self.store) == self.there
        assert [pin.cid for pin in self.store.pins()] == self.pinned
        stat = self.store.stat()
        sizes = {block.cid.multihash: block for made in TREES for block in made.blocks}
        assert stat.blocks == len(self.there)
        assert stat.size == sum(len(sizes[key].data) for key in self.there)
        for key in self.there:
            assert self.store.get(sizes[key].cid) == sizes[key].data


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

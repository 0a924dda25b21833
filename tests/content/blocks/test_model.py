"""The store against a model: any sequence of calls leaves what the model says."""

from __future__ import annotations

import tempfile
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from ipfs_stream_nb.content.blocks import BlockStore
from ipfs_stream_nb.content.blocks.cache import HERE
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.links import links_of
from ipfs_stream_nb.errors import NotFoundError, RetrievalError
from store_trees import cached_keys, keys_of, stored_keys, tree

TREES = [tree(seed, size) for seed, size in enumerate([0, 900, 2_500, 5_000, 9_999])]
SHARED = tree(4, 3_000)  # a sub-tree of the last one: its first three leaves under one node
TREES.append(SHARED)
BLOCKS = {block.cid.multihash: block for made in TREES for block in made.blocks}
CACHE_QUOTA = 9_000


class StoreMachine(RuleBasedStateMachine):
    """A store beside a model of sets: what is there, what is pinned, and what transfers and readers hold; and of
    the cache as a list, the least recently used first, with the sources of what was fetched."""

    transfers = Bundle("transfers")
    trees = st.sampled_from(TREES)

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = BlockStore.open(self.folder.name, min_free=0, cache_quota=CACHE_QUOTA)
        self.there: set[bytes] = set()
        self.cached: list[bytes] = []
        self.touched: list[bytes] = []
        self.source: dict[bytes, str] = {}
        self.pinned: list[CID] = []
        self.held: dict[object, set[bytes]] = {}
        self.of = {made.root: keys_of(made) for made in TREES}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def keep(self, keys: set[bytes]) -> None:
        """They are there, and not to be evicted."""
        self.there |= keys
        self.cached = [key for key in self.cached if key not in keys]

    def drop(self, keys: set[bytes]) -> None:
        self.there -= keys
        self.cached = [key for key in self.cached if key not in keys]
        self.source = {key: source for key, source in self.source.items() if key not in keys}

    def use(self, keys: list[bytes]) -> None:
        for key in keys:
            if key in self.cached:
                self.cached.remove(key)
                self.cached.append(key)

    def below(self, root: CID) -> tuple[set[bytes], set[bytes]]:
        """What can be reached from a root with the blocks that are there, and what is linked and is not."""
        found, missing, todo = set(), set(), [root]
        while todo:
            cid = todo.pop()
            if cid.multihash not in self.there:
                missing.add(cid.multihash)
            elif cid.multihash not in found:
                found.add(cid.multihash)
                todo += links_of(cid, BLOCKS[cid.multihash].data)
        return found, missing

    @rule(made=trees, first=st.integers(0, 20), count=st.integers(0, 20), source=st.sampled_from("ab"))
    def fetch(self, made, first, count, source) -> None:
        part = made.blocks[first : first + count]
        batch = sorted({block.cid.multihash for block in part})
        if batch:
            self.use(self.touched)
            self.touched.clear()
        self.use(batch)
        new = {key: len(BLOCKS[key].data) for key in batch if key not in self.there}
        others = [key for key in self.cached if key not in batch]
        spared = sum(len(BLOCKS[key].data) for key in self.cached if key in batch)
        fits = not new or spared + sum(new.values()) <= CACHE_QUOTA
        assert self.store.cache(part, source) is fits
        if not fits or not new:
            return
        size = spared + sum(new.values()) + sum(len(BLOCKS[key].data) for key in others)
        while size > CACHE_QUOTA:
            size -= len(BLOCKS[others[0]].data)
            self.drop({others.pop(0)})
        self.there |= set(new)
        self.cached += new
        self.source |= dict.fromkeys(new, source)

    @rule(made=trees, first=st.integers(0, 20), count=st.integers(0, 20))
    def touch(self, made, first, count) -> None:
        part = [block.cid for block in made.blocks[first : first + count]]
        self.store.touch(part)
        for cid in part:
            if cid.multihash in self.touched:
                self.touched.remove(cid.multihash)
            self.touched.append(cid.multihash)

    @rule(made=trees, position=st.integers(0, 30))
    def put(self, made, position) -> None:
        block = made.blocks[position % len(made.blocks)]
        self.store.put(*block)
        self.keep({block.cid.multihash})

    @rule(target=transfers, made=trees, cut=st.integers(0, 30))
    def begin(self, made, cut):
        transfer = self.store.transfer()
        part = made.blocks[: cut % (len(made.blocks) + 1)]
        transfer.put(part)
        keys = {block.cid.multihash for block in part}
        self.keep(keys)
        self.held[transfer] = keys
        return transfer, made

    @rule(begun=transfers, pin=st.booleans())
    def commit(self, begun, pin) -> None:
        transfer, made = begun
        if transfer in self.held:
            transfer.put(made.blocks)
            transfer.commit(made.root, pin=pin)
            del self.held[transfer]
            self.keep(self.of[made.root])
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
            self.keep(self.of[made.root])
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
                needed |= self.below(made.root)[0]
        else:
            self.store.gc()
        self.drop(self.there - needed)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = BlockStore.open(self.folder.name, min_free=0, cache_quota=CACHE_QUOTA)
        self.held.clear()
        self.use(self.touched)
        self.touched.clear()

    @rule()
    def compact(self) -> None:
        self.store.compact()

    @invariant()
    def agrees(self) -> None:
        assert stored_keys(self.store) == self.there
        assert [pin.cid for pin in self.store.pins()] == self.pinned
        stat = self.store.stat()
        assert stat.blocks == len(self.there)
        assert stat.size == sum(len(BLOCKS[key].data) for key in self.there)
        for key in self.there:
            assert self.store.get(BLOCKS[key].cid) == BLOCKS[key].data

    @invariant()
    def cache_agrees(self) -> None:
        assert cached_keys(self.store) == self.cached
        assert self.store.stat().cache_size <= CACHE_QUOTA
        for made in TREES:
            found, missing = self.below(made.root)
            origins = self.store.origins(made.root)
            by_source = Counter(self.source.get(key, HERE) for key in found)
            assert {origin.source: origin.blocks for origin in origins.origins} == by_source
            assert origins.missing == len(missing)


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)

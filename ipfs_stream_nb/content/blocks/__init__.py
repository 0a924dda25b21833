"""The block store: see store.BlockStore."""

from ipfs_stream_nb.content.blocks.maintenance import VerifyResult
from ipfs_stream_nb.content.blocks.store import BlockStore
from ipfs_stream_nb.content.blocks.transfers import Transfer

__all__ = ["BlockStore", "Transfer", "VerifyResult"]

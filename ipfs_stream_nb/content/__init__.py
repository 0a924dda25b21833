"""Bytes by CID: formats, the block store, nodes, streams and files."""

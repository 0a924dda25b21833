"""A Kubo daemon over its RPC (https://docs.ipfs.tech/reference/kubo/rpc/)."""

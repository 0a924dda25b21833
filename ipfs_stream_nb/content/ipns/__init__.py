"""Mutable names: https://specs.ipfs.tech/ipns/ipns-record/."""

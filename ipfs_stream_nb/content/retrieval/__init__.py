"""Blocks from elsewhere: gateways, a Kubo daemon, our own server. Every one is hashed before it is used."""

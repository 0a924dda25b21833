"""Media workers: subprocesses that demux, decode and encode, so that hostile files meet neither the server nor its loop.

The parent's side: `pool` (who uses which worker), `shelf` (packets that readers share), `process` (one subprocess).
The subprocess: `main` (its loop), `sandbox`, `remote` (its file), `content` (what the file has), and the makers of packets
`through`, `pictures`, `sound`. Both speak `protocol`. Nothing is imported here, so that each side loads its own half only.
"""

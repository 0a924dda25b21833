"""A link whose rate, delay, loss and queue a test says: the kernels that the tests run on have no `tc netem`.

`paths` says what a link is like, `scenarios` names some, `model` is the queue itself, `emulator` puts it between two
network namespaces (root) or between two UDP sockets (no root), and `records` tells what became of the packets.
"""

"""The peers of a Kubo daemon: which are near, and keeping those connected (guide, "Network Optimization").

What is changed is Kubo's running peering alone, by as much as `undo` takes back. Settings of the daemon stay as they
are unless the user asks for `apply_config=True`.
"""

from ipfs_stream_nb.network.optimizer import NetworkOptimizer
from ipfs_stream_nb.network.report import (
    ConfigChange,
    ConfigPlan,
    NetworkReport,
    NetworkState,
    PeerLatency,
    Provided,
)

__all__ = [
    "ConfigChange",
    "ConfigPlan",
    "NetworkOptimizer",
    "NetworkReport",
    "NetworkState",
    "PeerLatency",
    "Provided",
]

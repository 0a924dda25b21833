"""What became of packets, as feedback tells it: what passes from the transport to the estimator."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PacketResult:
    """One packet that was sent, and what the receiver says of it."""

    sent_at: float
    """Seconds of our monotonic clock, when it was given to the socket."""
    received_at: float | None
    """Seconds of the receiver's clock, whose zero is anywhere; None: it has not arrived."""
    size: int
    """Bytes on the wire, IP and UDP headers included."""
    probe: int | None = None
    """The cluster of probing packets that it belongs to."""


@dataclass(frozen=True, slots=True)
class ProbeCluster:
    """A short burst that asks whether the path carries more."""

    number: int
    bitrate: int
    """bit/s at which it goes out."""
    seconds: float
    """How long it takes."""

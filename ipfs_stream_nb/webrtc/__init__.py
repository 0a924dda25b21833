"""Media of IPFS content as live WebRTC tracks: playback clocks, tracks, peers, signaling."""

"""Frames, samples and facts out of media files, decoded behind one hardened door."""

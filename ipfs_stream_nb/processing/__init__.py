"""Work on content that takes a while: facts, checksums, thumbnails and transcodes, with progress and cancellation."""

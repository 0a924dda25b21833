"""Live events: what they are, the log that keeps them, who may see which, and their way to subscribers."""

"""The wire protocol's conversations, free of any I/O framework: each takes a `Connection`, or makes text to be sent."""

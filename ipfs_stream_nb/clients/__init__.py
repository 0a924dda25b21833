"""The Python clients: `connect()` and what it returns."""

"""Notebook widgets, each a Python class with one ES module in `static/`."""

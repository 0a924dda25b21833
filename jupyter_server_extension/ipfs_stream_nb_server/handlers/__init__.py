"""Thin Tornado handlers over the library: they check rights, translate HTTP and hold no logic of their own."""

"""Sizes and tables."""

import pytest

from ipfs_stream_nb.display import MAX_CELL, facts_html, size_text, table_html


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (1024**2 - 1, "1.0 MiB"),
        (5 * 2**30, "5.0 GiB"),
        (3 * 2**50, "3.0 PiB"),
    ],
)
def test_sizes_in_words(size, text):
    """Powers of 1024, with one decimal."""
    assert size_text(size) == text


def test_cells_are_escaped_and_cut():
    """A name may hold anything and be of any length."""
    html = table_html(("a",), [("<b>" + "x" * 10_000,)])
    assert "&lt;b&gt;" in html
    assert len(html) < MAX_CELL + 200


def test_empty_facts_are_left_out():
    """None and the empty text have no row, 0 has one."""
    html = facts_html("t", [("a", None), ("b", ""), ("c", 0)])
    assert "<th scope='row'>c</th><td>0</td>" in html
    assert ">a<" not in html

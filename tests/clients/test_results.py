"""What results look like."""

import pytest

from ipfs_stream_nb.clients.results import Entries, Pins, Removed, hinted
from ipfs_stream_nb.content.cid import CID
from ipfs_stream_nb.content.node import Added, Entry, GCResult, Pin, Stat

CID1 = CID.of(b"one")
EVIL = '<script>alert("x")</script>'


@pytest.mark.parametrize(
    "result",
    [
        Added(CID1, 3, 3, EVIL),
        Stat(CID1, "file", 3, name=EVIL, mime_type=EVIL),
        Stat(CID1, "symlink", 3, name="x", target=EVIL),
        Entries([Entry(EVIL, CID1, 3)]),
        Pins([Pin(CID1, EVIL, created=1e9)]),
        GCResult(1, 2, 3),
        Removed(1, 2, 3),
    ],
)
def test_html_is_escaped_and_has_no_colours(result):
    """Names come from content that anybody may have made; colours would not fit a dark theme."""
    html = result._repr_html_()
    assert html.startswith("<table>")
    assert "<script" not in html
    assert "style" not in html


def test_an_added_is_its_cid():
    """str() of the result of an add is the CID, for f-strings and shells."""
    assert f"{Added(CID1, 3, 3)}" == str(CID1)


def test_plain_reprs_are_readable_and_stable():
    """Lists show a line for each item, without addresses in memory."""
    entries = Entries([Entry("a.txt", CID1, 1536, "file"), Entry("b", CID1, 1)])
    assert (
        repr(entries) == f"2 entries; sizes with blocks\n  a.txt  file  1.5 KiB  {CID1}\n  b  1 byte  {CID1}"
    )
    assert repr(Pins([Pin(CID1, "x")])) == f"1 pin\n  {CID1}  x"
    assert repr(Entries()) == "0 entries"


def test_the_list_has_no_column_for_what_was_not_looked_up():
    """Without kinds there is no column for them, and the sizes say that they count the blocks."""
    assert "kind" not in Entries([Entry("a", CID1, 1)])._repr_html_()
    assert "size with blocks" in Entries([Entry("a", CID1, 1)])._repr_html_()
    assert "kind" in Entries([Entry("a", CID1, 1, "file")])._repr_html_()


def test_what_a_removal_keeps_is_told():
    """Whoever removes content that another pin holds sees why nothing went away."""
    kept = Removed(0, 0, 3, still_here=True)
    for shown in (repr(kept), kept._repr_html_()):
        assert "other pins" in shown
        assert "0 blocks, 0 bytes" in shown
    assert repr(Removed(1, 2, 3)) == "Removed(taken away: 1 block, 2 bytes)"


def test_long_lists_are_cut():
    """A directory of many entries shows the first ones and how many there are."""
    entries = Entries([Entry(f"{n}", CID1, 1) for n in range(1000)])
    assert repr(entries).endswith("… and 900 more")
    assert "… and 900 more" in entries._repr_html_()


def test_entries_are_found_by_name():
    """A directory's list can be asked by name."""
    entries = Entries([Entry("a", CID1, 1), Entry("b", CID1, 2)])
    assert entries["b"].size == 2
    assert entries[0].name == "a"
    with pytest.raises(KeyError):
        entries["c"]


def test_unknown_arguments_get_a_hint():
    """A misspelt argument is answered with the one that may have been meant, or with all there are."""

    @hinted
    def add(source, *, progress=None):
        return source, progress

    assert add(1, progress=2) == (1, 2)
    with pytest.raises(TypeError, match="did you mean 'progress'"):
        add(1, progres=2)
    with pytest.raises(TypeError, match="it has source, progress"):
        add(1, zzz=2)

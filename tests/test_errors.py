"""Errors on the wire and in a notebook."""

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output

from ipfs_stream_nb import errors
from ipfs_stream_nb.errors import IPFSStreamError, error_from_json


def every_kind(kind=IPFSStreamError):
    kinds = [kind, *(sub for below in kind.__subclasses__() for sub in every_kind(below))]
    return [kind for kind in kinds if kind.__module__ == errors.__name__]


@pytest.mark.parametrize("kind", every_kind(), ids=lambda kind: kind.__name__)
def test_errors_come_back_from_the_wire(kind):
    """An error that went over HTTP is of the same kind again, or of the one whose code it has."""
    back = error_from_json(kind("what was wrong").to_json())
    assert str(back) == "what was wrong"
    assert back.code == kind.code
    assert issubclass(kind, type(back))


@pytest.mark.parametrize(
    "body", [{}, {"code": "from_the_future", "error": "x"}, {"code": None}, {"code": ["x"]}]
)
def test_an_unknown_code_is_an_error_all_the_same(body):
    """A newer server may have codes that are not known here."""
    assert type(error_from_json(body)) is IPFSStreamError


def test_the_tree_in_the_docstring_is_the_tree():
    """Each kind of error stands in the picture at the top of the module."""
    for kind in every_kind():
        assert kind.__name__ in (errors.__doc__ or "")


def test_a_notebook_shows_a_mistake_in_two_lines():
    """IPython shows what was wrong and the user's line, and none of this package's."""
    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            shell.run_cell("from ipfs_stream_nb.content.cid import CID\n\nCID.parse('nonsense')\n")
    finally:
        InteractiveShell.clear_instance()
    lines = (shown.stderr + shown.stdout).strip().splitlines()
    assert lines[0].startswith("BadCIDError: 'nonsense' is not a CID")
    assert lines[1].strip() == "line 3: CID.parse('nonsense')"
    assert len(lines) == 2

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


@pytest.fixture
def shown():
    """What cells show, run one after another in a shell."""
    shell = InteractiveShell.instance()
    shell.run_line_magic("xmode", "Context")

    def run(*cells):
        with capture_output() as shown:
            for cell in cells:
                shell.run_cell(cell, store_history=True)
        return (shown.stderr + shown.stdout).strip().splitlines()

    yield run
    InteractiveShell.clear_instance()


FAILING = "from ipfs_stream_nb.content.cid import CID\n\nCID.parse('nonsense')\n"


def test_a_notebook_shows_a_mistake_in_two_lines(shown):
    """IPython shows what was wrong and the user's line, and none of this package's."""
    lines = shown(FAILING)
    assert lines[0].startswith("BadCIDError: 'nonsense' is not a CID")
    assert lines[1].strip() == "Cell In[1], line 3: CID.parse('nonsense')"
    assert len(lines) == 2


def test_a_notebook_shows_the_way_through_the_user_s_functions(shown, tmp_path, monkeypatch):
    """Each of the user's lines on the way is shown with its cell or file, those that we call back too."""
    (tmp_path / "mine_for_errors.py").write_text("def call(function):\n    return function()\n")
    monkeypatch.syspath_prepend(tmp_path)
    lines = shown(
        "from ipfs_stream_nb.clients.results import hinted\n"
        "from ipfs_stream_nb.content.cid import CID\nimport mine_for_errors",
        "@hinted\ndef read(cid):\n    return CID.parse(cid)",
        "mine_for_errors.call(lambda: read('nonsense'))",
    )
    assert [line.strip() for line in lines[1:]] == [
        "Cell In[3], line 1: mine_for_errors.call(lambda: read('nonsense'))",
        f"File {tmp_path}/mine_for_errors.py, line 2, in call: return function()",
        "Cell In[3], line 1, in <lambda>: mine_for_errors.call(lambda: read('nonsense'))",
        "Cell In[2], line 3, in read: return CID.parse(cid)",
    ]


def test_a_deep_way_is_cut(shown):
    """A recursion does not fill the page."""
    lines = shown(
        "from ipfs_stream_nb.content.cid import CID\n"
        "def down(n):\n    return down(n - 1) if n else CID.parse('nonsense')",
        "down(100)",
    )
    assert len(lines) == errors.MAX_LINES + 2
    assert "… 90 more" in "".join(lines)


def test_the_full_traceback_can_be_had(shown):
    """`%tb Verbose` shows every frame, ours too, and the next error is short again."""
    shown(FAILING)
    full = "\n".join(shown("%tb Verbose"))
    assert "_parse_text" in full
    assert "BadCIDError" in full
    assert len(shown(FAILING)) == 2

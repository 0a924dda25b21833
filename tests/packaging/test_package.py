"""What users install."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import fsspec
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", folder, ROOT]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode and "hatchling" in built.stderr and "No matching distribution" in built.stderr:
        pytest.skip("the build backend could not be fetched: no package index is reachable")
    assert built.returncode == 0, built.stderr
    (path,) = Path(folder).glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_both_packages_and_what_the_browser_loads(wheel):
    """Modules, ES modules, type markers, licences and the entry that enables the extension are in the wheel."""
    names = set(wheel.namelist())
    for package in ("ipfs_stream_nb", "ipfs_stream_nb_server"):
        assert {f"{package}/__init__.py", f"{package}/py.typed"} <= names
    assert {"ipfs_stream_nb/widgets/static/player.js", "ipfs_stream_nb/widgets/static/player.css"} <= names
    assert any(name.endswith("licenses/LICENSE-MIT") for name in names)
    assert any(name.endswith("licenses/LICENSE-APACHE") for name in names)
    (config,) = [
        name for name in names if name.endswith("jupyter_server_config.d/ipfs_stream_nb_server.json")
    ]
    assert ".data/data/etc/jupyter/" in config
    assert json.loads(wheel.read(config)) == {
        "ServerApp": {"jpserver_extensions": {"ipfs_stream_nb_server": True}}
    }


def test_the_wheel_holds_nothing_else(wheel):
    """No tests, notebooks or bytecode are installed."""
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {
        "ipfs_stream_nb",
        "ipfs_stream_nb_server",
    }
    assert not [name for name in wheel.namelist() if name.endswith(".pyc")]


def test_installing_enables_the_extension():
    """Jupyter lists the extension as enabled, and it loads."""
    command = [sys.executable, "-m", "jupyter", "server", "extension", "list"]
    listed = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"NO_COLOR": "1"}
    )
    lines = (listed.stdout + listed.stderr).splitlines()
    assert [line for line in lines if "ipfs_stream_nb_server" in line and "enabled" in line]
    assert [line for line in lines if "ipfs_stream_nb_server" in line and "OK" in line]


def test_fsspec_knows_the_protocol():
    """ipfs:// is known without an import of ours."""
    assert fsspec.get_filesystem_class("ipfs").__name__ == "IPFSFileSystem"


def test_the_import_is_light():
    """`import ipfs_stream_nb` loads none of the heavy libraries that it uses later."""
    heavy = ["aiohttp", "anywidget", "av", "ipywidgets", "jupyter_server", "lmdb", "numpy", "PIL", "tornado"]
    code = f"import sys, ipfs_stream_nb; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_is_there():
    """Each name in __all__ can be had, and an unknown one is an AttributeError."""
    import ipfs_stream_nb  # noqa: PLC0415  # what is tested is the import of each name

    for name in [*ipfs_stream_nb.__all__, "__version__", "samples"]:
        assert getattr(ipfs_stream_nb, name) is not None
        assert name in dir(ipfs_stream_nb)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = ipfs_stream_nb.nonsense


def test_modules_stay_small():
    """No module is over 400 lines."""
    sources = [*ROOT.glob("ipfs_stream_nb/**/*.py"), *ROOT.glob("jupyter_server_extension/**/*.py")]
    assert not [str(path) for path in sources if len(path.read_text().splitlines()) > 400]


def test_the_library_knows_nothing_of_jupyter_or_tornado():
    """Only connect() reaches for the server package, and only widgets for ipywidgets (one-way rooms)."""
    allowed = {"clients": {"jupyter_server", "ipfs_stream_nb_server"}, "widgets": {"anywidget", "ipywidgets"}}
    for path in ROOT.glob("ipfs_stream_nb/**/*.py"):
        room = path.relative_to(ROOT / "ipfs_stream_nb").parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            tops = {module.split(".")[0] for module in modules}
            foreign = tops & {"jupyter_server", "tornado", "ipfs_stream_nb_server", "anywidget", "ipywidgets"}
            assert foreign <= allowed.get(room, set()), f"{path} imports {foreign}"

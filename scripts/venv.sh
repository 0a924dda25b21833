#!/bin/sh
# scripts/venv.sh PYTHON VENV EXTRA: a virtual environment with this project, editable, and one of its extras.
set -eu
python=$1 venv=$2 extra=$3
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "ipfs_stream_nb needs Python 3.11 or newer, and $python is $("$python" -V); try: make PYTHON=python3.12 $extra" >&2
  exit 1
}
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv" || {
  echo "no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
  exit 1
}
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable ".[$extra]"
touch "$venv/$extra"

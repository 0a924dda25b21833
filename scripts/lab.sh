#!/bin/sh
# scripts/lab.sh BIN: JupyterLab with the quickstart notebook; without a display it prints the URL to open.
set -eu
bin=$1
set -- --ServerApp.root_dir="$PWD/notebooks" --LabApp.default_url=/lab/tree/00_quickstart.ipynb
[ "$(id -u)" -ne 0 ] || set -- "$@" --allow-root
if [ "$(uname)" = Linux ] && [ -z "${DISPLAY:-}${WAYLAND_DISPLAY:-}" ]; then
  echo "No display here: open the URL that JupyterLab prints below in your browser."
  set -- "$@" --no-browser
fi
exec "$bin/jupyter" lab "$@" ${LAB_ARGS:-}

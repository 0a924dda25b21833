#!/bin/sh
# scripts/browser.sh BIN: a browser for the tests: Debian's chromium where it is or can be had, else Playwright's.
set -u
bin=$1
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null 2>&1; then exit 0; fi
done
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  echo "Installing Debian's chromium for the browser tests …"
  apt-get update -q >/dev/null && apt-get install -y -q chromium >/dev/null && exit 0
fi
echo "Fetching Playwright's chromium for the browser tests …"
"$bin/python" -m playwright install chromium >/dev/null 2>&1 || echo "No browser could be had: the browser tests will say so and not run."

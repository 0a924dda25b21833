#!/bin/sh
# scripts/coturn.sh: coturn, for the tests of media through a relay, where it is missing and can be had.
set -u
if command -v turnserver >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  echo "Installing Debian's coturn for the tests of media through a relay …"
  apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends coturn >/dev/null && exit 0
fi
echo "No coturn could be had: the tests of media through a relay will say so and not run."

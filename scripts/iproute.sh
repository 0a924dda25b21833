#!/bin/sh
# scripts/iproute.sh: iproute2's ip, for the tests with a second host, where it is missing and can be had.
set -u
if command -v ip >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  echo "Installing Debian's iproute2 for the tests with two hosts …"
  apt-get update -q >/dev/null && apt-get install -y -q iproute2 >/dev/null && exit 0
fi
echo "No iproute2 could be had: the tests with two hosts will say so and not run."

#!/bin/sh
# scripts/nats.sh: nats-server, for the tests of the feed that many servers share, where it is missing and can be had.
set -u
if command -v nats-server >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  echo "Installing Debian's nats-server for the tests of a shared feed …"
  apt-get update -q >/dev/null && apt-get install -y -q nats-server >/dev/null && exit 0
fi
echo "No nats-server could be had: the tests of a shared feed will say so and not run."

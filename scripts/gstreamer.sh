#!/bin/sh
# scripts/gstreamer.sh: GStreamer's webrtcbin and Python's way to it, for the tests with an independent WebRTC peer, where
# they are missing and can be had.
set -u
check='import gi
gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import Gst, GstWebRTC
Gst.init(None)
assert all(map(Gst.ElementFactory.find, ("webrtcbin", "nicesrc", "rtpvp8depay", "vp8dec", "avdec_h264", "opusdec")))'
if /usr/bin/python3 -c "$check" >/dev/null 2>&1; then exit 0; fi
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  echo "Installing Debian's GStreamer for the tests with an independent WebRTC peer …"
  apt-get update -q >/dev/null && apt-get install -y -q --no-install-recommends \
    python3-gst-1.0 gir1.2-gst-plugins-bad-1.0 gstreamer1.0-nice gstreamer1.0-libav \
    gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad >/dev/null && exit 0
fi
echo "No GStreamer could be had: the tests with an independent WebRTC peer will say so and not run."

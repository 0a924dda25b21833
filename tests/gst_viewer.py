"""A viewer by GStreamer's webrtcbin, as a program: /usr/bin/python3 gst_viewer.py offer|answer H264|VP8 [live]

It speaks lines of JSON. It offers, or takes an offer from its input, and gives the answer or takes it, all with their
candidates inside. Then it tells of each picture ("picture", whose `bytes` bytes of grey follow the line), of each piece of
sound ("sound") and each message on a data channel ("message"), until its input ends. Times are seconds of GStreamer's clock.
With `live` it plays as a viewer on a real network would: it offers to tell when packets came (transport-wide congestion control), asks
again for lost ones, and tells of pictures without their bytes, which a busy machine would have to wait for.

It uses Debian's python3-gi and the standard library alone, and nothing of this project.
"""

import array
import json
import sys
import threading

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstSdp", "1.0")
gi.require_version("GstWebRTC", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402  # after the versions are chosen

DECODERS = {
    "H264": "rtph264depay ! avdec_h264",
    "VP8": "rtpvp8depay ! vp8dec",
    "OPUS": "rtpopusdepay ! opusdec",
}
SINKS = {
    "video": "videoconvert ! video/x-raw,format=GRAY8 ! appsink name=sink emit-signals=true sync=false",
    "audio": "audioconvert ! audio/x-raw,format=S16LE ! appsink name=sink emit-signals=true sync=false",
}
CAPS = {
    "H264": "media=video,clock-rate=90000,payload=96,packetization-mode=(string)1,profile-level-id=(string)42e01f",
    "VP8": "media=video,clock-rate=90000,payload=97",
    "OPUS": "media=audio,clock-rate=48000,payload=98,encoding-params=(string)2",
}


FEEDBACK = (
    ",extmap-5=(string)http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
    ",rtcp-fb-transport-cc=(boolean)true,rtcp-fb-nack=(boolean)true,rtcp-fb-nack-pli=(boolean)true"
)


class Viewer:
    """One webrtcbin, and what decodes its tracks."""

    def __init__(self, loop, *, live):
        self.loop = loop
        self.live = live
        self.pipeline = Gst.Pipeline.new()
        self.webrtc = Gst.ElementFactory.make("webrtcbin")
        self.webrtc.set_property("bundle-policy", GstWebRTC.WebRTCBundlePolicy.MAX_BUNDLE)
        self.webrtc.connect("pad-added", self.on_pad)
        # on-data-channel may come after the first messages, which are lost then
        self.webrtc.connect("prepare-data-channel", self.on_channel)
        self.webrtc.connect("notify::ice-gathering-state", self.on_gathering)
        self.pipeline.add(self.webrtc)
        self.writing = threading.Lock()
        if (
            not live
        ):  # by the sender's clock alone: when packets arrive is a matter of how busy this machine is
            self.webrtc.get_by_name("rtpbin").set_property("buffer-mode", 0)
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message::error", self.on_error)
        self.pipeline.set_state(Gst.State.PLAYING)

    def tell(self, kind, data=b"", **facts):
        """Write a message; from any thread."""
        with self.writing:
            sys.stdout.buffer.write(json.dumps({"type": kind, **facts}).encode() + b"\n" + data)
            sys.stdout.buffer.flush()

    # descriptions

    def offer(self, codecs):
        """Ask for a track of each codec, and for a data channel."""
        for codec in codecs:
            caps = f"application/x-rtp,encoding-name={codec},{CAPS[codec]}{FEEDBACK if self.live else ''}"
            transceiver = self.webrtc.emit(
                "add-transceiver",
                GstWebRTC.WebRTCRTPTransceiverDirection.RECVONLY,
                Gst.Caps.from_string(caps),
            )
            transceiver.set_property("do-nack", self.live)
        self.channel = self.webrtc.emit("create-data-channel", "viewer", None)
        self.describe("offer")

    def take(self, kind, text):
        """Take the other side's description."""
        _, message = GstSdp.SDPMessage.new_from_text(text)
        number = {"offer": GstWebRTC.WebRTCSDPType.OFFER, "answer": GstWebRTC.WebRTCSDPType.ANSWER}[kind]
        description = GstWebRTC.WebRTCSessionDescription.new(number, message)
        taken = Gst.Promise.new_with_change_func(lambda _: kind == "offer" and self.describe("answer"))
        self.webrtc.emit("set-remote-description", description, taken)

    def describe(self, kind):
        """Make a description of our own; it is told once all candidates are in it."""

        def made(promise):
            self.kind = kind
            reply = promise.get_reply()  # which owns what is in it
            self.webrtc.emit("set-local-description", reply.get_value(kind), Gst.Promise.new())

        self.webrtc.emit(f"create-{kind}", None, Gst.Promise.new_with_change_func(made))

    def on_gathering(self, webrtc, _):
        """Tell the description when it is whole."""
        if webrtc.get_property("ice-gathering-state") == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            self.tell(self.kind, sdp=webrtc.get_property("local-description").sdp.as_text())

    # what comes

    def on_pad(self, _, pad):
        """Decode a track."""
        if pad.get_direction() != Gst.PadDirection.SRC:
            return
        facts = pad.get_current_caps().get_structure(0)
        kind = facts.get_string("media")
        decoder = Gst.parse_bin_from_description(
            f"{DECODERS[facts.get_string('encoding-name')]} ! {SINKS[kind]}", True
        )
        decoder.get_by_name("sink").connect(
            "new-sample", {"video": self.on_picture, "audio": self.on_sound}[kind]
        )
        self.pipeline.add(decoder)
        decoder.sync_state_with_parent()
        pad.link(decoder.get_static_pad("sink"))

    def on_picture(self, sink):
        """Pass a picture on."""
        sample = sink.emit("pull-sample")
        buffer, facts = sample.get_buffer(), sample.get_caps().get_structure(0)
        data = b"" if self.live else buffer.extract_dup(0, buffer.get_size())
        self.tell(
            "picture", data, bytes=len(data), width=facts.get_value("width"), height=facts.get_value("height"),
            time=buffer.pts / Gst.SECOND,
        )  # fmt: skip
        return Gst.FlowReturn.OK

    def on_sound(self, sink):
        """Tell how loud it is, from 0 to 1, each millisecond."""
        sample = sink.emit("pull-sample")
        buffer, facts = sample.get_buffer(), sample.get_caps().get_structure(0)
        values = array.array("h", buffer.extract_dup(0, buffer.get_size()))
        step = facts.get_value("rate") * facts.get_value("channels") // 1000
        levels = [max(map(abs, values[at : at + step])) / 32768 for at in range(0, len(values), step)]
        self.tell("sound", levels=levels, time=buffer.pts / Gst.SECOND)
        return Gst.FlowReturn.OK

    def on_channel(self, _, channel, is_local):
        """Pass on what a data channel of the other side brings."""
        if is_local:
            return
        channel.connect(
            "on-message-string",
            lambda _, text: self.tell("message", text=text, label=channel.get_property("label")),
        )
        self.theirs = channel

    def on_error(self, _, message):
        """Give up."""
        self.tell("error", text=str(message.parse_error()))
        self.loop.quit()


def read(viewer, loop):
    """Take messages until there are no more."""
    for line in sys.stdin:
        message = json.loads(line)
        GLib.idle_add(viewer.take, message["type"], message["sdp"])
    GLib.idle_add(loop.quit)


def main():
    """Run until the input ends."""
    Gst.init(None)
    way, codec, *more = sys.argv[1:]
    loop = GLib.MainLoop()
    viewer = Viewer(loop, live="live" in more)
    if way == "offer":
        viewer.offer((codec, "OPUS"))
    threading.Thread(target=read, args=(viewer, loop), daemon=True).start()
    loop.run()
    viewer.pipeline.set_state(Gst.State.NULL)


main()

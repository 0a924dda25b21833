// WebRTC behind the face of a media element, as far as the player looks at one.
import { WebRTCPlayer } from "./ipfs-webrtc.js";

// The states of the connection in words, and whether they are for the better or the worse.
export const WORDS = {
  idle: ["WebRTC: connects when it is played", ""],
  connecting: ["Connecting over WebRTC…", "busy"],
  connected: ["Connected over WebRTC, waiting for media…", "busy"],
  playing: ["Live over WebRTC", "good"],
  relayed: ["Live over WebRTC, by a relay", "good"],
  paused: ["WebRTC, paused", "good"],
  ended: ["WebRTC, at the end", "good"],
  reconnecting: ["WebRTC was lost, connecting again…", "busy"],
  failed: ["No WebRTC connection", "bad"],
};

export class LiveMedia extends EventTarget {
  paused = true;
  ended = false;
  seeking = false;
  error = null; // what the connection failed with
  looping = false;
  level = "auto";
  start = 0; // where it begins, until there is a connection
  wire = null; // the connection; it is there from the first wish to play on
  target = 0; // of the latest seek
  seeks = 0;
  defaultPlaybackRate = 1;
  playbackRate = 1;
  buffered = { length: 0 };

  // `connection()` gives {base, token}, `onState(name)` is called with a name of WORDS.
  constructor(element, { path, kind, patience, connection, onState }) {
    super();
    Object.assign(this, { element, path, kind, patience, connection, onState, listening: new AbortController() });
    for (const name of ["volumechange", "resize"]) element.addEventListener(name, () => this.tell(name), { signal: this.listening.signal });
    onState("idle");
  }

  // Later, as a media element does it.
  tell(...names) {
    queueMicrotask(() => names.forEach((name) => this.dispatchEvent(new Event(name))));
  }

  get currentTime() {
    if (this.seeking) return this.target;
    if (this.ended && this.duration) return this.duration;
    return this.wire?.known ? this.wire.position : this.start;
  }

  set currentTime(time) {
    this.start = time;
    if (this.wire) this.seek(time);
    else this.tell("seeking", "seeked", "timeupdate");
  }

  get duration() {
    return this.wire?.duration ?? NaN;
  }

  get videoWidth() {
    return this.element.videoWidth ?? 0;
  }

  get videoHeight() {
    return this.element.videoHeight ?? 0;
  }

  get readyState() {
    return this.element.readyState;
  }

  get muted() {
    return this.element.muted;
  }

  set muted(value) {
    this.element.muted = value;
  }

  get volume() {
    return this.element.volume;
  }

  set volume(value) {
    this.element.volume = value;
  }

  set poster(value) {
    this.element.poster = value;
  }

  // The server repeats without a gap; whether it does is asked for with the content.
  set loop(value) {
    this.looping = value;
    if (this.wire?.wish && this.wire.wish.loop !== value) this.connect(this.currentTime);
  }

  set quality(level) {
    if (level === this.level) return;
    this.level = level;
    this.wire?.setQuality(level).catch(() => this.tell("qualityrefused"));
  }

  // `onSample(message)` is called with what the server says of the connection, every so many seconds; 0 ends it.
  watch(every, onSample = null) {
    Object.assign(this, { every, onSample });
    this.wire?.watch(every);
  }

  requestPictureInPicture() {
    return this.element.requestPictureInPicture();
  }

  async play() {
    if (!this.paused) return;
    this.paused = this.ended = false;
    this.tell("play");
    if (!this.wire) return this.connect(this.start);
    this.ask(this.wire.resume());
  }

  pause() {
    if (this.paused) return;
    this.paused = true;
    this.tell("pause");
    this.ask(this.wire?.pause());
  }

  // Failures of the connection are told by onError, and other ones of a command leave things as they are.
  ask(answer) {
    answer?.catch(() => {});
  }

  async seek(time) {
    const number = ++this.seeks;
    const { wire } = this;
    Object.assign(this, { seeking: true, target: time, ended: false });
    this.tell("seeking");
    await wire.seek(time).catch(() => {});
    if (number !== this.seeks) return;
    this.seeking = false;
    this.tell("timeupdate", "seeked");
  }

  async connect(start) {
    const { element, path, kind, looping: loop, level: quality, patience } = this;
    this.wire?.close();
    const wire = new WebRTCPlayer({
      element,
      onState: (state) => wire === this.wire && this.changed(state),
      onPlayback: ({ duration }) => wire === this.wire && this.played(duration),
      onError: (error) => wire === this.wire && wire.state === "failed" && this.fail(error),
      onMuted: () => this.tell("silenced"),
      onMessage: (message) => message.type === "quality" && wire === this.wire && this.onSample?.(message),
    });
    wire.watch(this.every ?? 0);
    Object.assign(this, { wire, start, seeking: false });
    this.changed("connecting");
    try {
      // asked for with each connection: what the kernel gives is good for some minutes
      let known = await this.connection();
      Object.assign(wire, { base: known.base, token: async () => (known ?? (await this.connection())).token });
      if (wire !== this.wire) return;
      const playing = wire.play(path, { kind, quality, loop, start: this.start, rest: true, patience });
      if (this.paused) this.ask(wire.pause());
      await playing;
      known = null;
    } catch (error) {
      if (wire === this.wire) this.fail(error);
    }
  }

  changed(state) {
    if (state === "closed") return;
    this.onState(state === "paused" && this.ended ? "ended" : state);
    if (state === "playing") {
      this.ended = false;
      this.tell("loadedmetadata", ...(this.paused ? [] : ["playing"]));
      this.wire.relayed().then((relayed) => relayed && this.wire?.state === "playing" && this.onState("relayed"));
    } else if (state === "paused") {
      this.tell("loadedmetadata", "timeupdate");
    } else if (state === "ended") {
      Object.assign(this, { ended: true, paused: true });
      this.ask(this.wire.pause()); // or a seek would play on
      this.tell("timeupdate", "pause", "ended");
    } else if (!this.paused && state !== "failed") {
      this.tell("waiting");
    }
  }

  played(duration) {
    if (duration !== this.told) this.tell("loadedmetadata", "durationchange");
    this.told = duration;
    this.tell("timeupdate");
  }

  fail(error) {
    this.error = error;
    this.onState("failed");
    this.tell("error");
  }

  close() {
    const { wire } = this;
    this.listening.abort();
    this.wire = null;
    wire?.close();
  }
}

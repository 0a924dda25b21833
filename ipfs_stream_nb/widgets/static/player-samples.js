// How playback goes, ten times a second, for charts in the page: what the browser knows of a media element or of a peer
// connection, and over WebRTC what the server says of its own side. Nothing is done while no chart listens.
import { offer } from "./sample-channels.js";

export const limits = {
  every: 100, // ms between two samples
  window: 1000, // ms over which counts become rates
  loading: 3000, // ms, the same of what an element loads, which it does by leaps
  settle: 500, // ms of pictures until playing has begun again, and the least from which they are counted
};
const HAVE_FUTURE_DATA = 3;
const SERVER = ["target_bitrate", "sent_bitrate", "bandwidth_estimate", "rtt", "jitter", "queue_delay", "packet_loss", "frame_rate", "position"];
const WORDS = ["level", "state", "reason"];
const stands = ({ paused, ended, seeking }) => paused || ended || seeking;

// What a count grew by in each second, over the last window, once that has `least` ms.
class Rate {
  seen = [];

  constructor(window = limits.window, least = 0) {
    Object.assign(this, { window, least });
  }

  at(time, count) {
    if (!Number.isFinite(count)) return undefined;
    const { seen } = this;
    if (seen.length && count < seen.at(-1)[1]) seen.length = 0; // it began anew
    seen.push([time, count]);
    while (seen.length > 2 && seen[0][0] < time - this.window) seen.shift();
    const [[first, from]] = seen;
    return time - first > this.least ? ((count - from) / (time - first)) * 1000 : undefined;
  }
}

// What a count grew by while it was of interest.
class Growth {
  sum = 0;
  last = null;

  at(count, counts) {
    if (!Number.isFinite(count)) return undefined;
    if (counts && count > (this.last ?? count)) this.sum += count - this.last;
    this.last = count;
    return this.sum;
  }
}

const pictures = () => new Rate(limits.window, limits.settle);

// Of an element that loads a file: what is ahead, how fast it grows, and how the picture moves.
class FileFigures {
  loaded = new Rate(limits.loading);
  shown = pictures();
  ahead = null; // {end, sum}: how far the part being played was loaded, and what was loaded in all, in seconds of media
  begun = false;
  frozen = { count: 0, seconds: 0, since: null };
  last = null;

  constructor(element, size) {
    Object.assign(this, { element, size });
  }

  async take(now) {
    const { element } = this;
    const { currentTime: position, duration, buffered, videoHeight, videoWidth } = element;
    if (!element.currentSrc || element.error || !Number.isFinite(duration)) return null;
    let end = position;
    for (let i = 0; i < buffered.length; i++) {
      if (buffered.start(i) <= position + 0.1 && buffered.end(i) > position) end = buffered.end(i);
    }
    this.freeze(now, position);
    const quality = element.getVideoPlaybackQuality?.();
    const figures = { position, buffer: end - position, throughput: this.throughput(now, end, duration) };
    if (videoHeight) Object.assign(figures, { width: videoWidth, height: videoHeight, level: "source" });
    if (quality?.totalVideoFrames) {
      figures.frames_dropped = quality.droppedVideoFrames;
      if (stands(element)) this.shown = pictures();
      else figures.frames_per_second = this.shown.at(now, quality.totalVideoFrames - quality.droppedVideoFrames);
    }
    if (this.begun) Object.assign(figures, { freezes: this.frozen.count, freeze_seconds: this.frozen.seconds });
    return figures;
  }

  // An element hides its requests. What it has loaded, in seconds of media, times the mean bytes of a second, is near to it.
  throughput(now, end, duration) {
    const { ahead } = this;
    const grown = ahead ? end - ahead.end : 0;
    const jumped = grown < 0 || (ahead && this.element.seeking);
    this.ahead = { end, sum: (ahead?.sum ?? 0) + (jumped ? 0 : grown) };
    const seconds = this.loaded.at(now, this.ahead.sum);
    return seconds === undefined || !(duration > 0) ? undefined : (seconds * this.size * 8) / duration;
  }

  // It stands still where it should play and has nothing to go on with; before the first picture that is loading.
  freeze(now, position) {
    const { element, frozen, last } = this;
    this.begun ||= last !== null && position !== last.position && !element.seeking;
    const still = this.begun && !stands(element) && element.readyState < HAVE_FUTURE_DATA;
    if (still && frozen.since === null) frozen.count++;
    if (still) frozen.seconds += (now - (frozen.since ?? now)) / 1000;
    frozen.since = still ? now : null;
    this.last = { position };
  }
}

// Of a peer connection: what the server said last, and what the browser counts of what comes.
class LiveFigures {
  told = null; // the server's latest sample
  bytes = new Rate();
  lost = new Rate();
  packets = new Rate();
  waited = new Rate();
  emitted = new Rate();
  freezes = new Growth();
  frozen = new Growth();
  shown = pictures();
  decoded = null; // pictures, when it last stood still
  since = null; // when the first picture came after that

  constructor(media) {
    this.media = media;
    media.watch(limits.every / 1000, (message) => (this.told = { message, at: performance.now() }));
  }

  async take(now) {
    const { media } = this;
    const pc = media.wire?.connection?.pc;
    if (!pc || pc.connectionState !== "connected") return null;
    const figures = this.received(now, [...(await pc.getStats()).values()]);
    if (!this.told || now - this.told.at > limits.window) return figures; // what is old is not known
    const { message } = this.told;
    for (const name of SERVER) if (Number.isFinite(message[name])) figures[name] = message[name];
    if (!figures.height && Number.isFinite(message.height)) figures.height = message.height; // as it comes, or of another size than the width
    for (const name of WORDS) if (typeof message[name] === "string") figures[name] = message[name];
    return figures;
  }

  // Browsers take a pause for a freeze, and say so when the next picture comes.
  plays(now, decoded) {
    if (stands(this.media)) Object.assign(this, { decoded, since: null });
    else if (decoded !== this.decoded) this.since ??= now;
    return this.since !== null && now - this.since >= limits.settle;
  }

  received(now, rows) {
    const inbound = rows.filter(({ type }) => type === "inbound-rtp");
    const sum = (name) => inbound.reduce((all, row) => all + (row[name] ?? 0), 0);
    const row = inbound.find(({ kind }) => kind === "video") ?? inbound[0] ?? {};
    const pair = rows.find(({ type, nominated, state }) => type === "candidate-pair" && nominated && state === "succeeded");
    const lost = this.lost.at(now, Math.max(sum("packetsLost"), 0));
    const came = this.packets.at(now, sum("packetsReceived"));
    const emitted = this.emitted.at(now, row.jitterBufferEmittedCount);
    const waited = this.waited.at(now, row.jitterBufferDelay);
    const plays = this.plays(now, row.framesDecoded ?? row.packetsReceived);
    if (!plays) this.shown = pictures();
    return {
      received_bitrate: (this.bytes.at(now, sum("bytesReceived") + sum("headerBytesReceived")) ?? NaN) * 8,
      packet_loss: lost + came > 0 ? lost / (lost + came) : undefined,
      rtt: pair?.currentRoundTripTime,
      jitter: row.jitter,
      buffer: emitted > 0 ? waited / emitted : undefined,
      frames_per_second: plays ? this.shown.at(now, row.framesDecoded) : undefined,
      frames_dropped: row.framesDropped,
      freezes: this.freezes.at(row.freezeCount, plays),
      freeze_seconds: this.frozen.at(row.totalFreezesDuration, plays),
      width: row.frameWidth,
      height: row.frameHeight,
      position: this.media.currentTime,
    };
  }

  close() {
    this.media.watch(0);
  }
}

// The samples of a player, for as long as it is in the page: of the view that leads, whichever that is.
export class PlayerSamples {
  figures = null;
  timer = null;

  constructor(session) {
    this.session = session;
    const key = session.model.get("_samples_key");
    this.close = key ? offer(key, this) : () => {};
  }

  start(tell) {
    this.timer = setInterval(() => this.take(tell), limits.every);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.look(null);
  }

  look(media, live) {
    if (this.figures?.of === media) return;
    this.figures?.close?.();
    this.figures = media && (live ? new LiveFigures(media) : new FileFigures(media, this.session.model.get("size")));
    if (media) this.figures.of = media;
  }

  async take(tell) {
    const { leader } = this.session;
    this.look(leader?.media ?? null, leader?.live);
    const { figures, timer } = this;
    if (!figures || this.busy) return;
    this.busy = true;
    try {
      const now = performance.now();
      const values = await figures.take(now);
      if (!values || timer !== this.timer) return;
      const known = Object.entries(values).filter(([, value]) => typeof value === "string" || Number.isFinite(value));
      tell({ time: (performance.timeOrigin + now) / 1000, ...Object.fromEntries(known) });
    } catch {
      // a connection that is just being closed tells nothing
    } finally {
      this.busy = false;
    }
  }
}

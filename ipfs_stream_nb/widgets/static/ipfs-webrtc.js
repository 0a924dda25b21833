// Video and sound of IPFS content as live tracks, out of an ipfs_stream_nb server: `WebRTCPlayer`. It needs ipfs-stream.js
// beside it. How it is used: docs/browser.md.
//
// Each way to the server is a Connection: one socket and what the server offers over it. A second play(), a retry over a
// relay and a connection that was lost make another, and the old one is closed: no answer can be taken for another's.
import { IPFSStreamError, Lost, Patience, Socket } from "./ipfs-stream.js";

export const limits = {
  media: 10_000, // ms until picture or sound must have come; half of it for a direct way, where a relay is known
  away: 6_000, // ms that a way which was there may be gone until it is made anew
  doubt: 2_000, // ms until an error that the server tells is taken for the reason why nothing comes
  answer: 10_000, // ms for the answer to a command
  ping: 20_000, // ms between two signs of life
  offline: 1_000, // ms until a browser that says it is offline must have found an address of its own
  look: 50, // ms between two looks whether media has come
  align: 1_000, // ms between two looks how long sound waits; the first comes after a third of it
  longest: 500, // ms that a picture waits for its sound at most
  attempts: 5, // failures in a row after which a connection that was lost is given up
};

const CHANNEL = "ipfs-stream";
const CLOCK_RATES = { video: 90_000, audio: 48_000 }; // ticks a second of RTP timestamps
const MARKS = 8; // of a track that are kept: pictures from before the newest may be on their way still
const ANSWERS = new Set(["playback", "quality_result", "stats"]);
const ENDS = { paused: "paused", ended: "ended" };
const now = () => performance.now();
const asError = (message) => new IPFSStreamError(message.code ?? "internal", message.error ?? message.message ?? "no reason was given");
const isRelay = ({ urls }) => [urls].flat().some((url) => /^turns?:/i.test(url));
const plain = (path) => String(path).replace(/^(\/?ipfs\/|ipfs:\/\/)/, "");

class Connection {
  stream = new MediaStream();
  id = null;
  pc = null;
  live = false; // whether media has come
  placed = false; // whether the server has said where it is
  blocked = false; // whether it was the way that failed
  relays = false; // whether a relay is known
  begun = now();
  early = []; // candidates that came before the description that they belong to
  ours = []; // our own, until the answer is sent
  questions = []; // commands, in the order in which they are answered
  marks = {}; // by kind, which RTP timestamp is what second of the file
  timers = {};
  aborting = new AbortController();

  constructor(player, wish, relay) {
    Object.assign(this, { player, wish, relay });
  }

  get over() {
    return this.aborting.signal.aborted;
  }

  // Until it ends, with the reason, which is thrown.
  async run(deadline) {
    const { signal } = this.aborting;
    const ended = new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
    this.after("media", Math.max(deadline - now(), 0), () => {
      const connected = this.pc?.connectionState === "connected";
      this.lose(`no media came in ${this.wish.patience / 1000} s${this.pc && !connected ? ", as nothing found its way from the server to this browser" : ""}`, !connected);
    });
    try {
      await Promise.race([ended, this.talk(signal)]);
    } catch (error) {
      this.end(error);
      throw signal.reason;
    } finally {
      Object.values(this.timers).forEach(clearTimeout);
      if (this.live) this.player.keep(this.pc);
      else this.pc?.close();
      this.questions.splice(0).forEach(({ reject }) => reject(new IPFSStreamError("disconnected", signal.reason.message)));
    }
  }

  end(reason) {
    this.aborting.abort(reason);
  }

  // What the server said of it tells more than that it is gone.
  lose(text, blocked = true) {
    this.blocked = blocked && !this.doubt;
    this.end(this.doubt ?? Object.assign(new Lost(text), { code: "no_media" }));
  }

  after(name, ms, then) {
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(then, ms);
  }

  async talk(signal) {
    const { path, kind, quality, audio, start, loop } = this.wish;
    const { base, token } = this.player;
    this.socket = await Socket.open(base, "ws/webrtc", { cid: path.split("/")[0] }, { token, signal });
    this.socket.send({ type: "offer_request", cid: path, kind, quality, audio, start, loop });
    this.keepAlive();
    for (;;) await this.receive(await this.socket.inbox.next());
  }

  // A proxy ends what is silent, and a dead network is noticed by what does not come back.
  keepAlive() {
    this.after("ping", limits.ping, () => {
      this.socket.send({ type: "ping" });
      this.keepAlive();
    });
  }

  async receive(message) {
    const mine = message.pc_id === undefined || message.pc_id === this.id;
    if (message.type === "welcome") this.iceServers = message.ice_servers;
    else if (message.type === "offer") await this.offered(message);
    else if (message.type === "candidate") await this.candidate(message);
    else if (!mine) return;
    else if (message.type === "track_offer") await this.negotiate(message);
    else if (message.type === "connected") {
      if (message.state) this.played(message);
      this.connected();
    }
    else if (message.type === "ended") this.played({ state: "ended" });
    else if (message.type === "error") this.failed(message);
    else if (message.type === "closed" || message.type === "closed_all") this.lose("the server closed the connection", false);
    else if (ANSWERS.has(message.type)) this.answered(message);
  }

  // ---- the way: descriptions and candidates

  // A server that offers once more has found no direct way itself, and tries a relay.
  async offered(message) {
    this.pc?.close();
    ["direct", "doubt", "away"].forEach((name) => clearTimeout(this.timers[name]));
    Object.assign(this, { id: message.pc_id, told: false, found: false, doubt: null, live: false, placed: false, marks: {} });
    this.stream.getTracks().forEach((track) => this.stream.removeTrack(track));
    const iceServers = this.player.iceServers ?? message.ice_servers ?? this.iceServers ?? [];
    this.relays = iceServers.some(isRelay);
    const pc = new RTCPeerConnection({ iceServers, iceTransportPolicy: this.relay ? "relay" : "all" });
    this.pc = pc;
    pc.ontrack = ({ track, streams }) => {
      this.stream.addTrack(track);
      for (const stream of streams) stream.onremovetrack = (gone) => this.stream.removeTrack(gone.track);
    };
    pc.onicecandidate = ({ candidate }) => {
      this.found = true;
      if (candidate?.candidate !== "") this.tellCandidate(candidate);
    };
    pc.onconnectionstatechange = () => this.changed(pc);
    pc.ondatachannel = ({ channel }) => {
      if (channel.label !== CHANNEL) return;
      this.channel = channel;
      channel.onopen = () => this.player.watching && this.watch(this.player.watching);
      channel.onmessage = ({ data }) => this.heard(JSON.parse(data));
    };
    if (this.relays && !this.relay) {
      this.after("direct", this.wish.patience / 2, () => pc.connectionState === "connected" || this.lose("there is no direct way to the server"));
    }
    await this.negotiate(message);
    this.awaitMedia(pc).catch((error) => this.end(error));
  }

  async negotiate({ pc_id, sdp }) {
    const { pc } = this;
    await pc.setRemoteDescription({ type: "offer", sdp });
    if (!this.player.stream) this.player.show(this); // with all of its tracks, or a browser would not see that there is sound
    for (const message of this.early.splice(0)) if (message.pc_id === pc_id) await this.candidate(message);
    await pc.setLocalDescription();
    const { sdp: answer, type } = pc.localDescription;
    this.socket.send({ type: "answer", pc_id, sdp: answer, sdpType: type });
    this.told = true;
    this.ours.splice(0).forEach((candidate) => this.tellCandidate(candidate));
    // Without any network browsers look for addresses without end, and leave loopback out.
    if (!navigator.onLine) this.after("offline", limits.offline, () => this.found || this.lose("this browser has no network, without which it does no WebRTC", false));
  }

  // Null, like "" in the protocol, is the end of candidates.
  tellCandidate(candidate) {
    if (!this.told) return void this.ours.push(candidate);
    const { candidate: text = "", sdpMid = "0", sdpMLineIndex = 0 } = candidate ?? {};
    this.socket.send({ type: "candidate", pc_id: this.id, candidate: text, sdpMid, sdpMLineIndex });
  }

  // One that this browser cannot use is no reason to go without the others.
  async candidate(message) {
    const known = message.pc_id === this.id && this.pc?.remoteDescription;
    if (!known) return void (this.early.length < 64 && this.early.push(message));
    const { candidate, sdpMid, sdpMLineIndex } = message;
    await this.pc.addIceCandidate(candidate ? { candidate, sdpMid, sdpMLineIndex } : undefined).catch(() => {});
  }

  changed(pc) {
    if (pc !== this.pc || this.over) return;
    const state = pc.connectionState;
    if (state === "connected") {
      clearTimeout(this.timers.away);
      this.connected();
    } else if (state === "failed") {
      this.lose("nothing finds its way from the server to this browser");
    } else if (state === "disconnected" && this.live) {
      if (!this.player.rests) this.player.become("reconnecting");
      this.after("away", limits.away, () => this.lose("the way from the server to this browser was lost"));
    }
  }

  connected() {
    if (this.live) this.player.follow();
    else this.player.become("connected");
  }

  // ---- what comes

  // Media has come once a picture is decoded, or sound that is alone: packets that no decoder takes are none.
  async awaitMedia(pc) {
    const here = async () => {
      const rows = [...(await pc.getStats()).values()].filter(({ type }) => type === "inbound-rtp");
      const picture = rows.filter(({ kind }) => kind === "video");
      return picture.length ? picture.some(({ framesDecoded }) => framesDecoded > 0) : rows.some(({ packetsReceived }) => packetsReceived > 0);
    };
    while (!this.over && pc === this.pc && !(await here())) await new Promise((resolve) => setTimeout(resolve, limits.look));
    if (this.over || pc !== this.pc) return;
    ["media", "direct", "doubt"].forEach((name) => clearTimeout(this.timers[name]));
    this.live = true;
    this.player.arrived(this);
    await this.align(pc);
  }

  // Sound waits longer than a picture, in a buffer of its own and in the device's, and Chromium takes ten seconds and more to
  // make up for it: from the beginning, pictures wait as long as sound does. (Where sound waits for pictures, which the server asks
  // for where packets are lost, that does not count.)
  async align(pc) {
    const rows = async () => [...(await pc.getStats()).values()];
    const mean = ([sum, count], [sumBefore, countBefore]) => (sum - sumBefore) / (count - countBefore);
    const zero = [0, 0];
    for (let before = [zero, zero], wait = limits.align / 3; ; wait = limits.align) {
      await new Promise((resolve) => setTimeout(resolve, wait));
      if (this.over || pc !== this.pc) return;
      const all = await rows();
      const sound = all.find(({ type, kind }) => type === "inbound-rtp" && kind === "audio");
      const device = all.find(({ type }) => type === "media-playout");
      const sums = [
        sound ? [sound.jitterBufferMinimumDelay ?? sound.jitterBufferDelay, sound.jitterBufferEmittedCount] : zero,
        device ? [device.totalPlayoutDelay, device.totalSamplesCount] : zero,
      ];
      const waits = mean(sums[0], before[0]) + (mean(sums[1], before[1]) || 0);
      const picture = pc.getReceivers().find(({ track }) => track.kind === "video");
      if (picture && waits >= 0) picture.jitterBufferTarget = Math.min(1000 * waits, limits.longest);
      before = sums;
    }
  }

  heard(message) {
    if (this.over) return; // its pc may live on, for its picture
    if (message.type === "playback") this.played(message);
    else if (message.type === "timestamps") this.marked(message);
    else if (["stats", "notification", "quality"].includes(message.type)) this.player.tell(this.player.onMessage, message);
  }

  watch(every) {
    if (this.channel?.readyState === "open") this.channel.send(JSON.stringify({ type: "watch", every }));
  }

  marked({ kind, rtp_timestamp: at, time }) {
    const marks = (this.marks[kind] ??= []);
    marks.push({ at, time });
    if (marks.length > MARKS) marks.shift();
  }

  timeOf(timestamp, kind) {
    const marks = this.marks[kind] ?? [];
    const since = ({ at }) => (timestamp - at) | 0; // both are of 32 bits, and wrap
    const mark = marks.findLast((one) => since(one) >= 0) ?? marks[0];
    return typeof mark?.time === "number" ? Math.max(mark.time + since(mark) / CLOCK_RATES[kind], 0) : null;
  }

  played(message) {
    this.placed = true;
    this.player.played(message);
  }

  answered(message) {
    if (message.type === "playback") this.played(message);
    const found = this.questions.findIndex(({ answer }) => answer === message.type);
    if (found >= 0) this.questions.splice(found, 1)[0].resolve(message);
  }

  // The error of a command is its answer, and a single candidate more or less is nothing. Of others, what comes before there
  // is media says that there will be none, or may do so; a later one may be the reason for what comes next.
  failed(message) {
    const error = asError(message);
    const { request } = message;
    const question = this.questions.find(({ type }) => request === undefined || request === type);
    if (question) question.reject(error);
    else if (request === "candidate") return;
    else if (!this.live && (!this.pc || request === "answer")) this.end(error);
    else {
      this.doubt ??= error;
      this.after("doubt", limits.doubt, () => {
        if (!this.live) return this.end(error);
        this.doubt = null;
        this.player.tell(this.player.onError, error);
      });
    }
  }

  ask(message, answer) {
    return new Promise((resolve, reject) => {
      const question = { type: message.type, answer };
      const settle = (done) => (value) => {
        clearTimeout(timer);
        this.questions = this.questions.filter((one) => one !== question);
        done(value);
      };
      const late = () => question.reject(new IPFSStreamError("timeout", `the server gave no answer to ${message.type} in ${limits.answer / 1000} s`));
      const timer = setTimeout(late, limits.answer);
      Object.assign(question, { resolve: settle(resolve), reject: settle(reject) });
      this.questions.push(question);
      this.socket.send({ ...message, pc_id: this.id });
    });
  }
}

export class WebRTCPlayer {
  state = "closed"; // connecting, connected (media has not come yet), playing, paused, ended, reconnecting, failed or closed
  error = null; // why it failed
  stream = null; // the MediaStream with what has come
  duration = null; // seconds, null while it is not known
  connection = null;
  wish = null; // what is to be played, and how; null while nothing is
  known = null; // {position, state, at}: what the server said last, and when
  waiting = []; // commands that wait for a connection
  wake = null; // ends a rest, in which there is no connection
  watching = 0; // seconds between two `quality` messages, where they are wanted

  constructor({ base, token, element = null, iceServers = null, onState, onPlayback, onError, onMuted, onMessage }) {
    Object.assign(this, { base, token, element, iceServers, onState, onPlayback, onError, onMuted, onMessage });
  }

  // Play a file from `start` (s). Resolves when the first of its media is there, and rejects when none will come, or did not
  // in `patience` ms: from then on nothing runs any more. With `rest`, a connection that is lost while it is paused or at the
  // end is made anew by the next command, and not before.
  async play(path, { kind = "video", quality = "auto", audio = true, start = 0, loop = false, rest = false, patience = limits.media } = {}) {
    this.stop(new IPFSStreamError("closed", "something else is played"));
    const wish = { path: plain(path), kind, quality, audio, start, loop, rest, patience, paused: false };
    this.wish = wish;
    this.known = { position: start, state: "waiting", at: now() };
    this.duration = this.error = null;
    this.become("connecting");
    const started = this.ready();
    this.run(wish).catch((error) => this.wish === wish && this.fail(error));
    await started;
  }

  // Seconds from the start of the file, as far as it is shown here.
  get position() {
    if (!this.known) return 0;
    const { position, state, at } = this.known;
    const moved = state === "playing" && this.state === "playing" ? (now() - at) / 1000 : 0;
    return Math.min(position + moved, this.duration ?? Infinity);
  }

  // Which second of the file a picture shows, by the `rtpTimestamp` that requestVideoFrameCallback tells of it; null where
  // that is not known.
  timeOf(timestamp, kind = "video") {
    return this.connection?.timeOf(timestamp, kind) ?? null;
  }

  // Whether media comes over a relay; null while there is no way.
  async relayed() {
    const report = await this.connection?.pc?.getStats();
    const transport = [...(report?.values() ?? [])].find(({ type }) => type === "transport");
    const pair = report?.get(transport?.selectedCandidatePairId);
    return pair ? [pair.localCandidateId, pair.remoteCandidateId].some((id) => report.get(id)?.candidateType === "relay") : null;
  }

  // seek, pause and resume give where the server then is: {position, state, duration}.
  async seek(seconds) {
    if (!Number.isFinite(seconds) || seconds < 0) throw new IPFSStreamError("bad_request", `seek(${seconds}): expected seconds from the start`);
    if (this.wish) this.wish.start = seconds; // where a new connection begins
    return this.command({ type: "seek", position: seconds });
  }

  async pause() {
    return this.motion("pause");
  }

  async resume() {
    return this.motion("resume");
  }

  async motion(type) {
    const { wish, known } = this;
    if (wish) wish.paused = type === "pause";
    if (type === "resume" && known?.state === "ended") { // from the beginning, in a new connection as well
      wish.start = 0;
      this.known = { position: 0, state: "waiting", at: now() };
    }
    return this.command({ type });
  }

  // Ask the server where it then is. What may rest knows late that its connection is lost, and asks once more in the next one.
  async command(message) {
    const { wish } = this;
    for (;;) {
      const connection = await this.ready();
      try {
        return await connection.ask(message, "playback");
      } catch (error) {
        if (error.code !== "disconnected" || !wish.rest || wish !== this.wish) throw error;
      }
    }
  }

  // very_low, low, medium, high, very_high or auto: whether the server could.
  async setQuality(level) {
    if (this.wake) return (this.wish.quality = level), true;
    const connection = await this.ready();
    const { success } = await connection.ask({ type: "set_quality", quality: level }, "quality_result");
    if (success && this.wish) this.wish.quality = level;
    return success;
  }

  // Have the server send `quality` messages to onMessage every so many seconds, over each connection; 0 ends them.
  watch(every) {
    if (every === this.watching) return;
    this.watching = every;
    this.connection?.watch(every);
  }

  // What the server says of this connection (see docs/protocol.md), and `received`: what came here.
  async stats() {
    const connection = await this.ready();
    const [{ connection_stats: all }, report] = await Promise.all([connection.ask({ type: "get_stats" }, "stats"), connection.pc.getStats()]);
    const received = {};
    for (const row of report.values()) {
      if (row.type !== "inbound-rtp") continue;
      const { bytesReceived: bytes, packetsReceived: packets, packetsLost: lost, jitter, framesDecoded: frames, framesDropped: dropped, frameWidth: width, frameHeight: height } = row;
      received[row.kind] = JSON.parse(JSON.stringify({ bytes, packets, lost, jitter, frames, dropped, width, height })); // without what is undefined
    }
    return { ...all?.[connection.id], received };
  }

  close() {
    this.stop(new IPFSStreamError("closed", "this player was closed"));
    this.become("closed");
  }

  // ---- the connection

  // Connections one after another, until it is closed or no further one is worth a try, which is thrown.
  async run(wish) {
    let patience = new Patience(0); // a caller that can do without does not want to wait
    let deadline = now() + wish.patience;
    let relay = false;
    for (;;) {
      const connection = new Connection(this, wish, relay);
      this.connection = connection;
      const lost = await connection.run(deadline).catch((error) => error);
      if (this.wish !== wish) return;
      const place = this.position;
      if (connection.live) wish.start = place;
      if (connection.live && this.rests) {
        this.known = { ...this.known, position: place, at: now() };
        if (!this.waiting.length) await new Promise((wake) => (this.wake = wake));
        this.wake = null;
        if (this.wish !== wish) return;
        this.become("connecting");
        patience = new Patience(limits.attempts);
        deadline = now() + wish.patience;
        continue;
      }
      if (!connection.live && connection.blocked && connection.relays && !relay) {
        relay = true; // and nothing else, from here on
        deadline = now() + wish.patience / 2;
        continue;
      }
      if (!wish.arrived) {
        if (lost.code === "no_media") throw new IPFSStreamError(lost.code, lost.message);
        await patience.wait(lost); // throws, after a look at what is wrong
      }
      if (connection.live) patience = new Patience(limits.attempts);
      this.known = { position: place, state: "waiting", at: now() };
      this.become("reconnecting", lost);
      await patience.wait(lost);
      if (this.wish !== wish) return;
      deadline = now() + wish.patience;
    }
  }

  // Whether nothing plays, so that a connection would be of no use until something is asked for.
  get rests() {
    const { wish, known } = this;
    return Boolean(wish?.rest && wish.arrived && (wish.paused || known?.state === "ended"));
  }

  // The connection, once it is live.
  ready() {
    if (!this.wish) return Promise.reject(this.error ?? new IPFSStreamError("closed", "nothing is played: play() first"));
    if (this.connection?.live && !this.connection.over) return Promise.resolve(this.connection);
    return new Promise((resolve, reject) => {
      this.waiting.push({ resolve, reject });
      this.wake?.();
    });
  }

  // The picture of a connection that was lost stays until another one takes its place, and with it the pc that it came by.
  keep(pc) {
    this.kept?.close();
    this.kept = this.wish ? pc : void pc?.close();
  }

  show({ stream }) {
    this.stream = stream;
    const { element } = this;
    if (!element || element.srcObject === stream || !stream.getTracks().length) return;
    element.srcObject = stream;
    this.start();
  }

  // A browser that lets no page make a sound by itself may still show a picture.
  async start() {
    const { element } = this;
    try {
      await element.play();
    } catch (error) {
      if (error.name !== "NotAllowedError" || element.muted) return;
      element.muted = true;
      await element.play().catch(() => {});
      this.tell(this.onMuted);
    }
  }

  // A server that has not said where it is does so in its answer, with how long the file is.
  arrived(connection) {
    const { wish } = this;
    wish.arrived = true;
    this.show(connection);
    this.keep(null);
    if (!connection.placed) this.known = { position: wish.start, state: "playing", at: now() };
    if (!connection.placed || wish.paused) connection.ask({ type: wish.paused ? "pause" : "resume" }, "playback").catch(() => {});
    this.waiting.splice(0).forEach(({ resolve }) => resolve(connection));
    this.become(wish.paused ? "paused" : (ENDS[this.known.state] ?? "playing"));
  }

  played({ position = this.duration ?? this.position, state, duration }) {
    if (!this.wish) return;
    this.known = { position, state, at: now() };
    this.duration = duration ?? this.duration;
    this.follow();
    this.tell(this.onPlayback, { position, state, duration: this.duration });
  }

  follow() {
    if (this.connection.live && this.connection.pc.connectionState === "connected") this.become(ENDS[this.known.state] ?? "playing");
  }

  become(state, error) {
    if (this.state === state) return;
    this.state = state;
    this.tell(this.onState, state, error);
  }

  // A mistake in a page's own function is the page's, and ends nothing.
  tell(callback, ...values) {
    try {
      callback?.(...values);
    } catch (error) {
      console.error(error);
    }
  }

  // Each error is told once: to whoever waits for play(), or else to onError.
  fail(error) {
    const told = !this.wish.arrived;
    this.stop(error);
    this.error = error;
    this.become("failed", error);
    if (!told) this.tell(this.onError, error);
  }

  stop(reason) {
    const { connection, waiting } = this;
    Object.assign(this, { wish: null, connection: null, waiting: [], stream: null, known: null });
    connection?.end(reason);
    this.wake?.();
    this.keep(null);
    if (this.element?.srcObject) this.element.srcObject = null;
    waiting.forEach(({ reject }) => reject(reason));
  }
}

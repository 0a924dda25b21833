// IPFS content in any page, out of and into an ipfs_stream_nb server: `stream`, `upload`, `bidirectional` and `sse`.
// No dependencies, no build step. How it is used: docs/browser.md.
//
// What all four do alike: they take the server's base URL (`base`, http or https), a `token` or a function that gives
// one (asked for each connection, so that a short-lived one can be renewed), and an AbortSignal. A connection that is
// lost is made again, and the transfer goes on where it was. What cannot go on is an IPFSStreamError with a `code`.
// Lost, Patience, Socket, address and bearer are exported for ipfs-notifications.js alone.

export const limits = {
  slice: 256 << 10, // bytes of a frame that is sent: small, so that a slow line shows signs of life
  unsent: 2 << 20, // bytes that may wait in a socket; they still go out after a pause
  unread: 8 << 20, // bytes that may wait for a slow reader; a WebSocket cannot be asked to send less
  stall: 60_000, // ms of silence after which a connection that owes something is given up
  firstWait: 250, // ms before a lost connection is made again, doubled with each failure in a row
  longestWait: 10_000,
  attempts: 10, // failures in a row after which a transfer is given up
};

// `code` is one of the server's (bad_request, not_found, unauthorized, too_large, quota_exceeded, busy, …), or ours:
// `disconnected` (the server could not be reached again), `refused` (it can be reached, and a page of another origin may
// not read why it takes no connection) and `unreadable` (the file changed, or went away).
export class IPFSStreamError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "IPFSStreamError";
    this.code = code;
  }
}

// A connection that ended before its work was done. `url`: where the server can be asked why it took none, to which a
// willing one may answer with `willing`.
export class Lost extends Error {
  constructor(message, url = null, willing = []) {
    super(message);
    Object.assign(this, { url, willing });
  }
}

const PASSING = new Set(["busy", "timeout"]);
const asError = (message) => new IPFSStreamError(message.code ?? "internal", message.error ?? message.message ?? "no reason was given");
const now = () => performance.now();
const isBytes = (message) => message instanceof Uint8Array;
const isPassing = (error) => error instanceof Lost || (error instanceof IPFSStreamError && PASSING.has(error.code));

// The URL of a route; `query` without what is undefined or null.
export function address(base, route, query) {
  const root = new URL(base, globalThis.location?.href);
  if (!root.pathname.endsWith("/")) root.pathname += "/";
  const url = new URL(route, root);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null) url.searchParams.set(name, value);
  }
  return url;
}

export const bearer = async (token) => (typeof token === "function" ? await token() : token);

// `<cid>/name…`, also with /ipfs/ or ipfs:// before it, as it stands in a route.
const escaped = (path) => String(path).replace(/^(\/?ipfs\/|ipfs:\/\/)/, "").split("/").map(encodeURIComponent).join("/");

// Ends early when the network is back, and when `target` has an "abort" event.
function sleep(ms, target) {
  return new Promise((resolve) => {
    const events = [[globalThis, "online"], [target, "abort"]];
    const done = () => {
      clearTimeout(timer);
      events.forEach(([target, name]) => target?.removeEventListener?.(name, done));
      resolve();
    };
    const timer = ms < Infinity && setTimeout(done, ms);
    events.forEach(([target, name]) => target?.addEventListener?.(name, done));
  });
}

// A browser hides why a WebSocket or an EventSource was refused; the same route tells a plain request. Throws what is
// final; gives the error for the case that it stays like this, `answered` if the server would have it.
async function diagnose({ url, willing }, lost) {
  const request = { cache: "no-store", credentials: "same-origin", redirect: "manual", signal: AbortSignal.timeout(limits.stall) };
  const gone = new IPFSStreamError("disconnected", lost);
  let answer;
  try {
    answer = await fetch(url, request);
  } catch {
    const opaque = await fetch(url.origin, { mode: "no-cors", cache: "no-store" }).catch(() => null);
    return opaque ? new IPFSStreamError("refused", "the server refuses this, and lets no page of another origin read why: is the token still good?") : gone;
  }
  const { status } = answer;
  const reason = answer.ok ? (answer.body?.cancel(), {}) : await answer.json().catch(() => ({}));
  if (answer.ok || willing.includes(status)) return Object.assign(gone, { answered: true });
  if (PASSING.has(reason.code) || status >= 500) return gone;
  if (reason.code) throw asError(reason);
  if (status === 401 || status === 403 || answer.type === "opaqueredirect") {
    throw new IPFSStreamError("unauthorized", reason.message || "the server does not let you do this: log in, or give a token");
  }
  if (status === 404) throw new IPFSStreamError("not_found", `there is no ipfs_stream_nb server at ${url.origin}`);
  return gone;
}

// When to try again, and when to give up: `attempts` failures in a row with nothing got done in between.
export class Patience {
  failures = 0;

  constructor(attempts = limits.attempts) {
    this.attempts = attempts;
  }

  reset() {
    this.failures = 0;
  }

  // Returns when it is time to try again, or when `target` has an "abort" event, with what is wrong; throws what is final.
  async wait(error, target) {
    if (!isPassing(error)) throw error;
    const lost = error instanceof Lost && `${error.message}, ${this.failures + 1} times in a row`;
    const final = error.url ? await diagnose(error, lost) : lost ? new IPFSStreamError("disconnected", lost) : error;
    if (++this.failures > this.attempts) throw final;
    const most = Math.min(limits.firstWait * 2 ** (this.failures - 1), limits.longestWait);
    await sleep(most * (0.5 + Math.random() / 2), target); // at random, or all clients would come back at once
    return final;
  }
}

// Messages in order, for one reader. What came before the end is read before the end is told.
class Inbox {
  items = [];
  bytes = 0;
  since = 0; // when the reader began to wait; 0 while it does not
  reason = null;
  wake = () => {};

  push(message) {
    if (this.reason) return;
    this.items.push(message);
    this.bytes += message.byteLength ?? 0;
    this.wake();
  }

  end(reason) {
    this.reason ??= reason;
    this.wake();
  }

  async next() {
    while (!this.items.length) {
      if (this.reason) throw this.reason;
      this.since = now();
      await new Promise((resolve) => (this.wake = resolve));
    }
    this.since = 0;
    const message = this.items.shift();
    this.bytes -= message.byteLength ?? 0;
    return message;
  }

  // The next message of a type; others are dropped, and an error is thrown.
  async expect(type) {
    for (;;) {
      const message = await this.next();
      if (message.type === "error") throw asError(message);
      if (message.type === type) return message;
    }
  }
}

export class Socket {
  inbox = new Inbox();
  heard = now(); // the last sign of life
  slow = false; // whether it was ended because nobody read
  wakers = new Set();
  owed = () => this.inbox.since; // since when a message is waited for

  static async open(base, route, query, { token, signal }) {
    const url = address(base, route, { ...query, token: await bearer(token) });
    signal?.throwIfAborted();
    const socket = new Socket(url, signal);
    await socket.opened;
    return socket;
  }

  constructor(url, signal) {
    const wire = new WebSocket(url.href.replace(/^http/, "ws"));
    wire.binaryType = "arraybuffer";
    this.wire = wire;
    this.opened = new Promise((resolve, reject) => {
      wire.onopen = () => (this.open = true) && resolve();
      this.refused = reject;
    });
    wire.onmessage = ({ data }) => this.take(data);
    wire.onclose = ({ code, reason }) => {
      if (!this.open) this.end(new Lost("the server did not take the connection", url, [400, 426]));
      else if (code === 1008) this.end(new IPFSStreamError("unauthorized", reason || "the server ended the connection"));
      else if (code === 1009) this.end(new IPFSStreamError("too_large", reason || "the server takes no more"));
      else this.end(new Lost(`the connection was lost${reason ? ` (${reason})` : ""}`));
    };
    this.aborted = () => this.end(signal.reason);
    this.signal = signal;
    signal?.addEventListener("abort", this.aborted);
    this.watch = setInterval(() => this.look(), limits.stall / 4);
  }

  take(data) {
    this.heard = now();
    this.inbox.push(typeof data === "string" ? JSON.parse(data) : new Uint8Array(data));
    if (this.inbox.bytes > limits.unread && !this.inbox.since) {
      this.slow = true;
      this.end(new Lost("the reader is slower than the server"));
    }
    this.rouse();
  }

  // A browser notices a dead network late, if at all.
  look() {
    const { bufferedAmount } = this.wire;
    if (bufferedAmount < this.buffered) this.heard = now();
    this.buffered = bufferedAmount;
    const since = this.open ? this.owed() : this.heard;
    if (since && now() - Math.max(since, this.heard) >= limits.stall) {
      this.end(new Lost(`the server said nothing for ${limits.stall / 1000} s`));
    }
  }

  rouse() {
    this.wakers.forEach((wake) => wake());
    this.wakers.clear();
  }

  // Nothing more is read or sent; what was sent still goes out.
  end(reason) {
    clearInterval(this.watch);
    this.signal?.removeEventListener("abort", this.aborted);
    this.refused(reason);
    this.inbox.end(reason);
    this.wire.close();
    this.rouse();
  }

  close() {
    this.end(new Lost("the connection was closed"));
  }

  send(message) {
    if (!this.inbox.reason) this.wire.send(isBytes(message) ? message : JSON.stringify(message));
  }

  // Returns when the socket takes more and `ready()`. Timers alone would crawl in a hidden tab: messages wake as well.
  async room(ready) {
    for (;;) {
      if (this.inbox.reason) throw this.inbox.reason;
      const full = this.wire.bufferedAmount > limits.unsent;
      if (!full && ready()) return;
      await new Promise((resolve) => {
        const timer = full && setTimeout(resolve, 10);
        this.wakers.add(() => (clearTimeout(timer), resolve()));
      });
    }
  }
}

// Send a blob from `at` to its end: never more of it in memory than a slice and what waits in the socket. `flow`: how
// many bytes may go out now (`most`), and how (`send`).
async function pour(blob, at, socket, flow) {
  while (at < blob.size) {
    await socket.room(() => flow.most() > 0);
    const end = Math.min(at + Math.min(limits.slice, flow.most()), blob.size);
    let data;
    try {
      data = await blob.slice(at, end).arrayBuffer();
    } catch (error) {
      throw new IPFSStreamError("unreadable", `the file cannot be read, or was changed: ${error.message}`);
    }
    flow.send(new Uint8Array(data));
    at = end;
  }
  await socket.room(() => flow.most() > 0);
}

// A file's bytes, over as many connections as it takes. `open(at, length)` gives a source: {inbox, close(), slow, took?()}.
async function* resumed(open, { offset = 0, length, signal, attempts, onMetadata, onProgress }) {
  signal?.throwIfAborted();
  const patience = new Patience(attempts);
  let at = offset;
  let end = null;
  let window = Infinity; // a reader that was too slow once gets parts that it can hold
  for (;;) {
    let source;
    try {
      const left = end === null ? length : end - at;
      source = await open(at, window === Infinity ? left : Math.min(window, left));
      for (let whole = false; !whole; ) {
        const message = await source.inbox.next();
        if (isBytes(message)) {
          at += message.length;
          patience.reset();
          onProgress?.({ bytes: at - offset, total: end - offset });
          yield message;
          source.took?.(message.length);
        } else if (message.type === "metadata" && end === null) {
          end = message.offset + message.length;
          onMetadata?.(message);
        } else if (message.type === "error") {
          throw asError(message);
        }
        whole = message.type === "complete";
      }
      if (at >= end) return;
    } catch (error) {
      if (error instanceof Lost && at === end) return; // all of it came, and the word that it did was lost
      if (source?.slow && error instanceof Lost) window = limits.unread;
      else await patience.wait(error, signal);
      signal?.throwIfAborted();
    } finally {
      source?.close();
    }
  }
}

// The bytes of `path` (`<cid>[/name…]`), or of a part of it: an async iterator of Uint8Array.
export function stream(base, path, { token, ...options } = {}) {
  const { signal } = options;
  const open = (offset, length) => Socket.open(base, `ws/stream/${escaped(path)}`, { offset, length, progress: 0 }, { token, signal });
  return resumed(open, options);
}

class Upload {
  paused = false;
  cancelled = false;
  durable = 0;
  turns = new EventTarget(); // its "abort" events end a wait early

  constructor(base, blob, options) {
    Object.assign(this, { base, blob, options, id: options.uploadId ?? null, patience: new Patience(options.attempts) });
  }

  start() {
    const { signal } = this.options;
    const cancel = () => this.cancel(signal.reason);
    const done = new Promise((resolve, reject) => {
      this.giveUp = reject;
      signal?.addEventListener("abort", cancel);
      if (signal?.aborted) cancel();
      this.run().finally(() => signal?.removeEventListener("abort", cancel)).then(resolve, reject);
    });
    return Object.assign(done, {
      pause: () => this.pause(),
      resume: () => this.resume(),
      cancel: () => this.cancel(new DOMException("the upload was cancelled", "AbortError")),
    });
  }

  pause() {
    if (this.paused || this.finishing) return;
    this.paused = true;
    this.tell("paused");
    this.rest();
  }

  // What cannot be resumed keeps its connection, for as long as the server waits.
  rest() {
    if (this.ready && this.id) this.socket.close();
  }

  resume() {
    if (!this.paused) return;
    this.paused = false;
    this.patience.reset();
    this.tell(this.ready ? "sending" : "connecting");
    this.turn();
  }

  cancel(reason) {
    this.cancelled = true;
    this.paused = false;
    this.giveUp(reason);
    if (this.ready) {
      this.socket.send({ type: "cancel" });
      this.socket.close();
    }
    this.turn();
  }

  turn() {
    this.turns.dispatchEvent(new Event("abort"));
    this.socket?.rouse();
  }

  tell(state) {
    if (!this.cancelled) this.options.onState?.(state);
  }

  async run() {
    for (;;) {
      while (this.paused) await sleep(Infinity, this.turns);
      if (this.cancelled && !this.id) return null;
      try {
        return await this.attempt();
      } catch (error) {
        if (this.cancelled) return null; // what the server still has of it will expire
        if (this.ready && error.code === "busy") throw error; // another page has taken it over
        if (this.id && !this.ready && ["not_found", "bad_request"].includes(error.code)) {
          this.id = null; // it has expired, or this node keeps none: from the beginning
        } else if (!this.paused || !isPassing(error)) {
          this.tell("waiting");
          await this.patience.wait(error, this.turns);
        }
      } finally {
        this.ready = this.finishing = false;
        this.socket?.close();
        this.socket = null;
      }
    }
  }

  async attempt() {
    const { base, blob, options } = this;
    if (!this.paused) this.tell("connecting");
    const socket = (this.socket = await Socket.open(base, "ws/upload", {}, { token: options.token }));
    socket.send({
      filename: options.name ?? blob.name,
      size: blob.size,
      mime_type: blob.type || undefined,
      upload_id: this.id ?? undefined,
      cid_profile: options.profile ?? undefined,
      pin: options.pin,
    });
    const { upload_id: id, offset } = await socket.inbox.expect("ready");
    Object.assign(this, { id, ready: true });
    if (this.cancelled) {
      socket.send({ type: "cancel" });
      await socket.inbox.expect("cancelled");
      return null;
    }
    options.onReady?.({ uploadId: id, offset });
    this.progress(offset, offset);
    if (this.paused) this.rest();
    else this.tell("sending");
    const [result] = await Promise.all([this.listen(socket), this.send(socket, offset)]);
    return result;
  }

  async send(socket, offset) {
    const flow = { most: () => (this.paused ? 0 : limits.slice), send: (data) => socket.send(data) };
    await pour(this.blob, offset, socket, flow);
    this.finishing = true;
    this.tell("finishing");
    socket.send({ type: "complete" });
  }

  async listen(socket) {
    for (;;) {
      const message = await socket.inbox.next();
      if (message.type === "error") throw asError(message);
      if (message.type === "result") return { cid: message.cid, size: message.size };
      if (message.type === "progress") this.progress(message.bytes_processed, message.durable);
    }
  }

  progress(bytes, durable) {
    if (durable > this.durable) this.patience.reset();
    this.durable = durable;
    if (!this.cancelled) this.options.onProgress?.({ bytes, total: this.blob.size, durable });
  }
}

// Upload a File or Blob. A promise of {cid, size}, with pause(), resume() and cancel().
export function upload(base, blob, options = {}) {
  return new Upload(base, blob, options).start();
}

// One transfer of a two-way socket, as a source for `resumed`.
class Transfer {
  inbox = new Inbox();
  credit = 0; // bytes that the server takes
  owing = 0; // bytes that were read, and for which no credit was given yet

  constructor(id, socket, signal, forget) {
    Object.assign(this, { id, socket, signal, forget });
    this.aborted = () => this.end(signal.reason);
    signal?.addEventListener("abort", this.aborted);
  }

  take(message) {
    if (message.credit) this.credit = message.credit;
    if (message.type === "credit") this.credit += message.bytes;
    else this.inbox.push(message);
    if (["complete", "result", "pin_result", "error", "cancelled"].includes(message.type)) this.over = true;
    this.socket.rouse();
  }

  took(bytes) {
    this.owing += bytes;
    if (this.owing < limits.slice || this.over) return;
    this.socket.send({ command: "credit", id: this.id, bytes: this.owing });
    this.owing = 0;
  }

  most() {
    if (this.over || this.inbox.reason) throw new Lost("the transfer has ended"); // the inbox tells why
    return this.credit;
  }

  send(data) {
    const frame = new Uint8Array(4 + data.length);
    new DataView(frame.buffer).setUint32(0, this.id);
    frame.set(data, 4);
    this.credit -= data.length;
    this.socket.send(frame);
  }

  end(reason) {
    this.inbox.end(reason);
    this.socket.rouse();
  }

  close() {
    this.signal?.removeEventListener("abort", this.aborted);
    if (!this.over) this.socket.send({ command: "cancel", id: this.id });
    this.over = true;
    this.forget();
  }
}

class Bidirectional {
  transfers = new Map();
  last = 0;
  connecting = null; // promise of the socket
  closed = false;

  constructor(base, options) {
    Object.assign(this, { base, options });
  }

  // The bytes of `path`, or of a part of it, as `stream` gives them.
  get(path, options = {}) {
    const open = (offset, length) => this.begin({ command: "get", path: String(path), offset, length }, options.signal);
    return resumed(open, { attempts: this.options.attempts, ...options });
  }

  // Add a File or Blob; gives {cid, size}.
  add(blob, { name, profile, onProgress, ...options } = {}) {
    let id;
    const command = () => ({ command: "add", filename: name ?? blob.name, size: blob.size, upload_id: id, cid_profile: profile });
    const never = new Promise(() => {});
    return this.ask(command, options, async (transfer, patience) => {
      const ready = await transfer.inbox.expect("ready");
      id = ready.upload_id ?? undefined;
      const sent = pour(blob, ready.offset, transfer.socket, transfer).then(
        () => transfer.socket.send({ command: "end", id: transfer.id }),
        (error) => {
          if (!(error instanceof Lost)) throw error;
        },
      );
      const listen = async () => {
        for (;;) {
          const message = await transfer.inbox.next();
          if (message.type === "error") throw asError(message);
          if (message.type === "result") return { cid: message.cid, size: message.size };
          if (message.type !== "progress") continue;
          if (message.durable > ready.offset) patience.reset();
          onProgress?.({ bytes: message.bytes_processed, total: blob.size, durable: message.durable });
        }
      };
      return Promise.race([listen(), sent.then(() => never)]);
    });
  }

  // Pin a CID; gives the server's pin_result.
  pin(cid, options = {}) {
    return this.ask(() => ({ command: "pin", cid: String(cid) }), options, (transfer) => transfer.inbox.expect("pin_result"));
  }

  // Let what is under way end (the server waits some seconds for it), and close the connection.
  async close() {
    this.closed = true;
    const socket = await this.connecting?.catch(() => null);
    socket?.send({ command: "close" });
    await this.pumping;
  }

  // A transfer from its command to its result, once more where the connection was lost in between.
  async ask(command, { signal, attempts = this.options.attempts }, work) {
    const patience = new Patience(attempts);
    for (;;) {
      let transfer;
      try {
        transfer = await this.begin(command(), signal);
        return await work(transfer, patience);
      } catch (error) {
        await patience.wait(error, signal);
      } finally {
        transfer?.close();
      }
    }
  }

  async begin(command, signal) {
    signal?.throwIfAborted();
    const socket = await this.connect();
    if (socket.inbox.reason) throw socket.inbox.reason;
    const id = (this.last = (this.last % 0xffffffff) + 1);
    const transfer = new Transfer(id, socket, signal, () => this.transfers.delete(id));
    this.transfers.set(id, transfer);
    socket.send({ ...command, id });
    return transfer;
  }

  connect() {
    if (this.closed) throw new IPFSStreamError("disconnected", "this two-way connection was closed; bidirectional() makes another");
    this.connecting ??= Socket.open(this.base, "ws/bidirectional", {}, this.options).then(
      (socket) => {
        socket.owed = () => this.owed();
        this.pumping = this.pump(socket);
        return socket;
      },
      (error) => {
        this.connecting = null;
        throw error;
      },
    );
    return this.connecting;
  }

  // Since when a transfer waits for the server; 0 where none does.
  owed() {
    const waits = [...this.transfers.values()].map((transfer) => transfer.inbox.since).filter(Boolean);
    return waits.length ? Math.min(...waits) : 0;
  }

  async pump(socket) {
    try {
      for (;;) {
        const message = await socket.inbox.next();
        const id = isBytes(message) ? new DataView(message.buffer).getUint32(0) : message.id;
        this.transfers.get(id)?.take(isBytes(message) ? message.subarray(4) : message);
      }
    } catch (error) {
      this.connecting = null;
      for (const transfer of this.transfers.values()) {
        transfer.over = true;
        transfer.end(error);
      }
    }
  }
}

// One socket for many transfers at once, none of which holds up another: get(), add(), pin(), close().
export function bidirectional(base, options = {}) {
  return new Bidirectional(base, options);
}

function fromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

// An EventSource, as a source for `resumed`. It comes again by itself, with Last-Event-ID, after a lost connection.
class Events {
  inbox = new Inbox();
  slow = false;
  failures = 0;

  constructor(url, offset, attempts, signal) {
    const wire = new EventSource(url);
    Object.assign(this, { wire, url, at: offset, attempts, signal });
    const on = (name, take) => wire.addEventListener(name, take);
    on("metadata", ({ data }) => this.inbox.push(JSON.parse(data)));
    on("chunk", (event) => this.chunk(event));
    on("complete", ({ data }) => {
      this.inbox.push({ ...JSON.parse(data), type: "complete" });
      this.close(); // or it would come again, and again
    });
    // The server's own `error` event has data; the browser's, for a lost connection, has none.
    on("error", ({ data }) => (data ? this.inbox.push({ ...JSON.parse(data), type: "error" }) : this.lost()));
    this.aborted = () => this.end(signal.reason);
    signal?.addEventListener("abort", this.aborted);
  }

  chunk({ data, lastEventId }) {
    const bytes = fromBase64(data);
    const skip = this.at - (Number(lastEventId) - bytes.length);
    if (skip < 0) return this.end(new Lost("a piece is missing"));
    this.failures = 0;
    if (skip < bytes.length) this.inbox.push(bytes.subarray(skip));
    this.at = Math.max(this.at, Number(lastEventId));
    if (this.inbox.bytes > limits.unread && !this.inbox.since) {
      this.slow = true;
      this.end(new Lost("the reader is slower than the server"));
    }
  }

  lost() {
    if (this.wire.readyState === EventSource.CLOSED) this.end(new Lost("the server takes no connection", this.url));
    else if (++this.failures > this.attempts) this.end(new IPFSStreamError("disconnected", `the server was not reached, ${this.failures} times in a row`));
  }

  end(reason) {
    this.signal?.removeEventListener("abort", this.aborted);
    this.wire.close();
    this.inbox.end(reason);
  }

  close() {
    this.end(new Lost("the connection was closed"));
  }
}

// The bytes of `path` over server-sent events, for where a proxy lets no WebSocket through; as `stream` otherwise.
export function sse(base, path, { token, ...options } = {}) {
  const { attempts = limits.attempts, signal } = options;
  const open = async (offset, length) => {
    const url = address(base, `sse/stream/${escaped(path)}`, { offset, length, token: await bearer(token) });
    signal?.throwIfAborted();
    return new Events(url, offset, attempts, signal);
  };
  return resumed(open, options);
}

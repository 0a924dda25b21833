// Live notifications of an ipfs_stream_nb server in any page, each exactly once. How it is used: docs/browser.md.
//
// A connection that is lost is made again and goes on where it was, for as long as the server is away. Where no WebSocket
// comes through, events come as server-sent events. What cannot go on is an IPFSStreamError with a `code`.
import { IPFSStreamError, Lost, Patience, Socket, address, bearer } from "./ipfs-stream.js";

export const limits = {
  unread: 1000, // events that wait for `for await`; a browser cannot read less, so the connection rests until they are read
  answer: 60_000, // ms that a command waits for its answer, a server that is away included
  ping: 5000, // the same for ping(), which is to tell soon that it is away
  command: 64_000, // characters of a command: a server takes 65,536, which leaves room for what subscribing again adds
  alive: 5000, // ms that a connection has to answer once the page wakes up
  steady: 10_000, // ms after which a connection counts as a good one, though it brought no event
  sockets: 2, // WebSockets in a row that could not be had, before server-sent events are tried
  refusals: 4, // connections in a row that a server refused to a page which may not read why, before that is final
};

const OPTIONS = ["baseUrl", "token", "types", "filters", "since", "onNotification", "onState", "onGap"];
const GAPS = ["lagged", "reset"];
const FINAL = new Set(["unauthorized", "bad_request", "too_large", "refused"]);
const isEvent = ({ type }) => type === "notification" || type === "system_notification";
const asList = (types) => (typeof types === "string" ? [types] : [...types]);
const badRequest = (text) => new IPFSStreamError("bad_request", text);
const closedError = () => new IPFSStreamError("closed", "these notifications were closed");

// "epoch-id", or an id of the log that there is.
function readCursor(since, epoch) {
  if (Number.isSafeInteger(since) && since >= 0) return { epoch, at: since };
  const [, before, at] = /^([A-Za-z0-9._]+)-(\d{1,15})$/.exec(since) ?? [];
  if (!before) throw badRequest(`since is the id of an event, or a cursor such as "8f3a-120", not ${JSON.stringify(since)}`);
  return { epoch: before, at: Number(at) };
}

// The types that are wanted, and up to which id each one's events have come. A server sends what a connection wants in one
// rising order; it begins that anew, further back, only where the connection subscribes with an older cursor.
class Positions {
  epoch = "";
  passed = 0; // the highest id that has come, or was told
  wanted = new Map(); // by type: {filters, epoch, at, live: subscribed to on this connection}
  available = [];
  prev = null; // what the next event is to name as the one before it, where that is known

  // A connection begins. Gives the subscriptions that go on where the last one ended, the furthest first.
  welcome({ epoch, last_id, available_notifications }) {
    const groups = this.groups();
    if (epoch !== this.epoch || last_id < this.passed) this.passed = last_id;
    Object.assign(this, { epoch, prev: null, available: available_notifications });
    for (const one of this.wanted.values()) {
      one.live = false;
      if (one.epoch === epoch && one.at > last_id) one.epoch = ""; // a log that was put back: ids are given again
    }
    return groups;
  }

  groups() {
    const groups = new Map();
    for (const [type, { filters, epoch, at }] of this.wanted) {
      const key = JSON.stringify([at, epoch, filters]);
      if (!groups.has(key)) groups.set(key, { types: [], filters, since: `${epoch}-${at}`, at });
      groups.get(key).types.push(type);
    }
    return [...groups.values()].sort((a, b) => b.at - a.at);
  }

  each(types) {
    return types.includes("all_events") ? this.available.filter((type) => type !== "all_events") : types;
  }

  subscribed(filters, { notification_types, epoch, since }) {
    for (const type of this.each(notification_types)) this.wanted.set(type, { filters, epoch, at: since, live: true });
    if (epoch === this.epoch) this.passed = Math.max(this.passed, since);
    this.prev = null;
  }

  resumed({ notification_types }) {
    for (const type of this.each(notification_types)) if (this.wanted.has(type)) this.wanted.get(type).live = true;
    this.prev = null;
  }

  unsubscribed({ notification_types }) {
    for (const type of this.each(notification_types)) this.wanted.delete(type);
  }

  // The log begins with `first`. Gives how many events are lost at the most, null where nobody knows, undefined for none.
  reset({ epoch, first }, asked) {
    const lost = [];
    if (asked) lost.push(asked.epoch === epoch && asked.at < first ? first - 1 - asked.at : null);
    for (const one of this.wanted.values()) {
      if (one.epoch === epoch && one.at >= first - 1) continue;
      lost.push(one.epoch === epoch ? first - 1 - one.at : null);
      Object.assign(one, { epoch, at: first - 1 });
    }
    this.passed = epoch === this.epoch ? Math.max(this.passed, first - 1) : first - 1;
    Object.assign(this, { epoch, prev: null });
    return lost.length ? (lost.includes(null) ? null : Math.max(...lost)) : undefined;
  }

  // Whether an event is wanted and new; it counts as come.
  take({ type, notification_type, id, prev }) {
    const one = this.wanted.get(notification_type);
    const forAll = type === "system_notification";
    if (id === undefined) return Boolean(one) || forAll;
    if (prev !== undefined && (this.prev === null ? prev > this.passed : prev !== this.prev)) {
      throw new Lost(`the event ${id} comes after the event ${prev}, which did not come`);
    }
    const come = one ? this.at(one) : this.passed;
    this.prev = id;
    this.passed = Math.max(this.passed, id);
    for (const each of this.wanted.values()) if (each.live && this.at(each) < id) Object.assign(each, { epoch: this.epoch, at: id });
    return id > come && (Boolean(one) || forAll);
  }

  at({ epoch, at }) {
    return epoch === this.epoch ? at : -1;
  }

  // Up to where nothing is missing of any type; null where that cannot be told.
  get cursor() {
    const ids = [...this.wanted.values()].map((one) => this.at(one));
    const behind = ids.length ? Math.min(...ids) : this.passed;
    return behind < 0 ? null : `${this.epoch}-${behind}`;
  }
}

// An EventSource with one subscription, as a Socket whose only command was given in its address.
class Events {
  constructor(url, onMessage, onEnd) {
    const wire = new EventSource(url);
    this.wire = wire;
    this.onEnd = onEnd;
    wire.onmessage = ({ data }) => onMessage(JSON.parse(data));
    for (const name of ["welcome", "subscription_confirmed", ...GAPS]) wire.addEventListener(name, wire.onmessage);
    // It would come again by itself, but with the last id that it saw, and not with the one that was taken.
    wire.onerror = ({ data }) => this.end(new Lost(data ?? "the connection was lost", this.heard ? null : url));
  }

  send() {}

  end(reason) {
    this.wire.close();
    this.onEnd(reason);
  }
}

export class Notifications {
  state = "connecting"; // connecting, live, reconnecting, refused (see `error`) or closed
  error = null;
  cursor = null; // "epoch-id" up to which nothing is missing of what was handed out: `since` for another time
  missed = 0; // events that are lost at the most, since the log did not have them any more; null where nobody knows

  positions = new Positions();
  commands = []; // in order; what was sent waits for its answer
  unread = [];
  failures = 0; // connections in a row that a server which is there did not come to
  turns = new EventTarget(); // its "abort" events end a wait early
  wakeReader = () => {};

  constructor(options = {}) {
    const { baseUrl, token, types = ["all_events"], filters = {}, since, onNotification, onState, onGap } = options;
    const unknown = Object.keys(options).find((name) => !OPTIONS.includes(name));
    if (unknown) throw badRequest(`Notifications has no option ${unknown}; it has ${OPTIONS.join(", ")}`);
    if (!baseUrl) throw badRequest("Notifications needs baseUrl: the URL of a server, as new Notifications({ baseUrl, token })");
    Object.assign(this, { baseUrl, token, onNotification, onState, onGap });
    this.wakes = [[globalThis, "online"], [globalThis, "pageshow"], [globalThis.document, "visibilitychange"]];
    this.rouse = () => this.lookAround();
    this.wakes.forEach(([target, name]) => target?.addEventListener?.(name, this.rouse));
    this.subscribe(types, { filters, since }).then(
      ({ notification_types, invalid_types, unauthorized_types }) => {
        const taken = notification_types.length && (!unauthorized_types.length || asList(types).includes("all_events"));
        if (invalid_types.length) this.fail(badRequest(`no notification types: ${invalid_types.join(", ")}`));
        else if (taken) this.go();
        else this.fail(new IPFSStreamError("unauthorized", `you may not see ${unauthorized_types.join(", ")}`));
      },
      (error) => this.fail(error),
    );
    for (const first of this.commands) first.start = () => {}; // it has all the time that a server takes to come
    this.run().catch((error) => this.fail(error));
  }

  // Have events of more types come, or with other filters. Gives the server's confirmation.
  async subscribe(types, { filters = {}, since } = {}) {
    const message = { action: "subscribe", notification_types: asList(types), filters };
    if (since || since === 0) {
      const { epoch, at } = readCursor(since, this.positions.epoch);
      Object.assign(message, { since: at, ...(epoch && { epoch }) });
    }
    return this.ask(message, "subscription_confirmed", (answer) => {
      this.positions.subscribed(filters, answer);
      const { cursor } = this.positions; // the feed's begins there, too, once what came before is read
      if (cursor) Object.assign(this.unread.at(-1) ?? this, { cursor });
    });
  }

  async unsubscribe(types) {
    const message = { action: "unsubscribe", notification_types: asList(types) };
    return this.ask(message, "unsubscription_confirmed", (answer) => this.positions.unsubscribed(answer));
  }

  // The newest events of the log, oldest first; with `since` the oldest behind that one.
  async history({ limit = 50, type, since } = {}) {
    const { epoch, at } = since || since === 0 ? readCursor(since, this.positions.epoch) : {};
    return (await this.ask({ action: "get_history", limit, notification_type: type, since: at, epoch }, "history")).events;
  }

  // Milliseconds that the server takes to answer.
  async ping() {
    const begun = performance.now();
    await this.ask({ action: "ping" }, "pong", undefined, limits.ping);
    return performance.now() - begun;
  }

  close() {
    this.finish("closed", closedError());
  }

  async *[Symbol.asyncIterator]() {
    if (this.onNotification) throw badRequest("onNotification takes these events: make another Notifications to loop over");
    try {
      for (;;) {
        while (this.unread.length) {
          const { event, cursor } = this.unread.shift();
          this.cursor = cursor ?? this.cursor;
          if (this.unread.length <= limits.unread / 2) this.turn();
          yield event;
        }
        if (this.state === "refused") throw this.error;
        if (this.state === "closed") return;
        await new Promise((resolve) => (this.wakeReader = resolve));
      }
    } finally {
      this.close();
    }
  }

  // ---- the connection

  get over() {
    return this.state === "closed" || this.state === "refused";
  }

  // The first subscription is confirmed.
  go() {
    this.begun = true;
    this.become("live");
  }

  become(state, error) {
    if (this.state === state || this.over) return;
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

  finish(state, error) {
    if (this.over) return;
    this.become(state, state === "refused" ? error : undefined);
    this.wakes.forEach(([target, name]) => target?.removeEventListener?.(name, this.rouse));
    this.commands.splice(0).forEach((command) => command.reject(error));
    if (state === "closed") this.unread.length = 0;
    this.wire?.end(new Lost("the connection was closed"));
    this.wakeReader();
    this.turn();
  }

  fail(error) {
    this.error ??= error;
    this.finish("refused", error);
  }

  turn() {
    this.turns.dispatchEvent(new Event("abort"));
  }

  // The network is back, or the page was asleep: a browser notices a dead connection late, if at all.
  lookAround() {
    if (globalThis.document?.visibilityState === "hidden") return;
    this.turn();
    const { wire } = this;
    if (wire instanceof Events) wire.end(new Lost("the page was asleep"));
    if (!(wire instanceof Socket)) return;
    const timer = setTimeout(() => wire.end(new Lost(`no answer came in ${limits.alive / 1000} s after the page was asleep`)), limits.alive);
    this.ask({ action: "ping" }, "pong").catch(() => {}).finally(() => clearTimeout(timer));
  }

  async run() {
    await null; // whoever makes this has it before the first state is told
    const patience = new Patience(Infinity);
    let opaque = 0;
    while (!this.over) {
      const begun = performance.now();
      let lost;
      try {
        await this.connection(patience);
      } catch (error) {
        lost = error;
      }
      this.wire = null;
      if (this.over) return;
      if (performance.now() - begun > limits.steady) patience.reset();
      if (this.resting) {
        while (this.unread.length > limits.unread / 2 && !this.over) await new Promise((resolve) => this.turns.addEventListener("abort", resolve, { once: true }));
        this.resting = false;
        continue;
      }
      this.become(this.known ? "reconnecting" : "connecting", lost);
      let wrong;
      try {
        wrong = await patience.wait(lost, this.turns);
      } catch (error) {
        if (!(error instanceof IPFSStreamError) || FINAL.has(error.code) || !this.known) throw error;
        wrong = await patience.wait(new Lost(error.message), this.turns);
      }
      if (wrong.answered || wrong.code === "refused") this.failures++;
      opaque = wrong.code === "refused" ? opaque + 1 : 0;
      if (opaque >= limits.refusals) throw wrong;
    }
  }

  // One connection from its beginning to its end, which is thrown.
  async connection(patience) {
    Object.assign(this, { patience, greeted: false });
    const asEvents = this.failures >= limits.sockets && this.failures % 2 === 0 && this.onlyGroup();
    for (const command of this.commands) command.sent = false;
    this.commands = this.commands.filter((command) => !command.again && !command.late);
    const token = await this.freshToken();
    if (asEvents) {
      return this.listen(asEvents, token).finally(() => {
        if (this.greeted) this.failures = limits.sockets - 1; // what was in the way may be gone
      });
    }
    const socket = await Socket.open(this.baseUrl, "ws/notifications", {}, { token });
    this.failures = 0;
    this.wire = socket;
    if (this.over) socket.close();
    try {
      for (;;) this.receive(await socket.inbox.next());
    } finally {
      socket.close();
    }
  }

  // Whoever gives tokens, such as a busy kernel, may fail for a while, once it could.
  async freshToken() {
    try {
      return await bearer(this.token);
    } catch (error) {
      throw this.known ? new Lost(`no token could be had: ${error.message}`) : error;
    }
  }

  // What server-sent events can bring: one subscription with its filters.
  onlyGroup() {
    const [group, ...others] = this.positions.groups();
    if (group) return others.length ? null : group;
    const { message } = this.commands[0] ?? {};
    if (message?.action !== "subscribe") return null;
    const { notification_types: types, filters, since, epoch } = message;
    return { types, filters, since: epoch ? `${epoch}-${since}` : since, first: this.commands[0] };
  }

  async listen({ types, filters, since, first }, token) {
    const query = { types: types.join(), filters: JSON.stringify(filters), since, token };
    if (this.over) return;
    await new Promise((_, reject) => {
      const take = (message) => {
        this.wire.heard = true;
        try {
          this.receive(message);
        } catch (error) {
          this.wire?.end(error);
        }
      };
      if (first) first.sent = true;
      this.wire = new Events(address(this.baseUrl, "sse/notifications", query), take, reject);
      for (const command of this.commands) if (command !== first) this.cannot(command);
    });
  }

  cannot(command) {
    this.commands = this.commands.filter((one) => one !== command);
    command.reject(new IPFSStreamError("unsupported", "this connection lets no WebSocket through: it has one subscription and no commands"));
  }

  receive(message) {
    if (this.resting || this.over) return;
    if (isEvent(message)) this.event(message);
    else if (GAPS.includes(message.type)) this.gap(message);
    else if (message.type === "welcome") this.welcomed(message);
    else this.answered(message);
  }

  welcomed(message) {
    this.greeted = this.known = true;
    if (this.wire instanceof Events) {
      this.positions.welcome(message);
    } else {
      const again = this.positions.welcome(message).map(({ types, filters, since }) => {
        const { epoch, at } = readCursor(since);
        return { message: { action: "subscribe", notification_types: types, filters, since: at, epoch }, answer: "subscription_confirmed", again: true };
      });
      this.commands.unshift(...again.map((command) => ({ ...command, then: (answer) => this.positions.resumed(answer), start() {}, resolve() {}, reject() {} })));
      this.flush();
    }
    if (this.begun) this.become("live");
  }

  event(message) {
    if (!this.positions.take(message)) return;
    this.patience.reset();
    const cursor = message.id === undefined ? null : this.positions.cursor;
    if (this.onNotification) {
      this.cursor = cursor ?? this.cursor;
      this.tell(this.onNotification, message);
      return;
    }
    this.unread.push({ event: message, cursor });
    this.wakeReader();
    if (this.unread.length < limits.unread) return;
    this.resting = true;
    this.wire.end(new Lost("the reader is slower than the server"));
  }

  gap(message) {
    if (message.type === "reset") {
      const head = this.commands.find((command) => command.sent);
      const asked = head?.message.since !== undefined && !head.again ? { epoch: head.message.epoch, at: head.message.since } : null;
      const missed = this.positions.reset(message, asked);
      if (missed === undefined) return; // another subscription of this connection was told already
      this.missed = missed === null || this.missed === null ? null : this.missed + missed;
      message = { ...message, missed };
    }
    this.tell(this.onGap, message);
  }

  // ---- commands, which are answered in their order

  ask(message, answer, then = () => {}, patience = limits.answer) {
    if (this.over) return Promise.reject(this.error ?? closedError());
    const size = JSON.stringify(message).length;
    if (size > limits.command) {
      return Promise.reject(new IPFSStreamError("too_large", `${message.action} has ${size} characters of JSON; at most ${limits.command} are taken`));
    }
    return new Promise((resolve, reject) => {
      let timer;
      const command = { message, answer, then };
      const late = () => {
        command.late = true; // once it is sent it keeps its place: its answer may still come
        if (!command.sent) this.commands = this.commands.filter((one) => one !== command);
        reject(new IPFSStreamError("timeout", `the server gave no answer to ${message.action} in ${patience / 1000} s`));
      };
      const settle = (done) => (value) => {
        clearTimeout(timer);
        done(value);
      };
      const start = () => (timer ??= setTimeout(late, patience));
      Object.assign(command, { start, resolve: settle(resolve), reject: settle(reject) });
      if (this.known) start(); // what is asked for before there was a server waits for that first
      this.commands.push(command);
      if (this.wire instanceof Events) this.cannot(command);
      else this.flush();
    });
  }

  // Send what was not sent on this connection.
  flush() {
    if (!(this.wire instanceof Socket) || !this.greeted) return;
    for (const command of this.commands) {
      if (command.sent) continue;
      command.sent = true;
      command.start();
      this.wire.send(command.message);
    }
  }

  answered(message) {
    const error = message.type === "error";
    const sent = this.commands.filter((command) => command.sent);
    // an error without an action is about what the server could not read: the oldest that waits for its answer
    const at = sent.findIndex(({ answer, message: { action } }) => (error ? [undefined, action].includes(message.action) : answer === message.type));
    const found = sent[at];
    if (!found && this.wire instanceof Events && message.type === "subscription_confirmed") this.positions.resumed(message);
    if (!found) return; // a ping, or something newer than this module
    const past = sent.slice(0, at + 1); // answers come in order: what is older gets none any more
    this.commands = this.commands.filter((command) => !past.includes(command));
    for (const { message, reject } of past.slice(0, at)) reject(new IPFSStreamError("internal", `the server passed over ${message.action}`));
    if (error) {
      found.reject(new IPFSStreamError(message.code ?? "internal", message.error ?? "no reason was given"));
    } else {
      found.then(message);
      found.resolve(message);
    }
  }
}

// What a chart shows: the samples of each connection, those of the page's players and those that the kernel sends. One for
// all views of a model. What players tell goes to the kernel as well, once a second.
import { isClock } from "./abr-chart-panels.js";
import { isOffered, listen } from "./sample-channels.js";

export const limits = {
  kept: 36_000, // samples of a connection
  shortest: 1, // seconds that are shown at the least
  gap: 2, // seconds without a sample beyond which lines are broken
  report: 1000, // ms between two messages to the kernel
};

// Samples as columns, which all have the same length; null is what is not known.
export class Store {
  time = [];
  columns = {};
  frozen = []; // [from, to]: when the picture stood still
  standing = null; // freeze_seconds of the sample before
  dropped = null; // frames_dropped of the sample before

  get last() {
    return this.time.at(-1) ?? -Infinity;
  }

  // Whether it was taken: what is not newer than the last was there already.
  push({ time, ...values }) {
    if (!(time > this.last)) return false;
    if (time - this.last > limits.gap && this.time.length) this.append(this.last + 1e-3, {});
    this.freeze(time, values.freeze_seconds);
    if (values.frames_dropped !== undefined) {
      if (values.frames_dropped > (this.dropped ?? Infinity)) values.drops = values.frames_dropped - this.dropped;
      this.dropped = values.frames_dropped;
    }
    this.append(time, values);
    if (this.time.length > limits.kept * 1.1) this.trim(this.time.length - limits.kept);
    return true;
  }

  append(time, values) {
    const { columns } = this;
    for (const name in values) columns[name] ??= new Array(this.time.length).fill(null);
    this.time.push(time);
    for (const name in columns) columns[name].push(values[name] ?? null);
  }

  freeze(time, seconds) {
    if (seconds === undefined) return;
    const grown = seconds - (this.standing ?? seconds);
    this.standing = seconds;
    if (!(grown > 0)) return;
    const [from, before] = [time - grown, this.frozen.at(-1)];
    if (before && from <= before[1] + 0.05) before[1] = time;
    else this.frozen.push([from, time]);
  }

  trim(count) {
    this.time.splice(0, count);
    for (const column of Object.values(this.columns)) column.splice(0, count);
    this.frozen = this.frozen.filter(([, to]) => to >= this.time[0]);
  }

  row(at) {
    const row = { time: this.time[at] };
    for (const name in this.columns) if (this.columns[name][at] !== null) row[name] = this.columns[name][at];
    return row;
  }

  // The first place that is not before `time`.
  find(time) {
    let [low, high] = [0, this.time.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.time[middle] < time) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

// The samples of a message, which brings columns.
function* rowsOf({ time, ...columns }) {
  for (let at = 0; at < time.length; at++) {
    const row = { time: time[at] };
    for (const name in columns) if (columns[name][at] !== null) row[name] = columns[name][at];
    yield row;
  }
}

function toColumns(rows) {
  const names = new Set(["time", ...rows.flatMap(Object.keys)]);
  return Object.fromEntries([...names].map((name) => [name, rows.map((row) => row[name] ?? null)]));
}

export class Session {
  views = new Set();
  stores = new Map();
  unreported = new Map();
  until = new Map(); // while paused: where each connection stood then
  ends = [];

  constructor(View) {
    this.View = View;
  }

  initialize(model) {
    this.model = model;
    const on = (event, callback) => {
      model.on(event, callback);
      this.ends.push(() => model.off(event, callback));
    };
    on("msg:custom", (message) => this.receive(message));
    on("change:seconds", () => (model.send({ event: "ready" }), this.changed())); // the kernel may have more
    on("change:connection", () => this.changed());
    on("change:connections", () => this.changed());
    on("change:paused", () => (this.hold(), this.changed()));
    this.hold();
    for (const [name, key] of Object.entries(model.get("_keys"))) {
      const sample = (values) => this.take(name, values);
      this.ends.push(listen(key, { sample, changed: () => this.changed() }));
    }
    const timer = setInterval(() => this.report(), limits.report);
    this.ends.push(() => clearInterval(timer));
    model.send({ event: "ready" });
    return () => this.ends.splice(0).forEach((end) => end());
  }

  render(el) {
    const view = new this.View(this, el);
    this.views.add(view);
    return () => {
      this.views.delete(view);
      view.dispose();
    };
  }

  store(name) {
    if (!this.stores.has(name)) this.stores.set(name, new Store());
    return this.stores.get(name);
  }

  take(name, values) {
    if (!this.store(name).push(values)) return;
    if (!this.unreported.has(name)) this.unreported.set(name, []);
    this.unreported.get(name).push(values);
    if (name === this.shown) this.changed(false);
  }

  report() {
    if (!this.unreported.size) return;
    const samples = Object.fromEntries([...this.unreported].map(([name, rows]) => [name, toColumns(rows)]));
    this.unreported.clear();
    this.model.send({ event: "samples", samples });
  }

  receive(message) {
    if (message.samples) {
      for (const [name, columns] of Object.entries(message.samples)) for (const row of rowsOf(columns)) this.store(name).push(row);
    } else if (message.history) {
      for (const [name, columns] of Object.entries(message.history)) this.recall(name, columns);
    } else if (message.clear) {
      this.stores.clear();
      this.unreported.clear();
      this.until.clear();
    }
    this.changed(Boolean(message.history || message.clear));
  }

  // What the kernel has from before, in front of what came here meanwhile.
  recall(name, columns) {
    const old = this.store(name);
    const store = new Store();
    const first = old.time[0] ?? Infinity;
    for (const row of rowsOf(columns)) if (row.time < first) store.push(row);
    for (let at = 0; at < old.time.length; at++) {
      const { drops, ...row } = old.row(at); // push finds the drops again
      store.push(row);
    }
    this.stores.set(name, store);
  }

  hold() {
    this.until.clear();
    if (this.model.get("paused")) for (const [name, { last }] of this.stores) this.until.set(name, last);
  }

  // The latest time that is shown of a connection: while paused, that of the pause, or of the first painting since.
  end(name) {
    const { last } = this.stores.get(name);
    if (!this.model.get("paused")) return last;
    if (!this.until.has(name)) this.until.set(name, last);
    return this.until.get(name);
  }

  // Where the window begins: of a run that is shorter, with the run; what is live fills it from the right.
  start(name, end) {
    const start = end - this.model.get("seconds");
    const [first] = this.stores.get(name).time;
    return isClock(end) ? start : Math.max(start, Math.min(first, end - limits.shortest));
  }

  get shown() {
    return this.model.get("connection");
  }

  // What there is of the connection that is shown, or why there is nothing.
  get state() {
    const { shown, stores, model } = this;
    if (stores.get(shown)?.time.length) return model.get("paused") ? "paused" : "live";
    const key = model.get("_keys")[shown];
    if (!shown) return "empty";
    if (!key) return "silent";
    return isOffered(key) ? "waiting" : "absent";
  }

  set(values) {
    Object.entries(values).forEach(([name, value]) => this.model.set(name, value));
    this.model.save_changes();
  }

  changed(now = true) {
    this.views.forEach((view) => view.changed(now));
  }
}

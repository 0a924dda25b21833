// What an uploader does, whatever shows it: a session per model, with its queue, its connections and its word to the kernel.
import { IPFSStreamError, upload } from "./ipfs-stream.js";
import { accepts } from "./choose.js";
import { uid, xsrfToken } from "./page.js";
import { Remembered } from "./remembered.js";
import { Link } from "./server-link.js";

export const limits = {
  parallel: 3, // files at once
  reportEvery: 250, // ms between two reports to the kernel
  reportTimeout: 30_000, // ms that a report may stay unanswered
  rememberEvery: 2_000, // ms between two notes of how far an upload is
  rateOver: 5_000, // ms over which the rate is taken
  files: 50_000, // of a folder: what the server takes for one directory
  again: 2_000, // ms until a request that met no server is sent again
};

const sum = (list, of) => list.reduce((total, one) => total + of(one), 0);

// One row: a file, or a folder whose files become a directory.
class Item {
  id = uid();
  state = "waiting"; // waiting, uploading, paused, finishing, done or error
  error = "";
  cid = null;
  sent = 0;
  samples = [];

  constructor(session, { name, kind, files, hidden }) {
    const path = (part) => (kind === "folder" ? `${name}/${part.path}` : part.path);
    this.parts = files.map((part) => {
      const known = session.remembered.claim(path(part), part.file, session.model.get("profile"));
      if (known) this.id = known.item; // the kernel knows it already
      return { ...part, memory: path(part), sent: 0, cid: null, uploadId: known?.id ?? null };
    });
    Object.assign(this, { session, name, kind, hidden, size: sum(files, ({ file }) => file.size) });
    this.pending = [...this.parts].reverse();
    this.active = new Set();
    this.held = new Set(); // begun, and paused
  }

  get phase() {
    const lost = this.state === "uploading" && [...this.active].some((part) => part.link === "waiting");
    return lost ? "reconnecting" : this.state;
  }

  get done() {
    return this.parts.length - this.pending.length - this.active.size - this.held.size;
  }

  get running() {
    return ["waiting", "uploading", "finishing"].includes(this.state);
  }

  // Bytes a second over the last moments; null while there is nothing to tell.
  get rate() {
    const [first] = this.samples;
    const last = this.samples.at(-1);
    return this.phase === "uploading" && last && last.time - first.time > 500 ? (last.sent - first.sent) / ((last.time - first.time) / 1000) : null;
  }

  progress(part, bytes) {
    this.sent += bytes - part.sent;
    part.sent = bytes;
    const time = performance.now();
    this.samples.push({ time, sent: this.sent });
    while (time - this.samples[0].time > limits.rateOver) this.samples.shift();
    this.session.changed(this);
  }

  set(state, error = "") {
    Object.assign(this, { state, error });
    if (this.phase !== "uploading") this.samples = [];
    this.session.changed(this, true);
  }

  pause() {
    if (!this.running || this.state === "finishing") return;
    this.hold();
    this.set("paused");
    this.session.schedule();
  }

  settle(part) {
    this.active.delete(part);
    this.held.delete(part);
  }

  hold() {
    for (const part of this.active) {
      part.upload?.pause();
      this.held.add(part);
      this.session.busy.delete(part);
    }
    this.active.clear();
  }

  resume() {
    if (this.state !== "paused" && this.state !== "error") return;
    this.set("waiting");
    this.session.schedule();
  }

  // The next part that may run, begun before or not.
  next() {
    const [held] = this.held;
    if (held) this.held.delete(held);
    const part = held ?? this.pending.pop();
    if (part) this.active.add(part);
    return part;
  }

  remove() {
    this.removed = true;
    for (const part of [...this.active, ...this.held]) part.upload?.cancel();
    for (const part of this.active) this.session.busy.delete(part);
    this.session.forget(this);
  }

  toJSON() {
    const { id, name, kind, size, sent, cid, error } = this;
    return { id, name, kind, size, sent: Math.min(sent, size), cid, error, state: this.phase, files: this.parts.length };
  }
}

export class Session {
  page = uid();
  items = [];
  views = new Set();
  busy = new Set(); // parts that are on their way
  dirty = new Set(); // items that the kernel has not heard of as they are
  gone = new Set(); // ids that were taken out of the list
  number = 0; // of the last report

  initialize(model) {
    this.model = model;
    this.link = new Link(model);
    this.remembered = new Remembered(new URL(this.link.ownBase, location.href).href, this.page);
    const heard = { "msg:custom": (message) => this.receive(message) };
    for (const name of ["multiple", "accept", "pin", "profile", "results"]) {
      heard[`change:${name}`] = () => this.views.forEach((view) => view.paint());
    }
    Object.entries(heard).forEach(([event, callback]) => model.on(event, callback));
    const leave = () => this.remembered.release();
    addEventListener("pagehide", leave);
    const known = this.remembered.all().map((entry) => entry.item);
    this.send({ event: "ready", page: this.page, known: [...new Set(known)] });
    return () => {
      Object.entries(heard).forEach(([event, callback]) => model.off(event, callback));
      removeEventListener("pagehide", leave);
      clearTimeout(this.reporting);
      this.items.filter((item) => item.running).forEach((item) => item.pause()); // resumable, from wherever
      leave();
      this.closed = true;
      this.link.close();
    };
  }

  // ---- what comes in

  // Take what was chosen; gives what was left out, in words.
  add(chosen) {
    const [accept, multiple] = [this.model.get("accept"), this.model.get("multiple")];
    const notes = [];
    if (!multiple && (chosen.length > 1 || chosen.some(({ kind }) => kind === "folder"))) {
      return ["One file at a time: nothing was taken."];
    }
    for (const one of chosen) {
      const fitting = one.files.filter(({ file }) => accepts(accept, file));
      const left = one.files.length - fitting.length;
      if (left) notes.push(`${one.kind === "file" ? one.name : `${left} of the files in ${one.name}`} left out: only ${accept.replaceAll(",", ", ")} can be uploaded here.`);
      if (fitting.length > limits.files) notes.push(`${one.name} has ${fitting.length} files; at most ${limits.files} can be uploaded as one folder.`);
      else if (fitting.length) this.items.push(new Item(this, { ...one, files: fitting }));
      else if (!left) notes.push(`${one.name} has no files in it.`);
    }
    this.items.forEach((item) => item.state === "waiting" && this.changed(item, true));
    this.schedule();
    return notes;
  }

  schedule() {
    for (const item of this.items) {
      while (["waiting", "uploading"].includes(item.state) && this.busy.size < limits.parallel) {
        const part = item.next();
        if (!part) break;
        this.busy.add(part);
        if (item.state === "waiting") item.set("uploading");
        if (part.begun) part.upload?.resume();
        else this.run(item, part);
      }
      if (item.state === "waiting" && !item.active.size && item.done === item.parts.length) this.finish(item);
    }
  }

  async run(item, part) {
    part.begun = true;
    try {
      part.cid = (await this.sendFile(item, part)).cid;
      item.settle(part);
      if (item.done === item.parts.length && item.running) this.finish(item);
    } catch (error) {
      if (item.removed) return;
      item.settle(part);
      item.pending.push(part);
      Object.assign(part, { begun: false, upload: null });
      if (error.code === "unauthorized" && part.byCookie) {
        this.link.cookieFailed = true; // the session may have ended: a token does as well
      } else {
        item.hold();
        item.set("error", error.message);
      }
    } finally {
      this.busy.delete(part);
      this.schedule();
    }
  }

  async sendFile(item, part) {
    const { baseUrl: base, token } = await this.link.connection();
    if (item.removed) throw new DOMException("removed", "AbortError");
    const { file, memory } = part;
    const profile = this.model.get("profile");
    let told = 0;
    const remember = (sent) => part.uploadId && this.remembered.put(memory, file, profile, { id: part.uploadId, item: item.id, sent });
    part.byCookie = !token;
    part.upload = upload(base, file, {
      token,
      profile,
      uploadId: part.uploadId,
      name: part.path.slice(part.path.lastIndexOf("/") + 1),
      pin: item.kind === "file" && this.model.get("pin"), // of a folder, its directory is pinned
      attempts: Infinity, // until it is paused or removed
      onState: (link) => {
        part.link = link;
        if (item.kind === "file" && item.running) item.set(link === "finishing" ? link : "uploading");
        else this.changed(item, link === "waiting" || link === "sending");
      },
      onReady: ({ uploadId, offset }) => {
        part.uploadId = uploadId;
        remember(offset);
      },
      onProgress: ({ bytes, durable }) => {
        item.progress(part, bytes);
        if (performance.now() - told < limits.rememberEvery) return;
        told = performance.now();
        remember(durable);
      },
    });
    if (item.held.has(part)) part.upload.pause();
    return part.upload;
  }

  async finish(item) {
    item.set("finishing");
    try {
      const cid = item.kind === "file" ? item.parts[0].cid : await this.directory(item);
      if (item.removed) return;
      item.cid = cid;
      this.unremember(item);
      item.set("done");
    } catch (error) {
      if (item.removed) return;
      if (error.code === "not_found") this.again(item);
      item.set("error", error.message);
    }
    item.parts.forEach((part) => (part.file = item.state === "done" ? null : part.file)); // let go of what is not needed
  }

  // A file's blocks are not there any more, collected before the directory could hold them: once more.
  again(item) {
    this.unremember(item);
    item.parts.forEach((part) => Object.assign(part, { sent: 0, cid: null, upload: null, uploadId: null, begun: false }));
    item.pending = [...item.parts].reverse();
    item.sent = 0;
  }

  async directory(item) {
    const entries = Object.fromEntries(item.parts.map((part) => [part.path, part.cid]));
    const query = { name: item.name, pin: this.model.get("pin") ? "1" : "0", profile: this.model.get("profile") };
    for (;;) {
      const { baseUrl: base, token } = await this.link.connection();
      const url = new URL("ipfs-stream/directories", base);
      for (const [name, value] of Object.entries({ ...query, token: await token?.() })) value && url.searchParams.set(name, value);
      // No header but this one, and that not to another origin: the request needs no leave beforehand then.
      const headers = token ? {} : { "X-XSRFToken": xsrfToken() };
      const answer = await fetch(url, { method: "POST", body: JSON.stringify({ entries }), credentials: "same-origin", headers }).catch(() => null);
      const body = await answer?.json().catch(() => ({}));
      if (answer?.ok && body.cid) return body.cid;
      if ((answer?.status === 403 || answer?.status === 401) && !token) this.link.cookieFailed = true;
      else if (answer && answer.status !== 503) throw new IPFSStreamError(body.code, body.message ?? `the server answered ${answer.status}`);
      else await new Promise((resolve) => setTimeout(resolve, limits.again));
      if (item.removed) throw new DOMException("removed", "AbortError");
    }
  }

  unremember(item) {
    const paths = new Map(item.parts.map(({ memory, file }) => [memory, file]));
    const { base } = this.remembered;
    this.remembered.drop((entry) => entry.base === base && paths.get(entry.path)?.size === entry.size);
  }

  forget(item) {
    this.items = this.items.filter((one) => one !== item);
    if (item.state !== "done") this.unremember(item);
    this.dirty.delete(item);
    this.gone.add(item.id);
    this.report();
    this.views.forEach((view) => view.paint());
    this.schedule();
  }

  // An upload of an earlier page that is not wanted any more.
  async discard({ ids, items }) {
    this.remembered.drop((entry) => ids.includes(entry.id));
    items.forEach((id) => this.gone.add(id));
    this.report();
    this.views.forEach((view) => view.paint());
    const { baseUrl: base, token } = await this.link.connection();
    for (const uploadId of ids) {
      const giving = upload(base, new Blob(), { token, uploadId });
      giving.catch(() => {});
      giving.cancel();
    }
  }

  // ---- telling

  changed(item, now = false) {
    this.dirty.add(item);
    this.report();
    this.views.forEach((view) => view.changed(item, now));
  }

  // One report at a time: a kernel that is busy for an hour finds one when it comes back, not thousands.
  report() {
    if (this.closed || this.reporting || (!this.dirty.size && !this.gone.size)) return;
    this.reporting = setTimeout(() => {
      const items = [...this.dirty].map((item) => item.toJSON());
      this.told = { dirty: this.dirty, gone: this.gone };
      this.send({ event: "items", page: this.page, number: ++this.number, items, gone: [...this.gone] });
      Object.assign(this, { dirty: new Set(), gone: new Set() });
      this.reporting = setTimeout(() => this.heard(false), limits.reportTimeout);
    }, limits.reportEvery);
  }

  heard(taken) {
    clearTimeout(this.reporting);
    this.reporting = null;
    if (!taken) {
      this.told.dirty.forEach((item) => this.gone.has(item.id) || this.dirty.add(item));
      this.told.gone.forEach((id) => this.gone.add(id));
    }
    this.report();
  }

  send(message) {
    this.model.send(message);
  }

  receive(message) {
    if ("taken" in message && message.taken === this.number) this.heard(true);
  }
}

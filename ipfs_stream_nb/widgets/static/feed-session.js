// What a feed has, whatever shows it: one connection per model, and the latest events that came over it.
import { Link } from "./server-link.js";
import { familyOf, subjectOf, timeOf, typeOf } from "./feed-words.js";
import { Notifications } from "./ipfs-notifications.js";

export class Session {
  views = new Set();
  entries = []; // oldest first: {number, event, type, family, time, subject}
  counts = new Map(); // kept entries by type
  present = new Map(); // the entry of each subject
  number = 0; // of the last entry
  come = 0; // events that came, without those that took another's place
  dropped = 0;
  state = "connecting"; // connecting, live, reconnecting or refused
  reason = ""; // why it is refused or reconnects, in words
  notes = []; // what was missed or may not be seen, in words

  initialize(model) {
    this.model = model;
    this.link = new Link(model);
    const heard = {
      "change:limit": () => {
        this.trim();
        this.changed(true);
      },
      "change:height": () => this.changed(true),
      "change:note": () => this.changed(true),
    };
    Object.entries(heard).forEach(([event, callback]) => model.on(event, callback));
    const network = () => this.changed(true);
    addEventListener("online", network);
    addEventListener("offline", network);
    this.connect();
    return () => {
      this.closed = true;
      Object.entries(heard).forEach(([event, callback]) => model.off(event, callback));
      removeEventListener("online", network);
      removeEventListener("offline", network);
      this.wire?.close();
      this.link.close();
    };
  }

  // "epoch-id" of the newest event that came, or of where the feed begins.
  get cursor() {
    return this.wire?.cursor ?? this.before ?? this.model.get("since");
  }

  async connect() {
    this.before = this.cursor;
    this.wire?.close();
    this.become("connecting");
    try {
      const { baseUrl, token } = await this.link.connection();
      if (this.closed) return;
      const byCookie = !token;
      this.wire = new Notifications({
        baseUrl,
        token,
        types: this.model.get("types"),
        filters: this.model.get("filters"),
        since: this.cursor,
        onNotification: (event) => this.take(event),
        onState: (state, error) => this.heard(state, error, byCookie),
        onGap: (gap) => this.missed(gap),
      });
    } catch (error) {
      this.become("refused", error.message);
    }
  }

  heard(state, error, byCookie) {
    if (this.closed || state === "closed") return;
    if (error?.code === "unauthorized" && byCookie && !this.link.cookieFailed) {
      this.link.cookieFailed = true; // the session may have ended: a token does as well
      this.connect();
    } else {
      this.become(state, error?.message);
    }
  }

  become(state, reason = "") {
    Object.assign(this, { state, reason });
    this.changed(true);
  }

  // What is shown: a browser knows at once that it is off the network, long before a connection does.
  get shown() {
    return this.state === "reconnecting" && navigator.onLine === false ? "offline" : this.state;
  }

  // A server that reads its log again for a slow page loses nothing, and is no news.
  missed({ type, missed }) {
    if (type !== "reset" || missed === 0) return;
    const text = missed === null ? "The log of notifications began anew: some may have been missed." : `Up to ${missed.toLocaleString()} notifications were missed: the log does not have them any more.`;
    this.notes = [...this.notes.filter((note) => note !== text), text].slice(-3);
    this.changed(true);
  }

  take(event) {
    const type = typeOf(event);
    const subject = subjectOf(event);
    const entry = { number: ++this.number, event, type, family: familyOf(type), time: timeOf(event), subject };
    const before = subject && this.present.get(subject);
    if (before) this.entries.splice(this.entries.lastIndexOf(before), 1);
    else this.come++;
    if (subject) this.present.set(subject, entry);
    this.entries.push(entry);
    if (!before) this.count(entry, 1);
    this.trim();
    this.changed(false);
  }

  count({ type }, by) {
    this.counts.set(type, (this.counts.get(type) ?? 0) + by);
  }

  trim() {
    const over = this.entries.length - this.model.get("limit");
    if (over <= 0) return;
    this.dropped += over;
    for (const entry of this.entries.splice(0, over)) {
      this.count(entry, -1);
      if (entry.subject) this.present.delete(entry.subject);
    }
  }

  // Forget what came; a reloaded page begins behind it as well.
  clear() {
    Object.assign(this, { entries: [], dropped: 0, notes: [] });
    this.counts.clear();
    this.present.clear();
    if (this.cursor !== this.model.get("since")) {
      this.model.set("since", this.cursor);
      this.model.save_changes();
    }
    this.changed(true);
  }

  changed(now) {
    this.views.forEach((view) => view.changed(now));
  }
}

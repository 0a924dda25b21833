// The list of a feed: of any number of entries only the rows in sight exist, a fixed height each, the newest on top.
import { icon, make } from "./page.js";
import { absoluteTime, ago, labelOf, summarise } from "./feed-words.js";

export const ROW = 30; // px, as in feed.css
const BEYOND = 2; // rows above and below what is in sight

const part = (name, tag = "span", attributes = {}, ...children) => make(tag, `ipfs-feed-${name}`, attributes, ...children);

class Row {
  constructor() {
    this.icon = icon("");
    this.type = part("type");
    this.line = part("line");
    this.time = part("time", "time");
    this.node = part("row", "div", { role: "listitem", tabindex: "-1" }, part("badge", "span", {}, this.icon), this.type, this.line, this.time);
    this.set = {}; // what stands in the attributes, so that nothing is written twice
  }

  write(name, value) {
    if (this.set[name] === value) return;
    this.set[name] = value;
    this.node.setAttribute(name, value);
  }

  show(entry) {
    const { event, type, family, time } = entry;
    this.entry = entry;
    this.node.dataset.number = entry.number;
    this.write("data-tone", family.tone);
    this.icon.firstChild.setAttribute("d", family.icon);
    this.type.textContent = labelOf(type);
    this.type.title = type;
    this.line.replaceChildren(...summarise(event).map(({ kind, text }) => make("bdi", `ipfs-feed-${kind}`, {}, text)));
    this.time.title = absoluteTime(time);
    this.time.textContent = "";
  }

  place(at, count, now, chosen, active) {
    if (this.at !== at) this.node.style.transform = `translateY(${at * ROW}px)`;
    this.at = at;
    this.write("aria-posinset", String(at + 1));
    this.write("aria-setsize", String(count));
    this.write("aria-current", String(chosen));
    this.write("tabindex", active ? "0" : "-1");
    const text = ago(this.entry.time, now);
    if (this.time.textContent !== text) this.time.textContent = text;
  }
}

export class Rows {
  rows = new Map(); // by entry
  spare = [];
  shown = []; // all entries, the newest first
  top = 0; // scrollTop, read in its event alone: to read it while painting costs a layout
  active = null; // the entry that the keyboard is at
  chosen = null; // the entry whose detail is open

  // `onScroll` and `onOpen(entry)`: what the view does about them.
  constructor({ onScroll, onOpen }) {
    this.list = part("list", "div", { role: "list", "aria-label": "Notifications, the newest first" });
    this.node = part("log", "div", { role: "log", "aria-live": "off", tabindex: "-1", "aria-label": "Notifications" }, this.list);
    Object.assign(this, { onOpen });
    this.node.addEventListener("scroll", () => {
      if (this.node.scrollTop === this.top) return;
      this.top = this.node.scrollTop;
      onScroll();
    });
    this.node.addEventListener("click", ({ target }) => this.open(this.at(target)));
    this.node.addEventListener("focusin", ({ target }) => (this.active = this.at(target) ?? this.active));
    this.node.addEventListener("keydown", (event) => this.key(event));
  }

  at(target) {
    const node = target.closest(".ipfs-feed-row");
    return node && [...this.rows.values()].find((row) => row.node === node)?.entry;
  }

  open(entry) {
    if (!entry) return;
    this.active = entry;
    this.onOpen(entry);
  }

  set height(px) {
    this.room = px;
    this.node.style.height = `${px}px`;
  }

  get focused() {
    return this.list.contains(document.activeElement);
  }

  // Show these entries. What the user reads stays where it is: what is new comes in above, unless the top is in sight.
  paint(shown, now) {
    const at = this.focused ? this.shown.indexOf(this.active) : this.top > 0 ? Math.floor(this.top / ROW) : -1;
    const kept = this.shown[at];
    const to = kept ? shown.findIndex((entry) => entry.number <= kept.number) : -1;
    this.shown = shown;
    this.list.style.height = `${shown.length * ROW}px`;
    if (to >= 0 && to !== at) this.scroll(Math.max(0, this.top + (to - at) * ROW));
    this.top = Math.max(0, Math.min(this.top, shown.length * ROW - this.room));
    this.place(now);
  }

  // Have the rows that are in sight, and the one that has the focus, in the order of the list.
  place(now) {
    const { shown } = this;
    const first = Math.max(0, Math.floor(this.top / ROW) - BEYOND);
    const last = Math.min(shown.length, Math.ceil((this.top + this.room) / ROW) + BEYOND);
    const hadFocus = this.focused;
    this.active = hadFocus || shown.includes(this.active) ? this.successor(this.active) : null;
    const active = this.active ? shown.indexOf(this.active) : 0;
    const places = new Map();
    if (hadFocus && active < first) places.set(shown[active], active);
    for (let at = first; at < last; at++) places.set(shown[at], at);
    if (hadFocus && active >= last) places.set(shown[active], active);
    for (const [entry, row] of this.rows) {
      if (places.has(entry)) continue;
      this.rows.delete(entry);
      this.spare.push(row);
    }
    let next = this.list.firstChild;
    for (const [entry, at] of places) {
      let row = this.rows.get(entry);
      if (!row) {
        row = this.spare.pop() ?? new Row();
        row.show(entry);
        this.rows.set(entry, row);
      }
      row.place(at, shown.length, now, entry === this.chosen, at === active);
      if (row.node === next) next = next.nextSibling;
      else this.list.insertBefore(row.node, next);
    }
    for (const row of this.spare) row.node.remove();
    if (hadFocus && document.activeElement !== this.rows.get(this.active)?.node) (this.rows.get(this.active)?.node ?? this.node).focus({ preventScroll: true });
  }

  // The entry itself, what has taken its place, or the nearest one that is left.
  successor(entry) {
    const { shown } = this;
    if (!entry || shown.includes(entry)) return entry;
    return shown.find(({ subject }) => subject && subject === entry.subject) ?? shown.find(({ number }) => number <= entry.number) ?? shown.at(-1) ?? null;
  }

  scroll(top) {
    this.node.scrollTop = top;
    this.top = top;
  }

  // The keyboard goes to an entry, which is scrolled into sight.
  go(at) {
    const { shown } = this;
    if (!shown.length) return;
    const to = Math.max(0, Math.min(shown.length - 1, at));
    this.active = shown[to];
    if (to * ROW < this.top) this.scroll(to * ROW);
    else if ((to + 1) * ROW > this.top + this.room) this.scroll((to + 1) * ROW - this.room);
    this.place(Date.now());
    this.rows.get(this.active)?.node.focus({ preventScroll: true });
  }

  key(event) {
    const at = Math.max(0, this.shown.indexOf(this.active));
    const page = Math.max(1, Math.floor(this.room / ROW) - 1);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: Infinity, PageDown: at + page, PageUp: at - page }[event.key];
    if (to !== undefined) this.go(to);
    else if (event.key === "Enter" || event.key === " ") this.open(this.at(event.target));
    else return;
    event.preventDefault();
  }
}

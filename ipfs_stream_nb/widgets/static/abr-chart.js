// The looks of ipfs_stream_nb.widgets.AbrChart: panels over one axis of time, which moves with what comes. Session has the
// samples.
import { Panel, PANELS, agoText, isClock, timeText } from "./abr-chart-panels.js";
import { Session } from "./abr-chart-session.js";
import { icon, make, uid } from "./page.js";

export const limits = {
  paint: 100, // ms from one painting to the next, or what a pixel of a longer window stands for
  slowest: 1000, // ms, the same at the most
  words: 250, // ms from one change of the legend's numbers to the next: nobody reads faster
};

const ICONS = {
  pause: "M7 5.5h3.6v13H7zM13.4 5.5H17v13h-3.6z",
  resume: "M8 5.5v13l10.5-6.5z",
  chart: "M3.5 3.5h2v15h15v2h-17zM8 15.2l3.4-5.4 3.2 3 4.3-7 1.7 1-5.6 9.2-3.2-3-2.1 3.3z",
};
const EMPTY = {
  empty: ["Nothing to show yet", "A chart has players, as in client.chart(player), or figures of yours, by chart.add_sample(…)."],
  silent: ["No samples yet", "They are shown as soon as chart.add_sample(…) brings some."],
  absent: ["The player is not on this page", "Show it in a cell, and the chart follows it."],
  waiting: ["Waiting for playback", "Press play: the chart begins with the first data."],
};
const STATES = { live: "live", paused: "paused", waiting: "waiting", absent: "waiting", silent: "waiting", empty: "empty" };
const COLOURS = ["target", "sent", "received", "estimate", "rtt", "loss", "frames", "buffer", "faint", "grid", "freeze", "received-area", "sent-area", "loss-area", "buffer-area"];
const SHORTCUTS = "Space K ArrowLeft ArrowRight Home End Escape";

const part = (name, tag = "div", attributes = {}, ...children) => make(tag, `ipfs-abr-${name}`, attributes, ...children);
const setText = (node, text) => node.textContent !== text && (node.textContent = text);

class View {
  colours = {};
  cursor = null; // the place in the window that the pointer, or the keyboard, is at
  low = 0;
  painted = 0;
  worded = 0;
  inSight = true;
  rows = []; // {panel, node, legend} of each kind

  constructor(session, el) {
    this.session = session;
    this.build();
    el.append(this.root);
    this.listen();
    this.changed(true);
  }

  build() {
    this.status = part("status", "span", {}, part("dot", "span"), part("state", "span"));
    this.name = part("name", "span");
    this.select = part("select", "select", { "aria-label": "Connection", title: "Connection" });
    this.when = part("when", "span");
    this.freezes = part("freezes", "span", { hidden: "" });
    this.button = part("action", "button", { type: "button" });
    this.empty = part("empty", "div", { role: "note" });
    this.said = part("said", "div", { role: "status", "aria-live": "polite" });
    this.body = part("body");
    const sync = uid();
    for (const kind of PANELS) {
      const legend = part("legend");
      const words = part("words", "span");
      if (kind.lines.length > 4) legend.dataset.many = "";
      const host = part("plot", "div", { "aria-hidden": "true" });
      const title = part("title", "span", {}, kind.title);
      if (kind.unit) title.append(part("unit", "span", {}, kind.unit));
      const node = part("panel", "section", { "aria-label": kind.title, hidden: "" }, part("bar", "div", {}, title, legend, words), host);
      const frozen = () => this.store?.frozen ?? [];
      const panel = new Panel(kind, { host, sync, colours: this.colours, frozen, onCursor: (at, left) => this.point(at, left) });
      this.rows.push({ panel, node, legend, words, items: new Map() });
      this.body.append(node);
    }
    this.root = part("", "div", { tabindex: "0", role: "region", "aria-label": "Chart of adaptive quality", "aria-keyshortcuts": SHORTCUTS });
    this.root.className = "ipfs-abr";
    this.root.append(part("head", "div", {}, this.status, this.name, this.select, part("space", "span"), this.freezes, this.when, this.button), this.body, this.empty, this.said);
  }

  listen() {
    const { root, session } = this;
    this.button.addEventListener("click", () => this.toggle());
    this.select.addEventListener("change", () => session.set({ connection: this.select.value }));
    root.addEventListener("keydown", (event) => this.key(event));
    this.resizing = new ResizeObserver(() => this.changed(true));
    this.resizing.observe(this.body);
    this.looking = new IntersectionObserver(([{ isIntersecting }]) => {
      this.inSight = isIntersecting;
      if (isIntersecting) this.changed(true);
    });
    this.looking.observe(root);
    this.aborting = new AbortController();
    const { signal } = this.aborting;
    document.addEventListener("visibilitychange", () => document.hidden || this.changed(true), { signal });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour(), { signal });
    // JupyterLab changes its theme by attributes of the body, other pages by classes.
    this.theming = new MutationObserver(() => this.recolour());
    for (const node of [document.documentElement, document.body]) this.theming.observe(node, { attributes: true });
  }

  // ---- colours: a canvas takes no variables of CSS

  recolour() {
    if (!this.root.isConnected) return; // a front end may put a view into its page later: until then there are no styles
    const style = getComputedStyle(this.root);
    this.coloured = true;
    const values = style.backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [255, 255, 255];
    const [r, g, b] = style.backgroundColor.startsWith("color(") ? values.map((value) => value * 255) : values;
    this.root.dataset.theme = 0.299 * r + 0.587 * g + 0.114 * b < 128 ? "dark" : "light";
    for (const name of COLOURS) this.colours[name] = this.solid(`var(--abr-${name})`);
    this.colours.font = style.fontFamily;
    this.rows.forEach(({ panel }) => panel.redraw());
  }

  // A colour as it comes out, mixes and all.
  solid(value) {
    this.said.style.color = value;
    return getComputedStyle(this.said).color;
  }

  // ---- what the user does

  toggle() {
    const paused = !this.session.model.get("paused");
    this.session.set({ paused });
    this.say(paused ? "Paused" : "Resumed");
  }

  key(event) {
    const { key, target, ctrlKey, altKey, metaKey } = event;
    if (ctrlKey || altKey || metaKey || key === "Tab" || (key === "Enter" && event.shiftKey)) return;
    if (key !== "Escape" || this.cursor !== null) event.stopPropagation(); // Jupyter's command mode acts on single keys
    if (target.matches("select, button") && !["k", "K"].includes(key)) return;
    const { plot } = this.rows.find(({ node }) => !node.hidden)?.panel ?? {};
    const width = plot ? plot.bbox.width / devicePixelRatio : 0;
    const left = this.left ?? width;
    const moves = { ArrowLeft: left - width / 60, ArrowRight: left + width / 60, Home: 0, End: width, Escape: -10 };
    if (key === " " || key === "k" || key === "K") this.toggle();
    else if (plot && key in moves) {
      const to = key === "Escape" ? -10 : Math.min(Math.max(moves[key], 0), width);
      plot.setCursor({ left: to, top: 1 });
      this.speak();
    } else return;
    event.preventDefault();
  }

  point(at, left) {
    this.cursor = at ?? null;
    this.left = at === null || at === undefined || left < 0 ? null : left;
    this.pointing ??= requestAnimationFrame(() => {
      this.pointing = null;
      this.paintWords();
    });
  }

  say(text) {
    this.said.textContent = text;
  }

  speak() {
    cancelAnimationFrame(this.pointing);
    this.pointing = null;
    this.paintWords();
    if (this.cursor === null) return;
    const facts = this.rows.filter(({ node }) => !node.hidden).flatMap(({ panel, items }) =>
      [...items.values()].filter(({ text }) => text !== "–").map(({ line, text }) => `${line.label} ${text} ${panel.kind.unit}`.trim()),
    );
    this.say(`${this.when.textContent}: ${facts.join(", ")}`);
  }

  // ---- painting

  get every() {
    const pixel = (this.session.model.get("seconds") * 1000) / (this.body.clientWidth || 600);
    return Math.min(Math.max(limits.paint, pixel), limits.slowest);
  }

  changed(now) {
    if (this.disposed || document.hidden || !this.inSight) return;
    if (now) this.painted = this.worded = 0;
    else if (this.waiting) return;
    clearTimeout(this.waiting);
    const wait = Math.max(0, this.painted + this.every - performance.now());
    this.waiting = setTimeout(() => requestAnimationFrame(() => this.paint()), wait);
  }

  paint() {
    this.waiting = null;
    if (this.disposed || !this.root.isConnected) return;
    if (!this.coloured) this.recolour();
    // Counted from when it should have been: the next sample may come some milliseconds early.
    this.painted = performance.now() - 20;
    const { session, root } = this;
    const { state, shown } = session;
    root.dataset.state = state;
    this.store = session.stores.get(shown);
    this.paintHead(state, shown);
    const there = Boolean(this.store?.time.length);
    this.body.hidden = !there;
    this.empty.hidden = there;
    if (there) this.paintPanels();
    else this.paintEmpty(state);
  }

  paintHead(state, shown) {
    const { model } = this.session;
    const names = model.get("connections");
    setText(this.status.lastChild, STATES[state]);
    setText(this.name, names.length > 1 ? "" : shown);
    this.name.title = shown;
    this.select.hidden = names.length < 2;
    const key = names.join("\n");
    if (this.select.dataset.names !== key) {
      this.select.dataset.names = key;
      this.select.replaceChildren(...names.map((name) => make("option", "", { value: name }, name)));
    }
    if (this.select.value !== shown) this.select.value = shown;
    const paused = model.get("paused");
    const label = paused ? "Resume (k)" : "Pause (k)";
    if (this.button.title !== label) {
      this.button.title = label;
      this.button.setAttribute("aria-label", label);
      this.button.replaceChildren(icon(ICONS[paused ? "resume" : "pause"]));
    }
  }

  paintEmpty(state) {
    if (this.empty.dataset.what === state) return;
    this.empty.dataset.what = state;
    const [head, text] = EMPTY[state];
    this.empty.replaceChildren(icon(ICONS.chart), make("strong", "", {}, head), make("p", "", {}, text));
    this.freezes.hidden = true;
    setText(this.when, "");
  }

  paintPanels() {
    const { session, store, body } = this;
    this.empty.dataset.what = "";
    const width = Math.floor(body.clientWidth);
    if (!width) return;
    const max = session.end(session.shown);
    const min = session.start(session.shown, max);
    const low = store.find(min);
    this.low = Math.max(low - 1, 0); // a line comes in from the left
    this.high = store.find(max + 1e-6);
    const there = this.rows.map(({ panel }) => panel.has(store));
    const last = there.findLastIndex((lines) => lines.length);
    this.rows.forEach((row, at) => {
      const lines = there[at];
      row.node.hidden = !lines.length;
      if (!lines.length) return row.panel.dispose();
      row.panel.prepare(lines, width, at === last);
      row.panel.paint(store, this.low, this.high, min, max);
    });
    Object.assign(this, { min, max });
    const wait = this.cursor === null ? this.worded + limits.words - performance.now() : 0;
    if (wait <= 0) this.paintWords();
    else this.wording ??= setTimeout(() => this.paintWords(), wait);
  }

  // The legend, with what is below the pointer, or the latest.
  paintWords() {
    clearTimeout(this.wording);
    Object.assign(this, { wording: null, worded: performance.now() });
    const { store, cursor, max, min } = this;
    if (!store?.time.length) return;
    const at = Math.min(this.low + (cursor ?? Infinity), this.high - 1);
    const row = store.row(at);
    for (const { panel, node, legend, words, items } of this.rows) {
      if (node.hidden) continue;
      if (legend.dataset.drawn !== panel.drawn) this.buildLegend(panel, legend, items);
      for (const item of items.values()) {
        item.text = panel.text(item.line, row);
        setText(item.value, item.text);
      }
      setText(words, panel.kind.words?.(row) ?? "");
    }
    this.root.classList.toggle("is-pointing", cursor !== null);
    setText(this.when, cursor !== null ? agoText(row.time, max) : isClock(max) ? `last ${timeText(max - min)}` : `${agoText(min, max)} to ${agoText(max, max)}`);
    const frozen = store.frozen.filter(([from, to]) => to > min && from < max);
    const seconds = frozen.reduce((sum, [from, to]) => sum + Math.min(to, max) - Math.max(from, min), 0);
    this.freezes.hidden = !frozen.length;
    setText(this.freezes, `${frozen.length} freeze${frozen.length === 1 ? "" : "s"}, ${seconds.toFixed(1)} s`);
  }

  buildLegend(panel, legend, items) {
    legend.dataset.drawn = panel.drawn;
    items.clear();
    const buttons = panel.lines.map((line) => {
      const value = part("value", "span");
      const swatch = part("swatch", "span", { style: `--tone: var(--abr-${line.colour})`, ...(line.dash && { "data-dash": "" }) });
      const button = part("item", "button", { type: "button", title: `Show or hide ${line.label}`, "aria-pressed": String(!panel.off.has(line.name)) }, swatch, part("label", "span", {}, line.label), value);
      button.addEventListener("click", () => button.setAttribute("aria-pressed", String(panel.toggle(line.name))));
      items.set(line.name, { line, value, text: "" });
      return button;
    });
    legend.replaceChildren(...buttons);
  }

  dispose() {
    this.disposed = true;
    clearTimeout(this.waiting);
    clearTimeout(this.wording);
    cancelAnimationFrame(this.pointing);
    this.aborting.abort();
    for (const observer of [this.resizing, this.looking, this.theming]) observer.disconnect();
    this.rows.forEach(({ panel }) => panel.dispose());
    this.root.remove();
  }
}

export default () => {
  const session = new Session(View);
  return {
    initialize: ({ model }) => session.initialize(model),
    render: ({ el }) => session.render(el),
  };
};

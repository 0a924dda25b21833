// The looks of ipfs_stream_nb.widgets.NotificationFeed: what happens, as it happens. Session has the events.
import { copyText, icon, make, sentence } from "./page.js";
import { Rows } from "./feed-rows.js";
import { Session } from "./feed-session.js";
import { absoluteTime, cidsIn, clean, familyOf, labelOf, pretty, rankOf, searchText, summarise } from "./feed-words.js";

export const limits = {
  gather: 30, // ms in which what comes together is painted together
  paint: 500, // ms from one painting of what is new to the next: nobody reads faster
  times: 5_000, // ms after which "5 s" has become another text
  speak: 10_000, // ms between two words to a screen reader
};

const ICONS = {
  pause: "M7 5.5h3.6v13H7zM13.4 5.5H17v13h-3.6z",
  resume: "M8 5.5v13l10.5-6.5z",
  clear: "M12 2.5a9.5 9.5 0 1 0 0 19 9.5 9.5 0 0 0 0-19zm0 2.2c1.7 0 3.2.6 4.5 1.5L6.2 16.5A7.3 7.3 0 0 1 12 4.7zm0 14.6c-1.7 0-3.2-.6-4.5-1.5L17.8 7.5A7.3 7.3 0 0 1 12 19.3z",
  close: "M6.4 5 5 6.4l5.6 5.6L5 17.6 6.4 19l5.6-5.6 5.6 5.6 1.4-1.4-5.6-5.6L19 6.4 17.6 5 12 10.6z",
  copy: "M8 2.5h11v14H8zM10 4.5v10h7v-10zM4 6.5h2.2v13H15v2H4z",
  bell: "M12 2.5a1.5 1.5 0 0 1 1.5 1.5v.7A6 6 0 0 1 18 10.5V16l2 2v1H4v-1l2-2v-5.5a6 6 0 0 1 4.5-5.8V4A1.5 1.5 0 0 1 12 2.5zM9.8 20h4.4a2.2 2.2 0 0 1-4.4 0z",
  alert: "M12 3 1.8 20.5h20.4zM11 9.5h2v5.5h-2zM11 16.6h2v2h-2z",
};
const STATES = { connecting: "connecting…", live: "live", reconnecting: "reconnecting…", offline: "offline", refused: "not connected" };

const part = (name, tag = "div", attributes = {}, ...children) => make(tag, `ipfs-feed-${name}`, attributes, ...children);
const counted = (n, one) => `${n.toLocaleString()} ${one}${n === 1 ? "" : "s"}`;
const setText = (node, text) => node.textContent !== text && (node.textContent = text);

function button(name, label, click, text = "") {
  const node = part(text ? "choice" : "action", "button", { type: "button", title: label, "aria-label": label });
  if (ICONS[name]) node.append(icon(ICONS[name]));
  node.append(text);
  node.dataset.does = name;
  node.addEventListener("click", click);
  return node;
}

class View {
  off = new Set(); // types that are switched off
  chips = new Map();
  query = "";
  texts = new WeakMap(); // what is searched of each entry
  held = null; // {entries, come} while paused
  spoken = 0; // events that a screen reader heard of
  inSight = true;

  constructor(session, el) {
    this.session = session;
    this.build();
    this.listen();
    el.append(this.root);
    this.spoken = session.come;
    this.paint();
  }

  build() {
    this.status = part("status", "span", {}, part("dot", "span"), part("state", "span"));
    this.search = part("search", "input", { type: "search", placeholder: "Filter", "aria-label": "Filter by text", spellcheck: "false", maxlength: "200" });
    this.pauseButton = button("pause", "Pause", () => this.toggle());
    this.clearButton = button("clear", "Clear the list", () => this.clear());
    this.types = part("chips", "div", { role: "group", "aria-label": "Types" });
    this.notice = part("notice", "div", { role: "status", hidden: "" });
    this.rows = new Rows({ onScroll: () => this.scrolled(), onOpen: (entry) => this.open(entry) });
    this.more = part("more", "button", { type: "button", hidden: "" });
    this.empty = part("empty");
    this.stage = part("stage", "div", {}, this.rows.node, this.more, this.empty);
    this.detail = part("detail", "section", { hidden: "", "aria-label": "Detail" });
    this.facts = part("facts", "span");
    this.said = part("said", "div", { role: "status", "aria-live": "polite" });
    this.root = part("", "div", { role: "region", "aria-label": "Notifications" });
    this.root.className = "ipfs-feed";
    const head = part("head", "div", {}, this.status, this.search, this.pauseButton, this.clearButton);
    this.root.append(head, this.types, this.notice, this.stage, this.detail, part("foot", "div", {}, this.facts), this.said);
  }

  listen() {
    const { root, search } = this;
    search.addEventListener("input", () => this.refilter(() => (this.query = search.value.trim().toLowerCase())));
    search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "Enter") (event.preventDefault(), this.rows.go(0));
      else if (event.key === "Escape" && search.value) {
        event.stopPropagation();
        this.refilter(() => (this.query = search.value = ""));
      }
    });
    this.more.addEventListener("click", () => {
      if (this.held) this.toggle();
      this.rows.scroll(0);
      this.paint();
      this.rows.go(0);
    });
    root.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && !this.detail.hidden) {
        event.stopPropagation();
        this.close();
      } else if (event.key === "/" && event.target !== search) {
        event.preventDefault();
        search.focus();
        search.select();
      }
      // Jupyter's command mode would cut, merge or run cells at single keys.
      if (!event.ctrlKey && !event.altKey && !event.metaKey && event.key !== "Escape") event.stopPropagation();
    });
    this.looking = new IntersectionObserver(([{ isIntersecting }]) => {
      this.inSight = isIntersecting;
      if (isIntersecting) this.paint();
    });
    this.looking.observe(root);
    this.woken = () => document.hidden || this.paint();
    document.addEventListener("visibilitychange", this.woken);
    this.ticking = setInterval(() => this.tick(), limits.times);
  }

  get unseen() {
    return document.hidden || !this.inSight;
  }

  // ---- what the user does

  refilter(change) {
    change();
    this.rows.scroll(0);
    this.paint();
  }

  toggle() {
    this.held = this.held ? null : { entries: [...this.session.entries], come: this.session.come };
    this.say(this.held ? "Paused" : "Resumed");
    this.paint();
  }

  clear() {
    if (this.held) this.held = { entries: [], come: this.session.come };
    for (const type of this.chips.keys()) if (!this.off.has(type)) this.dropChip(type);
    this.session.clear();
    this.close();
    this.say("Cleared");
    this.search.focus();
  }

  open(entry) {
    this.rows.chosen = entry;
    const { event, type, family, time } = entry;
    const text = part("json", "pre", { tabindex: "0", "aria-label": "The event as JSON" }, pretty(event));
    const copy = button("copy", "Copy the event as JSON", () => this.copy(event, text, copy), "Copy");
    const facts = [absoluteTime(time), event.source && `from ${clean(String(event.source), 60)}`, event.id && `no. ${event.id}`].filter(Boolean);
    const kind = part("kind", "span", { title: type }, icon(family.icon), labelOf(type));
    const bar = part("bar", "div", {}, kind, part("about", "span", {}, facts.join(" · ")), copy, button("close", "Close the detail", () => this.close()));
    const links = cidsIn(event).map((cid) => this.link(cid));
    this.detail.dataset.tone = family.tone;
    this.detail.replaceChildren(bar, ...(links.length ? [part("links", "div", {}, ...links)] : []), text);
    this.detail.hidden = false;
    this.rows.place(Date.now());
  }

  link(cid) {
    const node = part("link", "a", { target: "_blank", rel: "noopener noreferrer", title: cid }, cid);
    const base = this.session.link.cookieBase; // elsewhere a link would need a token
    if (base) node.href = new URL(`ipfs/${cid}`, base).href;
    return node;
  }

  close() {
    if (this.detail.hidden) return;
    const had = this.detail.contains(document.activeElement);
    this.detail.hidden = true;
    this.detail.replaceChildren();
    this.rows.chosen = null;
    this.rows.place(Date.now());
    if (had) this.rows.go(this.rows.shown.indexOf(this.rows.active));
  }

  async copy(event, shown, node) {
    let text;
    try {
      text = JSON.stringify(event, null, 1);
    } catch {
      text = shown.textContent; // nested too deeply
    }
    if (await copyText(text)) {
      this.say("The event is in the clipboard");
      node.classList.add("is-copied");
      setTimeout(() => node.classList.remove("is-copied"), 1200);
    } else {
      getSelection().selectAllChildren(shown); // the user's own copy key does it then
      this.say("The event is selected");
    }
  }

  say(text) {
    this.said.textContent = text;
  }

  // ---- painting: what the user did and how the connection stands at once, what is new a few times a second

  changed(now) {
    if (now) this.paint();
    else if (!this.unseen) this.painting ??= setTimeout(() => this.paint(), Math.max(limits.gather, this.painted + limits.paint - performance.now()));
  }

  scrolled() {
    this.rows.place(Date.now());
    this.paintMore();
  }

  tick() {
    if (this.unseen) return;
    this.rows.place(Date.now());
    this.announce();
  }

  paint() {
    clearTimeout(this.painting);
    Object.assign(this, { painting: null, painted: performance.now() });
    const { session, root } = this;
    const entries = this.held?.entries ?? session.entries;
    const shown = this.filtered(entries);
    root.dataset.state = session.shown;
    root.classList.toggle("is-paused", Boolean(this.held));
    this.rows.height = session.model.get("height");
    this.rows.paint(shown, Date.now());
    this.paintHead();
    this.paintChips();
    this.paintNotice();
    this.paintEmpty(entries, shown);
    this.paintMore();
    this.paintFacts(entries, shown);
  }

  filtered(entries) {
    const { off, query } = this;
    const shown = [];
    for (let at = entries.length - 1; at >= 0; at--) {
      const entry = entries[at];
      if (!off.has(entry.type) && (!query || this.text(entry).includes(query))) shown.push(entry);
    }
    return shown;
  }

  text(entry) {
    let text = this.texts.get(entry);
    if (text === undefined) this.texts.set(entry, (text = searchText(entry.event)));
    return text;
  }

  paintHead() {
    const { session, pauseButton } = this;
    setText(this.status.lastChild, STATES[session.shown]);
    this.status.title = session.reason;
    const label = this.held ? "Resume" : "Pause";
    if (pauseButton.title === label) return;
    pauseButton.title = label;
    pauseButton.setAttribute("aria-label", label);
    pauseButton.replaceChildren(icon(ICONS[this.held ? "resume" : "pause"]));
  }

  // A chip for each type that was asked for by name, or came.
  paintChips() {
    const { session, off } = this;
    const asked = session.model.get("types").filter((type) => type !== "all_events");
    for (const type of [...asked, ...session.counts.keys()]) if (!this.chips.has(type)) this.addChip(type);
    for (const [type, { node, count }] of this.chips) {
      const n = session.counts.get(type) ?? 0;
      setText(count, n.toLocaleString());
      node.classList.toggle("is-none", !n);
      const on = String(!off.has(type));
      if (node.getAttribute("aria-pressed") !== on) node.setAttribute("aria-pressed", on);
    }
    this.types.hidden = this.chips.size < 2 && !off.size;
  }

  addChip(type) {
    const count = part("count", "span");
    const node = part("chip", "button", { type: "button", title: type, "data-tone": familyOf(type).tone }, part("dot", "span"), labelOf(type), count);
    node.addEventListener("click", () => this.refilter(() => this.off.delete(type) || this.off.add(type)));
    const after = [...this.chips].find(([other]) => rankOf(other) > rankOf(type));
    this.types.insertBefore(node, after?.[1].node ?? null);
    this.chips.set(type, { node, count });
    this.chips = new Map([...this.chips].sort(([a], [b]) => rankOf(a) - rankOf(b)));
  }

  dropChip(type) {
    this.chips.get(type).node.remove();
    this.chips.delete(type);
  }

  paintNotice() {
    const { session, notice } = this;
    const note = session.model.get("note");
    const texts = [...session.notes, ...(note ? [note] : [])].map((text) => clean(text, 400));
    if (notice.dataset.text === texts.join("\n")) return;
    notice.dataset.text = texts.join("\n");
    notice.replaceChildren(...texts.map((text) => make("p", "", {}, text)));
    notice.hidden = !texts.length;
  }

  paintEmpty(entries, shown) {
    const { session, empty } = this;
    const what = shown.length ? "" : entries.length ? "nothing" : session.shown;
    empty.hidden = !what;
    const key = `${what} ${session.reason}`;
    if (empty.dataset.key === key) return;
    empty.dataset.key = key;
    const again = () => button("again", "Try again", () => session.connect(), "Try again");
    const all = () => button("all", "Show all", () => this.refilter(() => (this.off.clear(), (this.query = this.search.value = ""))), "Show all");
    const [head, text, act] = {
      connecting: ["Connecting…", session.reason && sentence(session.reason)],
      live: ["Nothing yet", "What happens from now on comes here."],
      reconnecting: ["The connection was lost", "It comes back as soon as the server can be reached; nothing is missed meanwhile."],
      offline: ["This computer is offline", "The feed goes on as soon as the network is back."],
      refused: ["No notifications", session.reason && sentence(session.reason), again],
      nothing: ["Nothing matches", "", all],
    }[what] ?? [""];
    const mark = icon(ICONS[what === "refused" ? "alert" : "bell"]);
    empty.dataset.what = what;
    empty.replaceChildren(mark, make("strong", "", {}, head), make("p", "", {}, text || ""), ...(act ? [act()] : []));
  }

  // How many came that are not in sight: since the pause, or above what is scrolled to.
  paintMore() {
    const { session, more, rows } = this;
    let text = "";
    if (this.held) {
      const n = session.come - this.held.come;
      text = n ? `${n.toLocaleString()} new` : "";
    } else if (rows.top > 0) {
      text = "↑ newest";
    }
    more.hidden = !text;
    if (text) setText(more, text);
    more.setAttribute("aria-label", this.held ? `${text}: resume` : "Go to the newest");
  }

  paintFacts(entries, shown) {
    const { session } = this;
    const n = entries.length;
    const facts = [!n ? "No events" : shown.length < n ? `${shown.length.toLocaleString()} of ${counted(n, "event")} shown` : counted(n, "event")];
    if (session.dropped) facts.push(`the last ${session.model.get("limit").toLocaleString()} are kept, ${session.dropped.toLocaleString()} older dropped`);
    if (this.held) facts.push("paused");
    setText(this.facts, facts.join(" · "));
  }

  // A screen reader hears of what is new in one sentence now and then.
  announce() {
    const { session } = this;
    const n = session.come - this.spoken;
    const last = session.entries.at(-1);
    if (!n || !last || this.held || Date.now() - (this.spokenAt ?? 0) < limits.speak) return;
    Object.assign(this, { spoken: session.come, spokenAt: Date.now() });
    const words = summarise(last.event).slice(0, 2).map(({ text }) => text).join(", ");
    this.say(`${counted(n, "new event")}, the latest: ${labelOf(last.type)} ${words}`);
  }

  dispose() {
    clearTimeout(this.painting);
    clearInterval(this.ticking);
    this.looking.disconnect();
    document.removeEventListener("visibilitychange", this.woken);
    this.root.remove();
  }
}

export default () => {
  const session = new Session();
  return {
    initialize: ({ model }) => session.initialize(model),
    render: ({ el }) => {
      const view = new View(session, el);
      session.views.add(view);
      return () => {
        session.views.delete(view);
        view.dispose();
      };
    },
  };
};

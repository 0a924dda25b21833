// The looks of ipfs_stream_nb.widgets.Uploader: a place to drop things, and a row for each. Session does the work.
import { fromDrop, fromInput } from "./choose.js";
import { copyText, icon, make, sentence, sizeText, timeText } from "./page.js";
import { limits as remembering } from "./remembered.js";
import { Session } from "./upload-session.js";


const ICONS = {
  up: "M12 3.2 6 9.2l1.5 1.5 3.4-3.4V16h2.2V7.3l3.4 3.4L18 9.2zM4 15v5.5h16V15h-2.2v3.3H6.2V15z",
  file: "M5.5 2.5h8.2l4.8 4.8v14.2h-13zM13 4.5v3.6h3.6zM8 11.5v1.6h8v-1.6zM8 15v1.6h5.5V15z",
  folder: "M3 5h6.6l2 2.2H21V19H3z",
  done: "M9.6 17.4 4.2 12l1.6-1.6 3.8 3.8 8.6-8.6 1.6 1.6z",
  alert: "M12 3 1.8 20.5h20.4zM11 9.5h2v5.5h-2zM11 16.6h2v2h-2z",
  pause: "M7 5.5h3.6v13H7zM13.4 5.5H17v13h-3.6z",
  resume: "M8 5.5v13l10.5-6.5z",
  retry: "M12 5.5V2L6.8 6.8 12 11.4V8a5 5 0 1 1-5 5H4.5A7.5 7.5 0 1 0 12 5.5z",
  remove: "M6.4 5 5 6.4l5.6 5.6L5 17.6 6.4 19l5.6-5.6 5.6 5.6 1.4-1.4-5.6-5.6L19 6.4 17.6 5 12 10.6z",
  copy: "M8 2.5h11v14H8zM10 4.5v10h7v-10zM4 6.5h2.2v13H15v2H4z",
};
const PAINT = 100; // ms between two paintings of what only grows

const part = (name, tag = "div", attributes = {}, ...children) => make(tag, `ipfs-uploader-${name}`, attributes, ...children);
const middle = (text, most) => (text.length > most ? `${text.slice(0, most / 2)}…${text.slice(-most / 2)}` : text);
const counted = (n, one) => `${n} ${one}${n === 1 ? "" : "s"}`;

function button(name, label, click, { text } = {}) {
  const node = part(text ? "choice" : "action", "button", { type: "button" }, icon(ICONS[name]));
  if (text) node.append(text);
  node.dataset.does = name;
  node.title = label;
  node.setAttribute("aria-label", label);
  node.addEventListener("click", click);
  return node;
}

// One row. `entry` is an item of this page, a result of the kernel's list, or an upload that an earlier page began.
class Row {
  constructor(view, entry) {
    Object.assign(this, { view, entry });
    this.badge = part("badge", "span");
    this.name = part("name", "span", { title: entry.name }, middle(entry.name, 48));
    this.facts = part("facts", "span");
    this.bar = part("bar", "div", { role: "progressbar", "aria-label": entry.name, "aria-valuemin": "0", "aria-valuemax": "100" }, part("fill", "span"));
    this.words = part("words");
    this.actions = part("actions");
    this.node = part("row", "li", {}, this.badge, part("body", "div", {}, part("head", "div", {}, this.name, this.facts), this.bar, this.words), this.actions);
  }

  paint() {
    const { entry, node } = this;
    const state = entry.phase ?? entry.state;
    const changed = node.dataset.state !== state;
    node.dataset.state = state;
    this.facts.textContent = this.describe(state);
    this.paintBar(state);
    if (changed) this.dress(state);
    const words = this.explain(state);
    if (this.words.textContent !== words) this.words.textContent = words;
    this.words.hidden = !words;
    node.classList.toggle("has-note", Boolean(this.entry.note));
  }

  describe(state) {
    const { kind, size, sent, files, parts, done, rate } = this.entry;
    const all = files ?? parts?.length;
    if (state === "done") return [kind === "folder" && counted(all, "file"), sizeText(size)].filter(Boolean).join(" · ");
    const facts = [kind === "folder" && parts && `${done} of ${counted(all, "file")}`, size ? `${sizeText(Math.min(sent, size))} of ${sizeText(size)}` : ""];
    if (state === "waiting") facts.splice(1, 1, sizeText(size), "waiting");
    if (state === "paused") facts.push("paused");
    if (state === "finishing") facts.push("finishing");
    if (rate) facts.push(`${sizeText(Math.round(rate))}/s`, rate > 1 ? `${timeText((size - sent) / rate)} left` : "");
    return facts.filter(Boolean).join(" · ");
  }

  explain(state) {
    const { error, note, hidden, kind } = this.entry;
    if (state === "error") return sentence(error);
    if (state === "reconnecting") return "The connection was lost. It goes on as soon as the server can be reached.";
    if (state === "interrupted") return `Not finished. Choose ${kind === "folder" ? "the folder" : "the file"} again, and it goes on from there.`;
    if (state === "done" && note) return note;
    if (state === "done" && hidden) return `Without ${counted(hidden, "hidden file")}.`;
    return "";
  }

  paintBar(state) {
    const { size, sent } = this.entry;
    const percent = state === "done" ? 100 : size ? Math.min(100, (100 * sent) / size) : 0;
    this.bar.hidden = state === "done" || (state === "error" && !sent);
    this.bar.firstChild.style.width = `${percent}%`;
    this.bar.setAttribute("aria-valuenow", String(Math.floor(percent)));
    this.bar.setAttribute("aria-valuetext", `${Math.floor(percent)} %, ${state}`);
  }

  // What depends on the state alone: made anew only then, so that the focus stays where it is.
  dress(state) {
    const { view } = this;
    const { kind, name } = this.entry;
    const badge = { done: "done", error: "alert" }[state] ?? kind;
    this.badge.replaceChildren(icon(ICONS[badge]));
    this.words.toggleAttribute("role", false);
    if (state === "error") this.words.setAttribute("role", "alert");
    const had = this.actions.contains(document.activeElement);
    const pause = ["pause", "Pause", () => this.entry.pause()];
    const actions = {
      waiting: [pause],
      uploading: [pause],
      reconnecting: [pause],
      paused: [["resume", "Resume", () => this.entry.resume()]],
      error: [["retry", "Try again:", () => this.entry.resume()]],
      interrupted: [["resume", "Choose again and resume", () => view.choose(kind === "folder")]],
      done: [["copy", "Copy the CID of", () => view.copy(this)]],
    }[state] ?? [];
    if (state === "interrupted") actions.push(["remove", "Forget", () => view.remove(this, () => view.session.discard(this.entry))]);
    else if (state !== "done") actions.push(["remove", "Cancel", () => view.remove(this, () => this.entry.remove())]);
    this.actions.replaceChildren(...actions.map(([does, label, click]) => button(does, `${label} ${name}`, click)));
    if (had) this.actions.querySelector("button")?.focus();
    this.node.querySelector(".ipfs-uploader-cid")?.remove();
    if (state === "done") this.bar.after(this.link());
  }

  link() {
    const { cid } = this.entry;
    const link = part("cid", "a", { target: "_blank", rel: "noopener", title: cid }, cid);
    const base = this.view.session.link.cookieBase; // elsewhere a link would need a token
    if (base) link.href = new URL(`ipfs/${cid}`, base).href;
    return link;
  }
}

class View {
  rows = new Map();
  spoken = new WeakMap(); // the state of each item that a screen reader was told
  dragged = 0;

  constructor(session, el) {
    this.session = session;
    this.model = session.model;
    this.build(el);
    this.paint();
    // What another page was at work on is free some seconds after its last word.
    this.looking = setInterval(() => this.paint(), remembering.alive);
  }

  build(el) {
    const input = (attributes) => {
      const node = make("input", "", { type: "file", hidden: "", tabindex: "-1", ...attributes });
      node.addEventListener("change", () => {
        this.take(fromInput(node));
        node.value = ""; // so that the same file can be chosen again
      });
      return node;
    };
    this.files = input({ "aria-label": "Files to upload" });
    this.folder = input({ webkitdirectory: "", "aria-label": "Folder to upload" });
    this.chooseFiles = button("file", "Choose files to upload", () => this.choose(false), { text: "Choose files…" });
    this.chooseFolder = button("folder", "Choose a folder to upload", () => this.choose(true), { text: "Choose a folder…" });
    this.hint = part("hint", "span");
    this.drop = part("drop", "div", {}, part("sign", "span", {}, icon(ICONS.up)), part("call", "span"), part("choices", "div", {}, this.chooseFiles, this.chooseFolder), this.hint);
    this.notice = part("notice", "div", { role: "alert", hidden: "" });
    this.list = part("list", "ul", { "aria-label": "Uploads", tabindex: "-1" });
    this.summary = part("summary", "span");
    this.pauseAll = part("all", "button", { type: "button" });
    this.pauseAll.addEventListener("click", () => this.toggleAll());
    this.foot = part("foot", "div", {}, this.summary, this.pauseAll);
    this.said = part("said", "div", { role: "status", "aria-live": "polite" });
    this.root = make("div", "ipfs-uploader", { role: "region", "aria-label": "Upload to IPFS" });
    this.root.append(this.drop, this.notice, this.list, this.foot, this.said, this.files, this.folder);
    this.listen();
    el.append(this.root);
  }

  listen() {
    const { root } = this;
    const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
    const over = (depth) => {
      this.dragged = Math.max(0, depth);
      root.classList.toggle("is-over", this.dragged > 0);
    };
    const on = (name, handler) => root.addEventListener(name, (event) => files(event) && (event.preventDefault(), event.stopPropagation(), handler(event)));
    on("dragenter", () => over(this.dragged + 1));
    on("dragleave", () => over(this.dragged - 1));
    on("dragover", (event) => (event.dataTransfer.dropEffect = "copy"));
    on("drop", (event) => {
      over(0);
      fromDrop(event.dataTransfer).then(
        (chosen) => this.take(chosen),
        (error) => this.tell([`What was dropped cannot be read: ${error.message}`]),
      );
    });
    // Jupyter's command mode would cut, merge or run cells at single keys.
    root.addEventListener("keydown", (event) => event.ctrlKey || event.altKey || event.metaKey || event.key === "Escape" || event.stopPropagation());
  }

  choose(folder) {
    (folder ? this.folder : this.files).click();
  }

  take(chosen) {
    this.tell(this.session.add(chosen));
    const taken = chosen.length;
    if (taken) this.say(`${counted(taken, "upload")} added`);
    this.paint();
  }

  // What was left out, and why.
  tell(notes) {
    const shown = notes.slice(0, 3).concat(notes.length > 3 ? [`And ${notes.length - 3} more.`] : []);
    this.notice.replaceChildren(...shown.map((text) => make("p", "", {}, text)));
    this.notice.hidden = !notes.length;
  }

  say(text) {
    this.said.textContent = text;
  }

  async copy({ entry, node }) {
    if (await copyText(entry.cid)) {
      this.say(`The CID of ${entry.name} is in the clipboard`);
      node.classList.add("is-copied");
      setTimeout(() => node.classList.remove("is-copied"), 1200);
      return;
    }
    // Without leave for the clipboard the user's own copy key does it.
    getSelection().selectAllChildren(node.querySelector(".ipfs-uploader-cid"));
    this.say("The CID is selected");
  }

  remove(row, remove) {
    const next = row.node.nextElementSibling ?? row.node.previousElementSibling;
    remove();
    this.say(`${row.entry.name} removed`);
    (next?.querySelector("button") ?? this.chooseFiles).focus();
  }

  toggleAll() {
    const { items } = this.session;
    const running = items.filter((item) => item.running);
    if (running.length) running.forEach((item) => item.pause());
    else items.filter((item) => item.state === "paused").forEach((item) => item.resume());
  }

  // ---- painting

  changed(item, now) {
    if (now) {
      const words = { done: `${item.name} is uploaded`, error: `${item.name} failed`, paused: `${item.name} is paused` }[item.state];
      if (words && this.spoken.get(item) !== item.state) this.say(words);
      this.spoken.set(item, item.state);
      this.paint();
    } else {
      this.painting ??= setTimeout(() => this.paint(), PAINT);
    }
  }

  // What there is to show: what an earlier page left, what the kernel knows, and what is going on here.
  entries() {
    const { session, model } = this;
    const results = new Map(model.get("results").map((result) => [result.id, result]));
    const own = new Set(session.items.map((item) => item.id));
    const earlier = [...results.values()].filter((result) => !own.has(result.id)).map((result) => ({ ...result, state: "done", sent: result.size }));
    session.items.forEach((item) => (item.note = results.get(item.id)?.note));
    const left = session.remembered.interrupted().map((group) => ({ ...group, id: group.key, state: "interrupted" }));
    return [...left, ...earlier, ...session.items];
  }

  paint() {
    clearTimeout(this.painting);
    this.painting = null;
    this.paintChoices();
    const entries = this.entries();
    const kept = new Set(entries.map(({ id }) => id));
    for (const [id, row] of this.rows) {
      if (kept.has(id)) continue;
      row.node.remove();
      this.rows.delete(id);
    }
    entries.forEach((entry, at) => {
      const row = this.rows.get(entry.id) ?? new Row(this, entry);
      this.rows.set(entry.id, Object.assign(row, { entry }));
      row.paint();
      if (this.list.children[at] !== row.node) this.list.insertBefore(row.node, this.list.children[at] ?? null);
    });
    this.list.hidden = !entries.length;
    this.paintFoot(entries);
    const state = this.session.items.some((item) => item.running) ? "busy" : entries.length ? "idle" : "empty";
    this.root.dataset.state = state;
  }

  paintChoices() {
    const { model, drop } = this;
    const [multiple, accept, profile] = [model.get("multiple"), model.get("accept"), model.get("profile")];
    for (const input of [this.files, this.folder]) input.toggleAttribute("multiple", multiple);
    this.files.accept = accept;
    this.chooseFolder.hidden = !multiple;
    drop.querySelector(".ipfs-uploader-call").textContent = multiple ? "Drop files or folders here" : "Drop a file here";
    this.chooseFiles.lastChild.data = multiple ? "Choose files…" : "Choose a file…";
    const facts = [accept && `only ${accept.replaceAll(",", ", ")}`, profile && `CIDs by ${profile}`, !model.get("pin") && "not pinned"].filter(Boolean).join(" · ");
    this.hint.textContent = facts;
    this.hint.hidden = !facts;
  }

  paintFoot(entries) {
    const { items } = this.session;
    const done = entries.filter(({ state }) => state === "done").length;
    this.foot.hidden = entries.length < 2;
    const running = items.filter((item) => item.running);
    const paused = items.filter((item) => item.state === "paused");
    const [sent, size] = [items, items].map((list, which) => list.reduce((total, item) => total + (which ? item.size : Math.min(item.sent, item.size)), 0));
    this.summary.textContent = `${done} of ${entries.length} done` + (running.length ? ` · ${sizeText(sent)} of ${sizeText(size)}` : "");
    this.pauseAll.hidden = running.length + paused.length < 2;
    this.pauseAll.textContent = running.length ? "Pause all" : "Resume all";
  }

  dispose() {
    clearInterval(this.looking);
    clearTimeout(this.painting);
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

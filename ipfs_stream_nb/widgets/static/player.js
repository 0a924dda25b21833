// The browser's side of ipfs_stream_nb.widgets.Player: one session per model, one view per place it is shown in.
//
// Who may say what: the view that was last used (the leader) reports time and state to the kernel; commands from
// the kernel go to it alone. A change that a report of ours made is never taken for a wish of the kernel.

export const limits = {
  reportEvery: 250, // ms between two reports of the time
  patience: 3000, // ms until a wait is explained to the user
  kernelTimeout: 30000, // ms that a question to the kernel may stay open
  attempts: 3, // reloads in a row without anything played in between
  idle: 2500, // ms without a pointer until the controls fade
  narrow: 420, // px of width under which the controls that can be missed go
};

const SHORTCUTS = "Space K J L M F , . < > ArrowLeft ArrowRight ArrowUp ArrowDown Home End 0 1 2 3 4 5 6 7 8 9";
const RATES = [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2];
const ICONS = {
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M7 5.5h3.6v13H7zM13.4 5.5H17v13h-3.6z",
  replay: "M12 5.5V2L6.8 6.8 12 11.4V8a5 5 0 1 1-5 5H4.5A7.5 7.5 0 1 0 12 5.5z",
  sound: "M4 9.5v5h3.2l4.3 4v-13l-4.3 4zM14 8.4v7.2c1.4-.7 2.2-2 2.2-3.6s-.8-2.9-2.2-3.6zM14 4.3v2.1c2.5.8 4.2 3 4.2 5.6s-1.7 4.8-4.2 5.6v2.1c3.6-.9 6.2-4 6.2-7.7S17.6 5.2 14 4.3z",
  silent: "M4 9.5v5h3.2l4.3 4v-13l-4.3 4zM20.5 9.9 19.1 8.5 17 10.6l-2.1-2.1-1.4 1.4 2.1 2.1-2.1 2.1 1.4 1.4 2.1-2.1 2.1 2.1 1.4-1.4-2.1-2.1z",
  pip: "M3.5 5h17v14h-17zM5.5 7v10h13V7zM11.5 11.5h5.5v4h-5.5z",
  expand: "M4 4h6v2H6v4H4zM14 4h6v6h-2V6h-4zM4 14h2v4h4v2H4zM18 14h2v6h-6v-2h4z",
  shrink: "M8 4h2v6H4V8h4zM14 4h2v4h4v2h-6zM4 14h6v6H8v-4H4zM14 14h6v2h-4v4h-2z",
  note: "M9.5 5 19 3v12.2a3 3 0 1 1-2-2.8V7.3l-5.5 1.2v8.7a3 3 0 1 1-2-2.8z",
  alert: "M12 3 1.8 20.5h20.4zM11 9.5h2v5.5h-2zM11 16.6h2v2h-2z",
  file: "M5.5 2.5h8.2l4.8 4.8v14.2h-13zM13 4.5v3.6h3.6zM8 11.5v1.6h8v-1.6zM8 15v1.6h5.5V15z",
};

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
const finite = (x) => (Number.isFinite(x) ? x : 0);
const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
const percent = (x) => `${Math.round(x * 100)} %`;

export function clock(seconds) {
  const s = Math.max(0, Math.floor(finite(seconds)));
  const two = (n) => String(n).padStart(2, "0");
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

export function bytes(n) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return `${i ? n.toFixed(1) : n} ${units[i]}`;
}

function make(tag, name, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = `ipfs-player-${name}`;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(space, "path");
  path.setAttribute("fill-rule", "evenodd");
  svg.append(path);
  path.setAttribute("d", ICONS[name]);
  return svg;
}

function face(button, name, label) {
  if (button.dataset.icon !== name) {
    button.dataset.icon = name;
    button.replaceChildren(icon(name));
  }
  button.setAttribute("aria-label", label);
  button.title = label;
}

// JupyterLab and Notebook 7 write their base URL into the page; the kernel's own idea is the fallback.
function pageBaseUrl(fallback) {
  try {
    const config = document.getElementById("jupyter-config-data");
    return JSON.parse(config.textContent).baseUrl || fallback;
  } catch {
    return document.body?.dataset.baseUrl || fallback;
  }
}

// What the server says of a source that an element could not load: elements hide the status.
async function diagnose(url) {
  const request = { headers: { Range: "bytes=0-0" }, cache: "no-store" };
  try {
    const response = await fetch(url, { ...request, credentials: "same-origin" });
    if (response.ok) {
      await response.body?.cancel();
      return { ok: true };
    }
    const body = await response.json().catch(() => ({}));
    return { status: response.status, text: typeof body.message === "string" ? body.message : "" };
  } catch {
    // Another origin that allows no reading: an opaque answer still tells that somebody is there.
    const seen = await fetch(url, { mode: "no-cors", cache: "no-store", method: "HEAD" }).catch(() => null);
    return seen ? { opaque: true } : { unreachable: true };
  }
}

class Session {
  views = new Set();
  leader = null;
  questions = new Map();
  reporting = false;
  done = 0; // the last command that was carried out
  token = null; // promise of a URL that carries a capability token

  initialize(model) {
    this.model = model;
    const heard = [];
    const on = (event, callback) => {
      model.on(event, callback);
      heard.push([event, callback]);
    };
    on("msg:custom", (message) => this.receive(message));
    for (const name of ["volume", "muted", "playback_rate", "loop", "controls", "width", "poster"]) {
      on(`change:${name}`, () => this.views.forEach((view) => view.apply(name)));
    }
    on("change:current_time", () => this.reporting || this.leader?.seek(model.get("current_time")));
    on("change:paused", () => this.reporting || this.leader?.[model.get("paused") ? "pause" : "play"]());
    return () => heard.forEach(([event, callback]) => model.off(event, callback));
  }

  render(el) {
    const view = new View(this, el);
    this.views.add(view);
    this.leader ??= view;
    view.start();
    this.send({ event: "ready" });
    return () => this.remove(view);
  }

  remove(view) {
    const playing = this.leader === view && view.playing;
    view.dispose();
    this.views.delete(view);
    if (this.leader !== view) return;
    if (playing) this.report(view, { paused: true, state: "paused" });
    this.leader = this.views.values().next().value ?? null;
  }

  lead(view) {
    if (this.leader === view) return;
    this.leader?.pause();
    this.leader = view;
    view.setState(view.state);
  }

  report(view, values) {
    if (view !== this.leader) return;
    this.reporting = true;
    try {
      Object.entries(values).forEach(([name, value]) => this.model.set(name, value));
    } finally {
      this.reporting = false;
    }
    this.model.save_changes();
  }

  // Volume, mute and rate are the model's: whichever view they are set in, all follow.
  share(values) {
    Object.entries(values).forEach(([name, value]) => this.model.set(name, value));
    this.model.save_changes();
  }

  send(message) {
    this.model.send(message);
  }

  receive(message) {
    if ("request" in message) {
      this.questions.get(message.request)?.(message);
    } else if (this.leader && ["play", "pause", "seek"].includes(message.type)) {
      // The kernel repeats what was not yet acknowledged when a view says that it is ready.
      if (message.id > this.done) this.leader[message.type](message.time);
      this.done = Math.max(this.done, message.id);
      this.send({ event: "ack", id: message.id });
    }
  }

  // Ask the kernel; it may be busy with a cell for long, hence a time limit that is long as well.
  ask(event) {
    const request = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2)}`;
    return new Promise((resolve, reject) => {
      const done = (settle, value) => {
        clearTimeout(timer);
        this.questions.delete(request);
        settle(value);
      };
      const timer = setTimeout(() => done(reject, new Error("the kernel did not answer")), limits.kernelTimeout);
      this.questions.set(request, (answer) =>
        answer.error ? done(reject, new Error(answer.error)) : done(resolve, answer),
      );
      this.send({ event, request });
    });
  }

  // The cookie serves the page's own server. Everything else needs a URL with a token, which only the kernel can give.
  get base() {
    return this.model.get("same_origin") && location.protocol.startsWith("http") && !this.cookieFailed
      ? new URL(pageBaseUrl(this.model.get("base_url")), location.origin)
      : null;
  }

  async url() {
    const base = this.base;
    if (base) return new URL(`ipfs/${this.model.get("path").split("/").map(encodeURIComponent).join("/")}`, base).href;
    this.token ??= this.ask("url");
    try {
      const answer = await this.token;
      const own = this.model.get("same_origin") && document.getElementById("jupyter-config-data");
      // Behind a proxy or a hub the kernel knows another address of the same server than the page does.
      return own ? new URL(pageBaseUrl("/") + answer.relative, location.origin).href : answer.url;
    } catch (error) {
      this.token = null;
      throw error;
    }
  }
}

class View {
  state = "loading";
  playing = false; // what is wanted, kept over reloads
  position = 0;
  generation = 0; // a reload makes answers to earlier questions stale
  failures = 0;
  lastReport = 0;
  timers = {};
  listening = new AbortController();

  constructor(session, el) {
    this.session = session;
    this.model = session.model;
    this.kind = this.model.get("kind");
    this.position = this.model.get("current_time");
    this.playing = this.model.get("autoplay");
    this.build(el);
    for (const name of ["volume", "muted", "playback_rate", "loop", "controls", "width", "poster"]) this.apply(name);
  }

  get duration() {
    return finite(this.media?.duration);
  }

  // ---- the page ----------------------------------------------------------------------------------------------

  build(el) {
    const { kind, model } = this;
    const what = { video: "Video", audio: "Audio", image: "Image" }[kind] ?? "Content";
    this.root = make("div", "", { tabindex: "0", role: "region", "aria-label": `${what} ${model.get("path")}` });
    if (kind === "video" || kind === "audio") this.root.setAttribute("aria-keyshortcuts", SHORTCUTS);
    this.root.className = "ipfs-player";
    this.root.dataset.kind = kind;
    const path = model.get("path");
    const name = path.slice(path.lastIndexOf("/") + 1);
    const short = name.length > 40 ? `${name.slice(0, 16)}…${name.slice(-16)}` : name;
    this.facts = make("span", "facts");
    const title = make("span", "name", { title: path }, short);
    this.caption = make("div", "caption", {}, title, this.facts);
    this.stage = make("div", "stage");
    this.toast = make("div", "toast", { role: "status" });
    this.message = make("div", "message", { hidden: "" });
    this.stage.append(make("div", "spinner", { "aria-hidden": "true" }), this.toast, this.message);
    this.root.append(this.stage, this.caption);
    if (kind === "image") this.buildImage(path);
    if (kind === "video" || kind === "audio") this.buildMedia();
    this.describe();
    this.listen(this.root, { keydown: (event) => this.key(event) });
    // Not a container query: in cells that JupyterLab skips (content-visibility), Chromium leaves its inside unlaid.
    this.resizing = new ResizeObserver(([{ contentRect }]) => {
      this.root.classList.toggle("is-narrow", contentRect.width < limits.narrow);
    });
    this.resizing.observe(this.root);
    el.append(this.root);
  }

  buildImage(path) {
    this.image = make("img", "image", { alt: path, draggable: "false" });
    this.stage.prepend(this.image);
    this.listen(this.image, { error: () => this.failed(), load: () => this.present() });
  }

  buildMedia() {
    const media = make(this.kind, "media", { preload: "metadata", playsinline: "" });
    this.media = media;
    this.stage.prepend(media);
    this.buildControls();
    this.listen(media, {
      loadedmetadata: () => this.present(),
      durationchange: () => this.paintProgress(),
      play: () => this.session.report(this, { paused: false }),
      playing: () => {
        this.failures = 0;
        this.setState("playing");
      },
      waiting: () => media.paused || this.setState("buffering"),
      pause: () => this.paused(),
      ended: () => this.setState("ended"),
      seeking: () => this.stage.classList.add("is-seeking"),
      seeked: () => this.seeked(),
      timeupdate: () => this.tick(),
      progress: () => this.paintProgress(),
      volumechange: () => this.report({ volume: media.volume, muted: media.muted }),
      ratechange: () => this.report({ playback_rate: media.playbackRate }),
      error: () => this.failed(),
    });
    if (this.kind !== "video") return;
    this.big = make("button", "big", { type: "button", tabindex: "-1" });
    this.stage.append(this.big);
    // The button goes away with the click: the focus must not, or the next key would be the notebook's.
    this.listen(this.big, { click: () => (this.takeFocus(), this.toggle()) });
    this.listen(media, { click: () => this.toggle(), dblclick: () => this.fullscreen() });
    this.listen(this.root, { pointermove: () => this.stir(), pointerleave: () => this.stir(0) });
  }

  buildControls() {
    const button = (name, click) => {
      const node = make("button", `button ipfs-player-${name}`, { type: "button" });
      this.listen(node, { click });
      return node;
    };
    const slider = (name, label, max) =>
      make("input", name, { type: "range", min: "0", max, step: "any", value: "0", "aria-label": label });
    this.playButton = button("play", () => this.toggle());
    this.time = make("span", "time");
    this.seekBar = slider("seek", "Position", "1");
    this.tip = make("div", "tip", { "aria-hidden": "true", hidden: "" });
    this.muteButton = button("mute", () => this.mute());
    this.volumeBar = slider("volume", "Volume", "1");
    this.rate = make("select", "rate", { "aria-label": "Playback rate", title: "Playback rate (< and >)" });
    this.expand = button("expand", () => this.fullscreen());
    const bar = make("div", "controls", { role: "group", "aria-label": "Player controls" });
    const track = make("div", "track", {}, this.seekBar, this.tip);
    bar.append(this.playButton, track, this.time, this.muteButton, this.volumeBar, this.rate);
    if (this.kind === "video" && document.pictureInPictureEnabled) {
      const pip = button("pip", () => this.media.requestPictureInPicture().catch(() => {}));
      face(pip, "pip", "Picture in picture");
      bar.append(pip);
    }
    if (this.kind === "video" && document.fullscreenEnabled) bar.append(this.expand);
    this.stage.append(bar);
    this.listen(this.seekBar, { input: () => this.scrub(Number(this.seekBar.value)) });
    this.listen(this.volumeBar, { input: () => this.setVolume(Number(this.volumeBar.value)) });
    this.listen(this.rate, { change: () => this.session.share({ playback_rate: Number(this.rate.value) }) });
    this.listen(track, { pointermove: (e) => this.preview(e), pointerleave: () => (this.tip.hidden = true) });
    this.listen(document, { fullscreenchange: () => this.paintExpand() });
    this.paintExpand();
  }

  listen(target, handlers) {
    const { signal } = this.listening;
    for (const [event, handler] of Object.entries(handlers)) target.addEventListener(event, handler, { signal });
  }

  describe() {
    const { media, image, model } = this;
    const width = media?.videoWidth || image?.naturalWidth;
    const facts = [model.get("mime_type").split(";")[0], bytes(model.get("size"))];
    if (width) facts.splice(1, 0, `${width} × ${media?.videoHeight || image.naturalHeight}`);
    if (this.kind === "video" && media.videoWidth === 0 && media.readyState) facts.push("sound only: no decoder here for the picture");
    this.facts.textContent = facts.join("  ·  ");
  }

  // A trait changed, in the kernel or through another view.
  apply(name) {
    const { media, model } = this;
    const value = model.get(name);
    if (name === "width") this.root.style.width = typeof value === "number" ? `${value}px` : value;
    else if (name === "controls") this.root.classList.toggle("is-bare", !value);
    else if (!media) return;
    else if (name === "poster") value && this.kind === "video" && (media.poster = value);
    else if (name === "playback_rate") {
      // A load puts the rate back to the default one.
      media.defaultPlaybackRate = media.playbackRate = value;
      this.paintRate();
    } else {
      media[name] = value;
      this.paintVolume();
    }
  }

  // ---- loading -----------------------------------------------------------------------------------------------

  async start() {
    const generation = ++this.generation;
    if (this.kind === "other") return this.showMessage({ text: this.model.get("error") });
    this.loaded = false;
    this.url = null;
    this.setState("loading");
    this.showMessage(null);
    this.timers.patience = setTimeout(() => {
      this.say(this.url ? "Waiting for the server…" : "Waiting for the kernel…", "loading");
    }, limits.patience);
    try {
      const url = await this.session.url();
      if (generation !== this.generation) return;
      this.url = url;
      (this.media ?? this.image).src = url;
      if (this.playing) this.play();
    } catch (error) {
      if (generation === this.generation) this.refuse(this.refusal, error);
    }
  }

  present() {
    const { media } = this;
    this.describe();
    this.loaded = true;
    this.refusal = null;
    if (media) {
      if (this.position > 0) media.currentTime = Math.min(this.position, this.duration || this.position);
      if (media.videoWidth) this.stage.style.aspectRatio = `${media.videoWidth} / ${media.videoHeight}`;
      this.seekBar.max = this.duration || 1;
      this.report({ duration: this.duration || null });
      this.paintProgress();
    }
    if (this.state === "loading") this.setState(this.playing ? "buffering" : "ready");
  }

  async failed() {
    const { media, session } = this;
    const code = media?.error?.code;
    if (!this.url || code === MediaError.MEDIA_ERR_ABORTED) return;
    const generation = this.generation;
    this.setState("loading");
    const found = await diagnose(this.url);
    if (generation !== this.generation) return;
    if (found.status && session.base) {
      this.refusal = found;
      session.cookieFailed = true;
      this.start();
    } else if (this.failures++ < limits.attempts && this.worthAnother(found, code)) {
      session.token = null;
      this.start();
    } else if (found.ok || found.opaque) this.fail(code === MediaError.MEDIA_ERR_DECODE ? "decode" : "unsupported");
    else this.refuse(found);
  }

  // `error` is why the kernel gave no other address, after the server had refused the page's own.
  refuse(found, error) {
    if (found?.unreachable) this.fail("unreachable");
    else if (found) this.fail({ 401: "forbidden", 403: "forbidden", 404: "missing" }[found.status] ?? "server", found);
    else this.fail("kernel", { text: error.message });
  }

  // A token that ran out and a connection that broke are mended by asking again, at the same place.
  worthAnother(found, code) {
    const expired = this.session.token && (found.status === 401 || found.status === 403 || found.opaque);
    return expired || (found.ok && code === MediaError.MEDIA_ERR_NETWORK);
  }

  async fail(reason, { status, text = "" } = {}) {
    const { kind, model } = this;
    const [path, mime] = [model.get("path"), model.get("mime_type")];
    const reader = { video: "frames", audio: "audio" }[kind] ?? "open";
    const rescue = `The kernel may still read it: \`client.${reader}("${path}")\`. Or convert it, for instance to ${
      { video: "H.264 in MP4 or VP9 in WebM", audio: "MP3, AAC or Opus" }[kind] ?? "PNG or JPEG"
    }, and add the result.`;
    const can = this.media?.canPlayType(mime) ? "" : ` It says itself that it does not know ${mime}.`;
    const messages = {
      unsupported: [`This browser can't play this ${kind}`, (c) => `It has no decoder for ${c || mime}, or the file is damaged.${can} ${rescue}`],
      decode: [`The ${kind} can't be decoded`, (c) => `Decoding ${c || mime} stopped at ${clock(this.position)}: the file is damaged there, or uses a feature that this browser lacks. ${rescue}`],
      missing: ["Content not found", () => sentence(text) || `The server does not have ${path}.`],
      forbidden: ["Not allowed", () => `The server does not let this browser read ${path}. ${sentence(text) || "Reload the page to log in again."}`],
      unreachable: ["The server can't be reached", () => `No answer from ${this.url && new URL(this.url).origin}. Is it still running, and reachable from this browser?`],
      server: ["The server could not deliver", () => sentence(text) || `It answered with status ${status}.`],
      kernel: ["The kernel gave no address for this content", () => `${sentence(text)} Run the cell again, or restart the kernel.`],
    };
    const [title, explain] = messages[reason];
    const show = (codecs) => {
      this.showMessage({ title, text: explain(codecs).trim(), retry: true });
      this.report({ error: `${title}. ${explain(codecs).trim()}`, paused: true });
    };
    show("");
    this.setState("error");
    if (reason !== "unsupported" && reason !== "decode") return;
    const generation = this.generation;
    const codecs = await this.session.ask("codecs").then((a) => a.text, () => "");
    if (codecs && generation === this.generation) show(`${codecs} (${mime})`);
  }

  showMessage(content) {
    if (content && this.root.contains(document.activeElement)) this.takeFocus();
    this.message.hidden = !content;
    this.root.classList.toggle("has-message", Boolean(content));
    if (!content) return this.model.get("error") && this.kind !== "other" && this.report({ error: "" });
    const other = this.kind === "other";
    this.message.setAttribute("role", other ? "note" : "alert");
    const words = make("div", "words");
    if (content.title) words.append(make("strong", "", {}, content.title));
    // What stands between backticks is code.
    const parts = content.text.split("`").map((part, i) => (i % 2 ? make("code", "", {}, part) : part));
    words.append(make("p", "", {}, ...parts));
    if (content.retry) {
      const again = make("button", "retry", { type: "button" }, "Try again");
      this.listen(again, { click: () => this.retry() });
      words.append(again);
    }
    this.message.replaceChildren(icon(other ? "file" : "alert"), words);
  }

  takeFocus() {
    this.root.focus({ preventScroll: true });
  }

  retry() {
    Object.assign(this, { failures: 0 });
    Object.assign(this.session, { cookieFailed: false, token: null });
    this.takeFocus();
    this.start();
  }

  // ---- playing -----------------------------------------------------------------------------------------------

  play() {
    const { media } = this;
    if (!media) return;
    this.playing = true;
    this.session.lead(this);
    if (!media.getAttribute("src") || this.state === "error") return;
    media.play().catch((error) => {
      if (error.name !== "NotAllowedError") return;
      this.playing = false;
      this.setState("paused");
      this.report({ paused: true });
      this.say("Click to play: this browser does not start sound by itself", "paused");
    });
  }

  pause() {
    this.playing = false;
    this.media?.pause();
  }

  toggle() {
    this.session.lead(this);
    if (this.media.paused) this.play();
    else this.pause();
  }

  paused() {
    // A broken source pauses by itself; what the user wanted is kept for the reload.
    if (!this.media.error) this.playing = false;
    this.tick(true);
    this.report({ paused: true });
    if (this.state !== "error") this.setState(this.media.ended ? "ended" : "paused");
  }

  seek(time) {
    const { media } = this;
    if (!media) return;
    this.position = clamp(time, 0, this.duration || Infinity);
    if (this.loaded) media.currentTime = this.position;
    this.tick();
  }

  // While one seek runs, only the latest wish is kept: dragging must not queue up a request per pixel.
  scrub(time) {
    this.session.lead(this);
    if (this.media.seeking) this.scrubTo = time;
    else this.seek(time);
  }

  seeked() {
    this.stage.classList.remove("is-seeking");
    if (this.scrubTo !== undefined) {
      const time = this.scrubTo;
      this.scrubTo = undefined;
      return this.seek(time);
    }
    this.tick(true);
    if (this.state === "ended" && !this.media.ended) this.setState("paused");
  }

  skip(seconds) {
    this.seek(this.media.currentTime + seconds);
    this.say(`${seconds > 0 ? "+" : "−"}${Math.abs(seconds)} s`);
  }

  // Aims at the middle of a frame, where rounding cannot lead to its neighbour.
  step(frames) {
    const rate = this.model.get("frame_rate") || 30;
    this.pause();
    const frame = Math.floor(this.media.currentTime * rate + 1e-3) + frames;
    this.seek((Math.max(frame, 0) + 0.5) / rate);
    this.say(`${frames > 0 ? "+" : "−"}1 frame`);
  }

  mute() {
    this.session.share({ muted: !this.media.muted });
    this.say(this.media.muted ? "Muted" : `Volume ${percent(this.media.volume)}`);
  }

  setVolume(volume) {
    this.session.share({ volume: clamp(volume, 0, 1), muted: volume <= 0 && this.media.muted });
    this.say(`Volume ${percent(this.media.volume)}`);
  }

  changeRate(direction) {
    const now = this.media.playbackRate;
    const next = RATES[direction > 0 ? "find" : "findLast"]((rate) => (rate - now) * direction > 0);
    this.session.share({ playback_rate: next ?? now });
    this.say(`${this.media.playbackRate}×`);
  }

  fullscreen() {
    const leave = document.fullscreenElement === this.root;
    (leave ? document.exitFullscreen() : this.root.requestFullscreen()).catch(() => this.say("No full screen here"));
  }

  key(event) {
    const { key, target } = event;
    const leave = key === "Tab" || key === "Escape" || (key === "Enter" && event.shiftKey);
    if (leave || event.ctrlKey || event.altKey || event.metaKey) return;
    // Jupyter's command mode would cut, merge or run cells at single keys.
    event.stopPropagation();
    const native = target.matches("select, .ipfs-player-volume") && /^(Arrow|Home|End|Page)/.test(key);
    const press = target.matches("button, select") && (key === " " || key === "Enter");
    const action = this.media && !native && !press && View.keys[key.length === 1 ? key.toLowerCase() : key];
    if (!action || this.state === "error") return;
    event.preventDefault();
    this.session.lead(this);
    action(this);
    this.stir();
  }

  static keys = {
    " ": (v) => v.toggle(),
    k: (v) => v.toggle(),
    ArrowLeft: (v) => v.skip(-5),
    ArrowRight: (v) => v.skip(5),
    ArrowUp: (v) => v.setVolume(v.media.volume + 0.05),
    ArrowDown: (v) => v.setVolume(v.media.volume - 0.05),
    j: (v) => v.skip(-10),
    l: (v) => v.skip(10),
    m: (v) => v.mute(),
    f: (v) => v.kind === "video" && v.fullscreen(),
    ",": (v) => v.kind === "video" && v.step(-1),
    ".": (v) => v.kind === "video" && v.step(1),
    "<": (v) => v.changeRate(-1),
    ">": (v) => v.changeRate(1),
    Home: (v) => v.seek(0),
    End: (v) => v.seek(v.duration),
    ...Object.fromEntries([..."0123456789"].map((digit) => [digit, (v) => v.seek((v.duration * digit) / 10)])),
  };

  // ---- telling -----------------------------------------------------------------------------------------------

  setState(state) {
    this.state = state;
    this.root.dataset.state = state;
    this.report({ state });
    if (state !== "loading") clearTimeout(this.timers.patience);
    if (this.toast.dataset.during && this.toast.dataset.during !== state) this.say("");
    if (!this.media) return;
    const [name, label] = state === "ended" ? ["replay", "Play again (k)"] : this.media.paused ? ["play", "Play (k)"] : ["pause", "Pause (k)"];
    face(this.playButton, name, label);
    if (this.big) face(this.big, name === "pause" ? "play" : name, label);
    this.stir();
  }

  report(values) {
    this.session.report(this, values);
    if ("volume" in values) this.paintVolume();
    if ("playback_rate" in values) this.paintRate();
  }

  tick(now = false) {
    const { media } = this;
    if (this.loaded && !media.error) this.position = media.currentTime; // a reload starts at 0 and then comes back
    this.paintProgress();
    const time = performance.now();
    if (!now && time - this.lastReport < limits.reportEvery) return;
    this.lastReport = time;
    this.report({ current_time: Math.min(this.position, this.duration || this.position) });
  }

  // A word over the stage, for a moment or for as long as the state stays what it is.
  say(text, during = "") {
    clearTimeout(this.timers.say);
    this.toast.textContent = text;
    this.toast.dataset.during = during;
    if (text && !during) this.timers.say = setTimeout(() => (this.toast.textContent = ""), 1200);
  }

  // The controls fade over a playing video when nothing moves.
  stir(wait = limits.idle) {
    clearTimeout(this.timers.idle);
    this.root.classList.remove("is-idle");
    if (this.state === "playing") this.timers.idle = setTimeout(() => this.root.classList.add("is-idle"), wait);
  }

  paintProgress() {
    const { media, duration, position } = this;
    const part = (time) => `${duration ? clamp(time / duration, 0, 1) * 100 : 0}%`;
    let buffered = 0;
    for (let i = 0; i < media.buffered.length; i++) {
      if (media.buffered.start(i) <= position + 0.1) buffered = Math.max(buffered, media.buffered.end(i));
    }
    this.seekBar.value = this.scrubTo ?? position;
    this.seekBar.style.setProperty("--played", part(position));
    this.seekBar.style.setProperty("--buffered", part(Math.max(buffered, position)));
    this.seekBar.setAttribute("aria-valuetext", `${clock(position)} of ${clock(duration)}`);
    this.time.textContent = `${clock(position)} / ${clock(duration)}`;
  }

  paintVolume() {
    const { media } = this;
    const silent = media.muted || media.volume === 0;
    face(this.muteButton, silent ? "silent" : "sound", silent ? "Unmute (m)" : "Mute (m)");
    this.volumeBar.value = silent ? 0 : media.volume;
    this.volumeBar.style.setProperty("--played", `${this.volumeBar.value * 100}%`);
    this.volumeBar.setAttribute("aria-valuetext", silent ? "muted" : percent(media.volume));
  }

  paintRate() {
    const now = this.media.playbackRate;
    const rates = RATES.includes(now) ? RATES : [...RATES, now].sort((a, b) => a - b);
    if (this.rate.length !== rates.length || Number(this.rate.value) !== now) {
      this.rate.replaceChildren(...rates.map((r) => make("option", "", { value: r }, `${r}×`)));
      this.rate.value = String(now);
    }
  }

  paintExpand() {
    const full = document.fullscreenElement === this.root;
    face(this.expand, full ? "shrink" : "expand", full ? "Leave full screen (f)" : "Full screen (f)");
  }

  preview(event) {
    const box = this.seekBar.getBoundingClientRect();
    const part = clamp((event.clientX - box.left) / box.width, 0, 1);
    this.tip.hidden = !this.duration;
    this.tip.textContent = clock(part * this.duration);
    this.tip.style.left = `${part * 100}%`;
  }

  // An element keeps its connection for as long as it has a source, in the page or not.
  dispose() {
    this.generation++;
    this.listening.abort();
    this.resizing.disconnect();
    Object.values(this.timers).forEach(clearTimeout);
    this.media?.pause();
    for (const element of [this.media, this.image]) element?.removeAttribute("src");
    this.media?.load();
    this.root.remove();
  }
}

export default () => {
  const session = new Session();
  return {
    initialize: ({ model }) => session.initialize(model),
    render: ({ el }) => session.render(el),
  };
};

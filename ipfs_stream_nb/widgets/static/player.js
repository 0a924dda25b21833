// The browser's side of ipfs_stream_nb.widgets.Player: one session per model, one view per place it is shown in.
//
// Who may say what: the view that was last used (the leader) reports time and state to the kernel; commands from
// the kernel go to it alone. A change that a report of ours made is never taken for a wish of the kernel.
import { sentence, sizeText } from "./page.js";
import { LiveMedia, WORDS } from "./player-live.js";
import { LINES, QUALITIES, RATES, SHORTCUTS, clamp, clock, face, finite, icon, limits, make, percent } from "./player-parts.js";
import { Session } from "./player-session.js";
import { diagnose, explain } from "./player-trouble.js";

export { limits };

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
    for (const name of ["controls", "width"]) this.apply(name);
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
    this.link = make("span", "link", { role: "status", hidden: "" });
    this.caption = make("div", "caption", {}, title, this.link, this.facts);
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
      this.root.classList.toggle("is-tiny", contentRect.width < limits.tiny);
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
    this.element = make(this.kind, "media", { preload: "metadata", playsinline: "" });
    this.stage.prepend(this.element);
    this.buildControls();
    this.attach();
    this.unmute = make("button", "unmute", { type: "button", hidden: "" }, icon("silent"), "Unmute");
    this.stage.append(this.unmute);
    this.listen(this.unmute, { click: () => (this.takeFocus(), this.session.share({ muted: false })) });
    if (this.kind !== "video") return;
    this.big = make("button", "big", { type: "button", tabindex: "-1" });
    this.stage.append(this.big);
    // The button goes away with the click: the focus must not, or the next key would be the notebook's.
    this.listen(this.big, { click: () => (this.takeFocus(), this.toggle()) });
    this.listen(this.element, { click: () => this.toggle(), dblclick: () => this.fullscreen() });
    this.listen(this.root, { pointermove: () => this.stir(), pointerleave: () => this.stir(0) });
  }

  // Have `media` play it: the element itself, or what looks like one and brings it over WebRTC.
  attach() {
    const { element, session, kind } = this;
    this.detach();
    this.attached = new AbortController();
    this.live = session.live;
    this.root.classList.toggle("is-live", this.live);
    const auto = this.model.get("transport") === "auto";
    const media = this.live
      ? new LiveMedia(element, {
          kind,
          path: this.model.get("path"),
          patience: auto ? limits.auto : limits.live,
          connection: () => session.connection(),
          onState: (name) => this.tellLink(...WORDS[name]),
        })
      : element;
    this.media = media;
    if (session.fallback) this.tellLink("Over HTTP, as nothing came over WebRTC", "warn", session.fallback);
    this.hear(media, this.attached.signal);
    for (const name of ["volume", "muted", "playback_rate", "loop", "quality", "poster"]) this.apply(name);
  }

  detach() {
    this.attached?.abort();
    if (this.live) this.media?.close();
  }

  hear(media, signal) {
    const { session } = this;
    const heard = {
      loadedmetadata: () => this.present(),
      resize: () => this.describe(),
      durationchange: () => this.paintProgress(),
      play: () => session.report(this, { paused: false }),
      playing: () => {
        this.failures = 0;
        this.setState("playing");
        if (this.live) session.learnHeight(); // the content is on its way by now
      },
      waiting: () => media.paused || this.setState("buffering"),
      pause: () => this.paused(),
      ended: () => this.setState("ended"),
      seeking: () => this.stage.classList.add("is-seeking"),
      seeked: () => this.seeked(),
      timeupdate: () => this.tick(this.media.paused), // what is said of a place that stays is the last word
      progress: () => this.paintProgress(),
      volumechange: () => this.report({ volume: media.volume, muted: media.muted }),
      silenced: () => (this.unmute.hidden = false),
      qualityrefused: () => this.say("This quality can't be had"),
      ratechange: () => this.report({ playback_rate: media.playbackRate }),
      error: () => (this.live ? this.lost() : this.failed()),
    };
    for (const [event, handler] of Object.entries(heard)) media.addEventListener(event, handler, { signal });
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
    this.passed = make("span");
    this.total = make("span", "total");
    this.time = make("span", "time", {}, this.passed, this.total);
    this.seekBar = slider("seek", "Position", "1");
    this.tip = make("div", "tip", { "aria-hidden": "true", hidden: "" });
    this.muteButton = button("mute", () => this.mute());
    this.volumeBar = slider("volume", "Volume", "1");
    this.rate = make("select", "rate", { "aria-label": "Playback rate", title: "Playback rate (< and >)" });
    this.quality = make("select", "quality", { "aria-label": "Quality", title: "Quality" });
    this.offerLevels();
    this.expand = button("expand", () => this.fullscreen());
    const bar = make("div", "controls", { role: "group", "aria-label": "Player controls" });
    const track = make("div", "track", {}, this.seekBar, this.tip);
    bar.append(this.playButton, track, this.time, this.muteButton, this.volumeBar, this.rate, this.quality);
    if (this.kind === "video" && document.pictureInPictureEnabled) {
      const pip = button("pip", () => this.element.requestPictureInPicture().catch(() => {}));
      face(pip, "pip", "Picture in picture");
      bar.append(pip);
    }
    if (this.kind === "video" && document.fullscreenEnabled) bar.append(this.expand);
    this.stage.append(bar);
    this.listen(this.seekBar, { input: () => this.scrub(Number(this.seekBar.value)) });
    this.listen(this.volumeBar, { input: () => this.setVolume(Number(this.volumeBar.value)) });
    this.listen(this.rate, { change: () => this.session.share({ playback_rate: Number(this.rate.value) }) });
    this.listen(this.quality, { change: () => this.session.share({ quality: this.quality.value }) });
    this.listen(track, { pointermove: (e) => this.preview(e), pointerleave: () => (this.tip.hidden = true) });
    this.listen(document, { fullscreenchange: () => this.paintExpand() });
    this.paintExpand();
  }

  // Levels below the source; those above it are all the same, the source as it is.
  offerLevels() {
    const { height } = this.session;
    const [best] = Object.keys(LINES);
    const entries = Object.entries(QUALITIES).filter(([name]) => !height || !(LINES[name] >= height));
    if (height && LINES[best] >= height) entries.splice(1, 0, [best, `As it is (${height}p)`]);
    if (this.quality.length !== entries.length) {
      this.quality.replaceChildren(...entries.map(([value, text]) => make("option", "", { value }, text)));
    }
    const level = this.model.get("quality") ?? "auto";
    this.quality.value = entries.some(([name]) => name === level) ? level : best;
  }

  listen(target, handlers) {
    const { signal } = this.listening;
    for (const [event, handler] of Object.entries(handlers)) target.addEventListener(event, handler, { signal });
  }

  describe() {
    const { media, image, model } = this;
    const width = media?.videoWidth || image?.naturalWidth;
    const facts = [model.get("mime_type").split(";")[0], sizeText(model.get("size"))];
    if (width) facts.splice(1, 0, `${width} × ${media?.videoHeight || image.naturalHeight}`);
    if (this.kind === "video" && media?.videoWidth === 0 && media.readyState) facts.push("sound only: no decoder here for the picture");
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
    else if (name === "quality") {
      media.quality = value ?? "auto";
      this.offerLevels();
    } else if (name === "playback_rate" && this.live) {
      if (value !== 1) this.refuseRate();
    } else if (name === "playback_rate") {
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
    this.sourced = false;
    this.setState("loading");
    this.showMessage(null);
    if (this.session.live) return this.startLive();
    this.timers.patience = setTimeout(() => {
      this.say(this.url ? "Waiting for the server…" : "Waiting for the kernel…", "loading");
    }, limits.patience);
    try {
      const url = await this.session.url();
      if (generation !== this.generation) return;
      this.url = url;
      (this.media ?? this.image).src = url;
      this.sourced = true;
      if (this.playing) this.play();
    } catch (error) {
      if (generation === this.generation) this.refuse(this.refusal, error);
    }
  }

  // Over WebRTC there is nothing to load: it begins when it is played.
  startLive() {
    this.attach();
    this.sourced = this.loaded = true;
    this.media.currentTime = this.position;
    this.setState("ready");
    this.paintProgress();
    if (this.playing) this.play();
  }

  // It is not to be had over WebRTC.
  lost() {
    const { session, media: { error } } = this;
    if (error.code === "unauthorized" && session.base) {
      session.cookieFailed = true;
      this.start();
    } else if (this.model.get("transport") === "auto") {
      session.fallBack(`${sentence(error.message)}${error.code === "no_media" ? " A network that lets no UDP through does that, and so does an SSH tunnel." : ""}`, error.code === "no_media" ? "" : error.message);
    } else {
      this.fail("live", { text: error.message });
    }
  }

  // Go on over HTTP, at the same place.
  fallBack() {
    this.attach();
    this.start();
    this.say("No media came over WebRTC: playing over HTTP");
  }

  present() {
    const { media } = this;
    this.describe();
    this.loaded = true;
    this.refusal = null;
    if (media) {
      if (this.position > 0 && !this.live) media.currentTime = Math.min(this.position, this.duration || this.position);
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

  async fail(reason, found = {}) {
    const { kind, model, url, position } = this;
    const [path, mime] = [model.get("path"), model.get("mime_type")];
    const [title, text] = explain(reason, { text: this.session.refusal, ...found, kind, path, mime, url, position, canPlay: this.element?.canPlayType(mime) });
    const show = (codecs) => {
      this.showMessage({ title, text: text(codecs).trim(), retry: true });
      this.report({ error: `${title}. ${text(codecs).trim()}`, paused: true });
    };
    show("");
    this.setState("error");
    if (reason !== "unsupported" && reason !== "decode") return;
    const generation = this.generation;
    const codecs = await this.session.questions.ask("codecs").then((a) => a.text, () => "");
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
    if (!this.sourced || this.state === "error") return;
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

  refuseRate() {
    this.say("Over WebRTC it plays at 1×");
    this.session.share({ playback_rate: 1 });
  }

  changeRate(direction) {
    if (this.live) return this.refuseRate();
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
    if (state === "error") this.unmute.hidden = true;
    const [name, label] = state === "ended" ? ["replay", "Play again (k)"] : this.media.paused ? ["play", "Play (k)"] : ["pause", "Pause (k)"];
    face(this.playButton, name, label);
    if (this.big) face(this.big, name === "pause" ? "play" : name, label);
    this.stir();
  }

  report(values) {
    this.session.report(this, values);
    if ("volume" in values) this.paintVolume();
    if (values.muted === false) this.unmute.hidden = true;
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

  // How the content comes, where that is worth a word.
  tellLink(text, tone, why = "") {
    this.link.hidden = !text;
    this.link.textContent = text;
    this.link.dataset.tone = tone;
    this.link.title = why;
    this.report({ connection: why ? `${text}. ${why}` : text });
  }

  // A word over the stage, for a moment or for as long as the state stays what it is.
  say(text, during = "") {
    clearTimeout(this.timers.say);
    this.toast.textContent = text;
    this.toast.dataset.during = during;
    if (text && !during) this.timers.say = setTimeout(() => (this.toast.textContent = ""), 1200);
  }

  // The controls fade over a playing video when nothing moves; those of sound are all that there is of it.
  stir(wait = limits.idle) {
    clearTimeout(this.timers.idle);
    this.root.classList.remove("is-idle");
    if (this.kind === "video" && this.state === "playing") this.timers.idle = setTimeout(() => this.root.classList.add("is-idle"), wait);
  }

  paintProgress() {
    const { media, duration, position } = this;
    const part = (time) => `${duration ? clamp(time / duration, 0, 1) * 100 : 0}%`;
    let buffered = 0;
    for (let i = 0; i < media.buffered.length; i++) {
      if (media.buffered.start(i) <= position + 0.1) buffered = Math.max(buffered, media.buffered.end(i));
    }
    this.seekBar.value = duration ? (this.scrubTo ?? position) : 0;
    this.seekBar.style.setProperty("--played", part(position));
    this.seekBar.style.setProperty("--buffered", part(Math.max(buffered, position)));
    this.seekBar.setAttribute("aria-valuetext", `${clock(position)}${duration ? ` of ${clock(duration)}` : ""}`);
    this.passed.textContent = clock(position);
    this.total.textContent = duration ? ` / ${clock(duration)}` : "";
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
    this.detach();
    this.element?.pause();
    for (const element of [this.element, this.image]) element?.removeAttribute("src");
    this.element?.load();
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

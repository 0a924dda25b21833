// What a player has, whatever shows it: the model and the kernel behind it, the views, and who of them may speak.
import { pageBaseUrl } from "./page.js";
import { PlayerSamples } from "./player-samples.js";
import { Questions } from "./server-link.js";

const KINDS = ["video", "audio"];

export class Session {
  views = new Set();
  leader = null;
  reporting = false;
  done = 0; // the last command that was carried out
  token = null; // promise of a URL that carries a capability token
  height = 0; // of the source, in lines; 0 while it is not known
  fallback = ""; // why it plays over HTTP after all, where WebRTC was to be tried first
  refusal = ""; // what the server said of the content then, if it did

  constructor(View) {
    this.View = View;
  }

  initialize(model) {
    this.model = model;
    this.questions = new Questions(model);
    const heard = [];
    const on = (event, callback) => {
      model.on(event, callback);
      heard.push([event, callback]);
    };
    on("msg:custom", (message) => this.receive(message));
    for (const name of ["volume", "muted", "playback_rate", "loop", "quality", "controls", "width", "poster"]) {
      on(`change:${name}`, () => this.views.forEach((view) => view.apply(name)));
    }
    on("change:current_time", () => this.reporting || this.leader?.seek(model.get("current_time")));
    on("change:paused", () => this.reporting || this.leader?.[model.get("paused") ? "pause" : "play"]());
    const samples = new PlayerSamples(this);
    return () => {
      samples.close();
      this.questions.close();
      heard.forEach(([event, callback]) => model.off(event, callback));
    };
  }

  render(el) {
    const view = new this.View(this, el);
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

  // What does not come over WebRTC in one view does not in another.
  fallBack(reason, refusal = "") {
    Object.assign(this, { fallback: reason, refusal });
    this.views.forEach((view) => view.fallBack());
  }

  send(message) {
    this.model.send(message);
  }

  receive(message) {
    if (this.leader && ["play", "pause", "seek"].includes(message.type)) {
      // The kernel repeats what was not yet acknowledged when a view says that it is ready.
      if (message.id > this.done) this.leader[message.type](message.time);
      this.done = Math.max(this.done, message.id);
      this.send({ event: "ack", id: message.id });
    }
  }

  // Once; a kernel that is busy, or not there, tells nothing.
  async learnHeight() {
    if (this.model.get("kind") !== "video") return;
    this.asked ??= this.questions.ask("height").then(({ height }) => height, () => 0);
    this.height = (await this.asked) || 0;
    this.views.forEach((view) => view.offerLevels());
  }

  // The cookie serves the page's own server. Everything else needs a URL with a token, which only the kernel can give.
  get base() {
    return this.model.get("same_origin") && location.protocol.startsWith("http") && !this.cookieFailed
      ? new URL(pageBaseUrl(this.model.get("base_url")), location.origin)
      : null;
  }

  // Whether it is played over WebRTC.
  get live() {
    return ["webrtc", "auto"].includes(this.model.get("transport")) && KINDS.includes(this.model.get("kind")) && !this.fallback;
  }

  // Where the server is, and a token for this content where the cookie does not serve.
  async connection() {
    const base = this.base;
    if (base) return { base: base.href };
    this.token = null; // an older one may have run out
    const url = await this.url();
    const { relative } = await this.token;
    return { base: url.slice(0, url.length - relative.length), token: new URL(url).searchParams.get("token") };
  }

  async url() {
    const base = this.base;
    if (base) return new URL(`ipfs/${this.model.get("path").split("/").map(encodeURIComponent).join("/")}`, base).href;
    this.token ??= this.questions.ask("url");
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

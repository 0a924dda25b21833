// A widget's way to the server: by the page's own cookie, or by a token that only the kernel can give.
import { inJupyter, pageBaseUrl, uid } from "./page.js";

export const limits = {
  kernelTimeout: 30_000, // ms that a question may stay unanswered: the kernel may be busy with a cell
  renewBefore: 30_000, // ms before its end at which a token is not used any more
};

// What a widget asks its kernel, by {event, request}; the kernel answers with the same request, or with an error in words.
export class Questions {
  open = new Map();

  constructor(model) {
    this.model = model;
    this.receive = (message) => message && this.open.get(message.request)?.(message);
    model.on("msg:custom", this.receive);
  }

  ask(event) {
    const request = uid();
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => this.open.get(request)({ error: "the kernel did not answer; it may be busy" }), limits.kernelTimeout);
      this.open.set(request, (answer) => {
        clearTimeout(timer);
        this.open.delete(request);
        if (answer.error) reject(new Error(answer.error));
        else resolve(answer);
      });
      this.model.send({ event, request });
    });
  }

  close() {
    this.model.off("msg:custom", this.receive);
    for (const answer of [...this.open.values()]) answer({ error: "the widget is closed" });
  }
}

export class Link {
  cookieFailed = false;
  token = null; // promise of {token, expires, url}

  constructor(model) {
    this.model = model;
    this.questions = new Questions(model);
  }

  get ownBase() {
    return this.model.get("same_origin") ? pageBaseUrl(this.model.get("base_url")) : this.model.get("base_url");
  }

  // The page's own server, where the cookie serves; null elsewhere.
  get cookieBase() {
    const own = this.model.get("same_origin") && location.protocol.startsWith("http");
    return own && !this.cookieFailed ? new URL(this.ownBase, location.href).href : null;
  }

  async connection() {
    if (this.cookieBase) return { baseUrl: this.cookieBase };
    const { url } = await this.grant();
    // Behind a proxy or a hub the kernel knows another address of the same server than the page does.
    const baseUrl = this.model.get("same_origin") && inJupyter() ? new URL(this.ownBase, location.href).href : url;
    return { baseUrl, token: async () => (await this.grant()).token };
  }

  async grant() {
    const old = await this.token?.catch(() => null);
    if (!old || old.expires * 1000 < Date.now() + limits.renewBefore) this.token = this.questions.ask("token");
    return this.token;
  }

  close() {
    this.questions.close();
  }
}

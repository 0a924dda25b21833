// Why content does not play, found out and put into words.
import { sentence } from "./page.js";
import { clock } from "./player-parts.js";

// What the server says of a source that an element could not load: elements hide the status.
export async function diagnose(url) {
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

// A title for `reason`, and a function that gives the text with the codecs inside, once they are known. What stands between
// backticks is code.
export function explain(reason, { kind, path, mime, url, position, canPlay, status, text = "" }) {
  const reader = { video: "frames", audio: "audio" }[kind] ?? "open";
  const rescue = `The kernel may still read it: \`client.${reader}("${path}")\`. Or convert it, for instance to ${
    { video: "H.264 in MP4 or VP9 in WebM", audio: "MP3, AAC or Opus" }[kind] ?? "PNG or JPEG"
  }, and add the result.`;
  const can = canPlay ? "" : ` It says itself that it does not know ${mime}.`;
  const messages = {
    unsupported: [`This browser can't play this ${kind}`, (c) => `${sentence(text) || `It has no decoder for ${c || mime}, or the file is damaged.${can}`} ${rescue}`],
    decode: [`The ${kind} can't be decoded`, (c) => `Decoding ${c || mime} stopped at ${clock(position)}: ${text ? `${text.replace(/\.$/, "")}.` : "the file is damaged there, or uses a feature that this browser lacks."} ${rescue}`],
    missing: ["Content not found", () => sentence(text) || `The server does not have ${path}.`],
    forbidden: ["Not allowed", () => `The server does not let this browser read ${path}. ${sentence(text) || "Reload the page to log in again."}`],
    unreachable: ["The server can't be reached", () => `No answer from ${url && new URL(url).origin}. Is it still running, and reachable from this browser?`],
    server: ["The server could not deliver", () => sentence(text) || `It answered with status ${status}.`],
    live: ["It can't be played over WebRTC", () => `${sentence(text)} Over HTTP it may play: \`client.play("${path}", transport="http")\`.`],
    kernel: ["The kernel gave no address for this content", () => `${sentence(text)} Run the cell again, or restart the kernel.`],
  };
  return messages[reason];
}

// What an event looks like in words. Its data may be anybody's, so all of it ends as text that shows what it holds.
import { sizeText } from "./page.js";

const FAMILIES = {
  content: { tone: "content", icon: "M5.5 2.5h8.2l4.8 4.8v14.2h-13zM13 4.5v3.6h3.6zM8 11.5v1.6h8v-1.6zM8 15v1.6h5.5V15z" },
  pin: { tone: "pin", icon: "M8 2.5h8v2l-1.3 1v5.3l3.3 3V16h-5.1v5l-.9 1.5-.9-1.5v-5H6v-2.2l3.3-3V5.5L8 4.5z" },
  webrtc: { tone: "webrtc", icon: "M3 6.5h12v3.8l6-3.3v10l-6-3.3v3.8H3z" },
  custom: { tone: "custom", icon: "M13.5 2 5 13.5h5.5L9.5 22 19 9.8h-6z" },
  info: { tone: "info", icon: "M12 2.5a9.5 9.5 0 1 0 0 19 9.5 9.5 0 0 0 0-19zM11 10.5h2v6.5h-2zM11 7h2v2h-2z" },
  metrics: { tone: "info", icon: "M4 13h3.4v7H4zM10.3 8h3.4v12h-3.4zM16.6 4H20v16h-3.4z" },
  warning: { tone: "warning", icon: "M12 3 1.8 20.5h20.4zM11 9.5h2v5.5h-2zM11 16.6h2v2h-2z" },
  error: { tone: "error", icon: "M8 2.5h8L21.5 8v8L16 21.5H8L2.5 16V8zM11 7h2v6.5h-2zM11 15.2h2v2h-2z" },
};

const LABELS = {
  content_added: "added",
  content_retrieved: "retrieved",
  content_removed: "removed",
  pin_added: "pinned",
  pin_removed: "unpinned",
  pin_progress: "pinning",
  pin_status_changed: "pin status",
  webrtc_connection_created: "peer created",
  webrtc_connection_established: "peer connected",
  webrtc_connection_closed: "peer closed",
  webrtc_stream_started: "stream started",
  webrtc_stream_ended: "stream ended",
  webrtc_quality_changed: "quality",
  webrtc_error: "WebRTC error",
  system_metrics: "metrics",
  system_warning: "warning",
  system_error: "error",
  system_info: "info",
  custom_event: "custom",
};

const MOST = 160; // characters of one value in a line
const PARTS = 6; // values in a line

// Characters that hide, reorder or break a line are shown as such: control characters by their pictures, the others as �.
// eslint-disable-next-line no-control-regex
const UNSEEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\p{Surrogate}/gu;
const picture = (character) => {
  const code = character.charCodeAt(0);
  return code < 0x20 ? String.fromCharCode(0x2400 + code) : code === 0x7f ? "\u2421" : "\ufffd";
};

export const clean = (text, most = MOST) => {
  const cut = text.length > most;
  return (cut ? text.slice(0, most) : text).replace(UNSEEN, picture) + (cut ? "…" : "");
};

export const isCid = (value) => typeof value === "string" && /^(Qm[1-9A-HJ-NP-Za-km-z]{44}|b[a-z2-7]{30,120})$/.test(value);
const shortCid = (cid) => `${cid.slice(0, 8)}…${cid.slice(-5)}`;

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
export const dataOf = (event) => (isObject(event.data) ? event.data : {});

export const typeOf = (event) => String(event.notification_type ?? "");
const ORDER = Object.keys(LABELS);
export const rankOf = (type) => (ORDER.includes(type) ? ORDER.indexOf(type) : ORDER.length);
export const labelOf = (type) => LABELS[type] ?? clean(type.replaceAll("_", " "), 24);

export function familyOf(type) {
  if (type.endsWith("_error")) return FAMILIES.error;
  const [first, rest] = [type.slice(0, type.indexOf("_")), type.slice(type.indexOf("_") + 1)];
  return (first === "system" && FAMILIES[rest]) || FAMILIES[first] || FAMILIES.info;
}

const percentText = (value) => `${Math.round(value)} %`;
const shortNumber = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));
const isNumber = (value) => typeof value === "number" && Number.isFinite(value);

// What comes first, and how: the keys that tell a reader most.
const FIRST = [
  ["event", "strong"],
  ["message", "strong"],
  ["error", "strong"],
  ["name", "strong"],
  ["filename", "strong"],
  ["cid", "cid"],
  ["status", "plain"],
  ["percent", "percent"],
  ["progress", "percent"],
  ["size", "size"],
  ["bytes", "size"],
];
const KNOWN = new Set(FIRST.map(([key]) => key));

function value(key, kind, found) {
  if (kind === "cid" && isCid(found)) return { kind, text: shortCid(found) };
  if (kind === "percent" && isNumber(found)) return { kind: "plain", text: percentText(found) };
  if (kind === "size" && Number.isInteger(found) && found >= 0) return { kind: "plain", text: sizeText(found) };
  if (typeof found === "string") return found ? { kind, text: kind === "strong" || kind === "plain" ? clean(found) : `${key} ${clean(found)}` } : null;
  return named(key, found);
}

// What we know nothing of: its name and its value; of what is nested, how much there is.
function named(key, found) {
  const shown = clean(key.replaceAll("_", " "), 40);
  if (found === null || found === undefined || found === "") return null;
  if (isCid(found)) return { kind: "faint", text: `${shown} ${shortCid(found)}` };
  if (typeof found === "string") return { kind: "faint", text: `${shown} ${clean(found, 60)}` };
  if (isNumber(found)) return { kind: "faint", text: `${shown} ${/bytes/.test(key) && found >= 1024 ? sizeText(Math.round(found)) : shortNumber(found)}` };
  if (typeof found === "boolean") return { kind: "faint", text: found ? shown : `not ${shown}` };
  if (Array.isArray(found)) return { kind: "faint", text: `${shown} [${found.length}]` };
  return { kind: "faint", text: `${shown} {…}` };
}

// A system's metrics are a tree of numbers, a few of which tell how it is.
function metrics({ system, process, disk, event_loop: loop }) {
  const facts = [
    ["CPU", system?.cpu_percent, percentText],
    ["memory", system?.memory_percent, percentText],
    ["disk", disk?.percent, percentText],
    ["server", process?.rss, (bytes) => sizeText(Math.round(bytes))],
    ["late", loop?.lag_max, (seconds) => `${Math.round(seconds * 1000)} ms`],
  ];
  return facts.filter(([, found]) => isNumber(found)).map(([name, found, shown]) => ({ kind: "plain", text: `${name} ${shown(found)}` }));
}

// One line as parts: [{kind, text}], the most telling first.
export function summarise(event) {
  const data = dataOf(event);
  if (typeOf(event) === "system_metrics") {
    const known = metrics(data);
    if (known.length) return known;
  }
  const parts = [];
  for (const [key, kind] of FIRST) {
    if (key in data && Object.hasOwn(data, key)) parts.push(value(key, kind, data[key]));
  }
  let left = PARTS;
  for (const key in data) {
    if (!Object.hasOwn(data, key) || KNOWN.has(key) || data[key] === data.cid || left-- <= 0) continue;
    parts.push(named(key, data[key]));
  }
  const told = parts.filter(Boolean).slice(0, PARTS);
  return told.length ? told : [{ kind: "faint", text: "no data" }];
}

// What an event is the present state of, where the log does not keep it: a newer one takes its place in the list.
export function subjectOf(event) {
  const { cid, upload_id: upload, event: what } = dataOf(event);
  if (event.id !== undefined) return null;
  if (typeOf(event) === "system_metrics") return "metrics";
  if (typeOf(event) === "pin_progress") return `pin ${cid}`;
  return what === "upload_progress" ? `upload ${upload}` : null;
}

// Seconds since the epoch, as a server writes them; nothing else is a time.
export const timeOf = (event) => (isNumber(event.timestamp) && Math.abs(event.timestamp) < 8.64e12 ? event.timestamp * 1000 : NaN);

// Made once: to make one takes longer than all else about a row.
const FORMAT = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
export const absoluteTime = (ms) => (Number.isNaN(ms) ? "no time given" : FORMAT.format(ms));

// Coarse on purpose: what changes seldom costs nothing.
export function ago(ms, now) {
  const s = Math.floor((now - ms) / 1000);
  if (Number.isNaN(s)) return "";
  if (s < 5) return "now";
  if (s < 60) return `${s - (s % 5)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

const SEARCHED = 20_000; // characters of an event that are searched

export function searchText(event) {
  let text;
  try {
    text = JSON.stringify(dataOf(event));
  } catch {
    text = ""; // nested too deeply
  }
  const shown = summarise(event).map((part) => part.text).join(" ");
  return `${typeOf(event)} ${labelOf(typeOf(event))} ${event.source ?? ""} ${shown} ${text.slice(0, SEARCHED)}`.toLowerCase();
}

const DEPTH = 12; // levels that are written out
const LONGEST = 50_000; // characters

// JSON for reading: bounded in depth and length, whatever came. `JSON.stringify` would indent a deep one into gigabytes.
export function pretty(event) {
  const out = [];
  let room = LONGEST;
  const write = (text) => {
    if (room <= 0) return;
    out.push(text.slice(0, room));
    room -= text.length;
  };
  const entries = (held, depth, [open, close], each) => {
    if (!held.length) return write(open + close);
    if (depth >= DEPTH) return write(`${open}… ${held.length}${close}`);
    const indent = "  ".repeat(depth + 1);
    write(open);
    for (let at = 0; at < held.length && room > 0; at++) {
      write(`${at ? "," : ""}\n${indent}`);
      each(held[at]);
    }
    return write(`\n${"  ".repeat(depth)}${close}`);
  };
  const visit = (found, depth) => {
    if (Array.isArray(found)) return entries(found, depth, "[]", (one) => visit(one, depth + 1));
    if (!isObject(found)) return write(JSON.stringify(found) ?? "null");
    return entries(Object.keys(found), depth, "{}", (key) => {
      write(`${JSON.stringify(key)}: `);
      visit(found[key], depth + 1);
    });
  };
  visit(event, 0);
  const text = out.join("").replace(UNSEEN, (character) => (character === "\n" ? "\n" : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`));
  return room < 0 ? `${text}\n… the rest is not shown` : text;
}

const SEVERAL = 8; // links of one event

// Every CID in an event's data, wherever it stands: what can be opened.
export function cidsIn(event) {
  const found = new Set();
  let looked = 0;
  const visit = (one, depth) => {
    if (found.size >= SEVERAL || ++looked > 1000) return;
    if (isCid(one)) found.add(one);
    else if (typeof one === "object" && one !== null && depth < DEPTH) Object.values(one).forEach((inner) => visit(inner, depth + 1));
  };
  visit(dataOf(event), 0);
  return [...found];
}

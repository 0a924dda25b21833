// What the parts of the player have in common: numbers, icons and elements.
import { icon as drawn } from "./page.js";

export const limits = {
  reportEvery: 250, // ms between two reports of the time
  patience: 3000, // ms until a wait is explained to the user
  attempts: 3, // reloads in a row without anything played in between
  idle: 2500, // ms without a pointer until the controls fade
  narrow: 420, // px of width under which the controls that can be missed go
  tiny: 290, // px under which there is no room for the quality either
  live: 10000, // ms that media may take to come over WebRTC
  auto: 5000, // the same where there is HTTP to fall back to
};

export const SHORTCUTS = "Space K J L M F , . < > ArrowLeft ArrowRight ArrowUp ArrowDown Home End 0 1 2 3 4 5 6 7 8 9";
export const RATES = [0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2];
export const LINES = { very_high: 1080, high: 720, medium: 480, low: 360, very_low: 240 };
export const QUALITIES = { auto: "Auto", ...Object.fromEntries(Object.entries(LINES).map(([name, lines]) => [name, `${lines}p`])) };
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

export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
export const finite = (x) => (Number.isFinite(x) ? x : 0);
export const percent = (x) => `${Math.round(x * 100)} %`;
export const icon = (name) => drawn(ICONS[name]);

export function clock(seconds) {
  const s = Math.max(0, Math.floor(finite(seconds)));
  const two = (n) => String(n).padStart(2, "0");
  const [h, m] = [Math.floor(s / 3600), Math.floor(s / 60) % 60];
  return h ? `${h}:${two(m)}:${two(s % 60)}` : `${m}:${two(s % 60)}`;
}

export function make(tag, name, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = `ipfs-player-${name}`;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function face(button, name, label) {
  if (button.dataset.icon !== name) {
    button.dataset.icon = name;
    button.replaceChildren(icon(name));
  }
  button.setAttribute("aria-label", label);
  button.title = label;
}

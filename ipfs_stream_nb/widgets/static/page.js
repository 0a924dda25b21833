// What the widgets' modules need of the page around them.

// JupyterLab and Notebook 7 write their base URL into the page; the kernel's own idea is the fallback.
export function pageBaseUrl(fallback) {
  try {
    const config = document.getElementById("jupyter-config-data");
    return JSON.parse(config.textContent).baseUrl || fallback;
  } catch {
    return document.body?.dataset.baseUrl || fallback;
  }
}

export const inJupyter = () => Boolean(document.getElementById("jupyter-config-data") ?? document.body?.dataset.baseUrl);

// Tornado's guard against other sites' forms: the cookie's value, said once more where only our own page can.
export function xsrfToken() {
  const found = document.cookie.match(/(?:^|;\s*)_xsrf=([^;]*)/);
  return found ? decodeURIComponent(found[1]) : "";
}

// crypto.randomUUID is there on https and localhost only.
export const uid = () => Array.from(crypto.getRandomValues(new Uint32Array(3)), (n) => n.toString(36)).join("");

export function sizeText(n) {
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let i = 0;
  for (; n >= 1024 && i < units.length - 1; i++) n /= 1024;
  return i ? `${n.toFixed(1)} ${units[i]}` : `${n} ${n === 1 ? "byte" : "bytes"}`;
}

export function timeText(seconds) {
  const s = Math.max(1, Math.round(seconds));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor(s / 60) % 60).padStart(2, "0")} min`;
}

export const sentence = (text) => text && text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

export function make(tag, name, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

export function icon(path) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS(space, "path");
  shape.setAttribute("fill-rule", "evenodd");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false; // not allowed, or not a secure page
  }
}

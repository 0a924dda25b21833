// Uploads that are not finished, kept in the browser so that a reloaded page can go on with them. No tokens, no content.

export const limits = {
  entries: 500,
  age: 24 * 3600e3, // ms that the server keeps an upload nobody comes back to
  alive: 10e3, // ms without a word after which the page that had it is taken for gone
  smallest: 256 << 10, // bytes under which sending again is quicker than asking
};
const KEY = "ipfs_stream_nb:uploads";

export class Remembered {
  // `base`: of the server, since all users of a JupyterHub may share one storage; `page`: who writes.
  constructor(base, page) {
    Object.assign(this, { base, page });
  }

  all() {
    try {
      const known = JSON.parse(localStorage.getItem(KEY) ?? "[]");
      return known.filter((entry) => entry && typeof entry.path === "string" && entry.began > Date.now() - limits.age);
    } catch {
      return []; // storage may be forbidden, or hold anything
    }
  }

  save(entries) {
    try {
      localStorage.setItem(KEY, JSON.stringify(entries.slice(-limits.entries)));
    } catch {
      // Full or forbidden: a reload will not be able to resume, and nothing else is lost.
    }
  }

  is = (path, file, profile) => (entry) =>
    entry.base === this.base && entry.path === path && entry.size === file.size && entry.modified === file.lastModified && entry.profile === profile;

  // The entry of a file that is chosen again; from here on it is this page's, and no other offers it.
  claim(path, file, profile) {
    const known = this.all();
    const entry = known.find(this.is(path, file, profile));
    if (!entry) return null;
    Object.assign(entry, { page: this.page, at: Date.now() });
    this.save(known);
    return entry;
  }

  // `item`: the id of the row that the file belongs to.
  put(path, file, profile, { id, item, sent }) {
    if (file.size < limits.smallest) return;
    const known = this.all();
    const old = known.find(this.is(path, file, profile));
    const began = old?.id === id ? old.began : Date.now();
    const entry = { base: this.base, path, size: file.size, modified: file.lastModified, profile, id, item, sent, began, at: Date.now(), page: this.page };
    this.save([...known.filter((one) => one !== old), entry]);
  }

  drop(test) {
    const known = this.all();
    const kept = known.filter((entry) => !test(entry));
    if (kept.length < known.length) this.save(kept);
  }

  // What no page is at work on, a folder's files together: [{key, name, kind, files, size, sent, ids, items}].
  interrupted() {
    const groups = new Map();
    for (const entry of this.all()) {
      if (entry.base !== this.base || entry.page === this.page || entry.at > Date.now() - limits.alive) continue;
      const cut = entry.path.indexOf("/");
      const name = cut < 0 ? entry.path : entry.path.slice(0, cut);
      const key = cut < 0 ? entry.id : `${name}/`;
      const group = groups.get(key) ?? { key, name, kind: cut < 0 ? "file" : "folder", files: 0, size: 0, sent: 0, ids: [], items: new Set() };
      groups.set(key, Object.assign(group, { files: group.files + 1, size: group.size + entry.size, sent: group.sent + entry.sent }));
      group.ids.push(entry.id);
      group.items.add(entry.item);
    }
    return [...groups.values()];
  }

  // The page goes: what it had is free at once for the next.
  release() {
    const known = this.all();
    if (known.some((entry) => entry.page === this.page)) {
      this.save(known.map((entry) => (entry.page === this.page ? { ...entry, at: 0, page: null } : entry)));
    }
  }
}

// What a user chose or dropped, as a list of `{name, kind, files: [{path, file}], hidden}`: a file, or a folder with all in it.

// `accept` as in <input accept>: the dialog is only guided by it, and a drop not at all.
export function accepts(accept, file) {
  const wanted = accept.split(",").map((part) => part.trim().toLowerCase()).filter(Boolean);
  const [name, type] = [file.name.toLowerCase(), file.type.toLowerCase()];
  const fits = (part) => (part.startsWith(".") ? name.endsWith(part) : part.endsWith("/*") ? type.startsWith(part.slice(0, -1)) : type === part);
  return !wanted.length || wanted.some(fits);
}

const isHidden = (path) => path.split("/").some((name) => name.startsWith("."));

// Hidden files of a folder stay out, as with client.add; a hidden file that is chosen by itself is meant.
function grouped(found) {
  const groups = new Map();
  for (const { path, file } of found) {
    const cut = path.indexOf("/");
    const [name, rest] = cut < 0 ? [path, path] : [path.slice(0, cut), path.slice(cut + 1)];
    const key = cut < 0 ? Symbol(name) : name;
    if (!groups.has(key)) groups.set(key, { name, kind: cut < 0 ? "file" : "folder", files: [], hidden: 0 });
    const group = groups.get(key);
    if (cut >= 0 && isHidden(rest)) group.hidden++;
    else if (file) group.files.push({ path: rest, file });
  }
  return [...groups.values()];
}

export function fromInput(input) {
  return grouped([...input.files].map((file) => ({ path: file.webkitRelativePath || file.name, file })));
}

// To be called in the event itself: a drop's items are gone after it.
export function fromDrop(transfer) {
  const items = [...transfer.items].filter((item) => item.kind === "file");
  const entries = items.map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile()).filter(Boolean);
  return Promise.all(entries.map(walk)).then((lists) => grouped(lists.flat()));
}

async function walk(entry) {
  if (entry instanceof File) return [{ path: entry.name, file: entry }];
  const path = entry.fullPath.replace(/^\//, "");
  if (entry.isFile) return [{ path, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) }];
  const reader = entry.createReader();
  const found = [{ path: `${path}/`, file: null }]; // so that an empty folder is seen
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) return found;
    for (const list of await Promise.all(some.map(walk))) found.push(...list);
  }
}

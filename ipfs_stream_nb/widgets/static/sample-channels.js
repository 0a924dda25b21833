// The way from players to charts in one page. Each widget's module is a page's own copy, so they meet in a place that the
// page has once: by a player's key, its source of samples and those who listen to it. No kernel is on the way.

const PLACE = Symbol.for("ipfs_stream_nb.samples");

function channel(key) {
  const channels = (globalThis[PLACE] ??= new Map());
  if (!channels.has(key)) channels.set(key, { source: null, listeners: new Set() });
  return channels.get(key);
}

function forget(key) {
  const { source, listeners } = channel(key);
  if (!source && !listeners.size) globalThis[PLACE].delete(key);
}

// `source` has start(tell) and stop(), and is at work only while somebody listens. Gives the function that takes it away.
export function offer(key, source) {
  const here = channel(key);
  here.source?.stop();
  here.source = source;
  if (here.listeners.size) source.start((sample) => tell(here, sample));
  here.listeners.forEach(({ changed }) => changed?.());
  return () => {
    if (here.source !== source) return;
    source.stop();
    here.source = null;
    here.listeners.forEach(({ changed }) => changed?.());
    forget(key);
  };
}

// `sample(values)` is called with each sample, `changed()` when the source comes or goes. Gives the function that ends it.
export function listen(key, listener) {
  const here = channel(key);
  here.listeners.add(listener);
  if (here.listeners.size === 1) here.source?.start((sample) => tell(here, sample));
  return () => {
    if (!here.listeners.delete(listener)) return;
    if (!here.listeners.size) here.source?.stop();
    forget(key);
  };
}

export const isOffered = (key) => Boolean(globalThis[PLACE]?.get(key)?.source);

// A mistake of one chart is no other's.
function tell({ listeners }, sample) {
  for (const listener of listeners) {
    try {
      listener.sample(sample);
    } catch (error) {
      console.error(error);
    }
  }
}

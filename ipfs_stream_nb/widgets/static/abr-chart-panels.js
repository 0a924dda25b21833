// The panels of the chart: which figures stand together, how they are written, and how uPlot draws them.
/* global uPlot */

const number = (digits) => (value) => value.toFixed(digits);
const short = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));
const whole = number(0);
const lineOf = (name, label, more = {}) => ({ name, label, scale: "y", ...more });

// `factor` makes a value's unit the panel's; `write` a text of it, as the legend has it; `loose` may go out at the top where it
// is far above the other figures, which it would press to the ground.
export const PANELS = [
  {
    title: "Bit rate", unit: "Mbit/s", factor: 1e-6, height: 116, write: short, least: 0.1, loose: "bandwidth_estimate",
    words: ({ state, reason }) => [state, reason].filter(Boolean).join(" · "),
    lines: [
      lineOf("bandwidth_estimate", "estimate", { colour: "estimate" }),
      lineOf("target_bitrate", "target", { colour: "target", dash: [6, 3] }),
      lineOf("throughput", "throughput", { colour: "received", fill: true }),
      lineOf("sent_bitrate", "sent", { colour: "sent" }),
      lineOf("received_bitrate", "received", { colour: "received" }),
    ],
  },
  {
    title: "Delay", unit: "ms", factor: 1e3, height: 78, write: (value) => value.toFixed(value < 10 ? 1 : 0), least: 10,
    lines: [lineOf("rtt", "round trip", { colour: "rtt" }), lineOf("queue_delay", "queue", { colour: "estimate" }), lineOf("jitter", "jitter", { colour: "received" })],
  },
  { title: "Loss", unit: "%", factor: 100, height: 46, write: number(1), least: 1, lines: [lineOf("packet_loss", "packets", { colour: "loss", fill: true })] },
  {
    title: "Picture", unit: "", factor: 1, height: 70, write: whole,
    words: ({ level = "" }) => level.replace("_", " "),
    ladder: true,
    lines: [
      lineOf("height", "height", { colour: "sent", fill: true, stepped: true, suffix: "p" }),
      lineOf("frames_per_second", "frames/s", { colour: "frames", scale: "rate" }),
      lineOf("drops", "dropped", { colour: "loss", scale: "drops", bars: true, written: "frames_dropped" }),
    ],
  },
  { title: "Buffer", unit: "s", factor: 1, height: 54, write: short, least: 0.1, lines: [lineOf("buffer", "ahead", { colour: "buffer", fill: true })] },
];

const AXIS = 46; // px left of the plots, the same for all so that their times stand above each other
const BOTTOM = 20; // px of the axis of time, below the last one
const HEADROOM = 1.08; // of the scales, or what lies at their top would lie on the edge
const LOOSE = 2.5; // times the highest of the other figures that the scale of a loose one has at the most
const STEPS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600];
const LADDER = { 240: [0, 240], 360: [0, 360], 480: [0, 240, 480], 720: [0, 360, 720], 1080: [0, 360, 720, 1080], 1440: [0, 720, 1440], 2160: [0, 1080, 2160] };
const NICE = [1, 2, 3, 4, 5, 6, 8, 10];

// The next number up that is easy to halve.
export function nice(highest, least = 1) {
  if (!(highest > least)) return least;
  const power = 10 ** Math.floor(Math.log10(highest));
  return NICE.find((step) => highest <= step * power * (1 + 1e-9)) * power;
}

const rung = (highest) => Object.keys(LADDER).map(Number).find((one) => highest <= one) ?? nice(highest);

// Since the epoch, and thus of a player, or since the beginning of a run.
export const isClock = (time) => time > 1e9;
export const timeText = (seconds) => {
  const s = Math.abs(seconds);
  return s < 120 ? `${Number(s.toFixed(s < 10 ? 1 : 0))} s` : `${Number((s / 60).toFixed(1))} min`;
};
export const agoText = (time, end) => (isClock(time) ? (end - time < 0.05 ? "now" : `−${timeText(end - time)}`) : `${time < 0 ? "−" : ""}${timeText(time)}`);

// `room`: how many of them have a place beside each other.
function ticks(min, max, room) {
  const step = STEPS.find((one) => (max - min) / one <= room) ?? 600;
  const found = [];
  // Of a live chart they stand still, and the lines move; of a run they are round times.
  const first = isClock(max) ? max : Math.floor(max / step) * step;
  for (let at = first; at >= min; at -= step) found.unshift(at);
  return found;
}

export class Panel {
  off = new Set(); // figures that are switched off
  highest = Infinity; // what the scale has to show
  drawn = null; // the figures that it has data of, as one text

  // `frozen()` gives when the picture stood still, `colours` are as CSS has them, `onCursor(at)` is called with what is below the pointer.
  constructor(kind, { host, sync, colours, frozen, onCursor }) {
    Object.assign(this, { kind, host, sync, colours, frozen, onCursor });
  }

  has(store) {
    return this.kind.lines.filter(({ name, written }) => store.columns[name] || store.columns[written]);
  }

  // Made anew when there are other figures, or when it is the last one, which has the axis of time.
  prepare(lines, width, isLast) {
    const drawn = `${lines.map(({ name }) => name)} ${isLast}`;
    if (drawn !== this.drawn) {
      this.plot?.destroy();
      Object.assign(this, { drawn, lines });
      this.plot = new uPlot(this.options(width, isLast), [[], ...lines.map(() => [])], this.host);
    } else if (this.plot.width !== width) {
      this.plot.setSize({ width, height: this.plot.height });
    }
  }

  options(width, isLast) {
    const { kind, lines, colours } = this;
    const font = `11px ${colours.font}`;
    const grid = { stroke: () => colours.grid, width: 1 };
    const common = { stroke: () => colours.faint, font, grid, ticks: { show: false } };
    const top = kind.ladder ? rung : (highest) => nice(highest, kind.least);
    const topOf = (max) => Number((max / HEADROOM).toPrecision(6));
    const marks = (highest) => (kind.ladder ? (LADDER[highest] ?? [0, highest]) : kind.height < 60 ? [0, highest] : [0, highest / 2, highest]);
    return {
      width, height: kind.height + (isLast ? BOTTOM : 0),
      padding: [6, 20, isLast ? 0 : 4, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false, setScale: false }, sync: { key: this.sync, setSeries: false }, points: { size: 6 } },
      scales: {
        x: { time: false, auto: false, range: (u, min, max) => [min, max] },
        y: { range: (u, min, max) => [0, top(Math.min(max ?? 0, this.highest)) * HEADROOM] },
        rate: { range: (u, min, max) => [0, Math.max(30, max ?? 0) * 1.15] },
        drops: { range: (u, min, max) => [0, Math.max(4, max ?? 0) * 2.5] },
      },
      axes: [
        { ...common, size: isLast ? BOTTOM : 0, gap: 4, splits: (u, axis, min, max) => ticks(min, max, Math.min((u.width - AXIS) / 64, 7)), values: (u, splits) => (isLast ? splits.map((at) => agoText(at, u.scales.x.max)) : splits.map(() => "")) },
        { ...common, size: AXIS, gap: 6, splits: (u, axis, min, max) => marks(topOf(max)), values: (u, splits) => splits.map((at) => (kind.ladder && at ? `${at}p` : `${Number(at.toPrecision(3))}`)) },
      ],
      series: [{}, ...lines.map((line) => this.series(line))],
      hooks: { drawClear: [(u) => this.paintFrozen(u)], setCursor: [(u) => this.onCursor(u.cursor.idx, u.cursor.left)] },
    };
  }

  series({ name, scale, colour, dash, fill, stepped, bars }) {
    const { colours } = this;
    return {
      scale, dash, show: !this.off.has(name),
      width: bars ? 0 : 1, // without a graphics card, thicker ones take five times as long
      stroke: () => colours[colour],
      fill: fill || bars ? () => (bars ? colours[colour] : colours[`${colour}-area`]) : undefined,
      paths: stepped ? uPlot.paths.stepped({ align: 1 }) : bars ? uPlot.paths.bars({ size: [1, 3] }) : undefined,
      points: { show: false },
    };
  }

  paintFrozen({ ctx, bbox, scales: { x }, valToPos }) {
    const { colours } = this;
    const unit = devicePixelRatio;
    ctx.save();
    for (const [from, to] of this.frozen()) {
      if (to <= x.min || from >= x.max) continue;
      const left = Math.max(valToPos(from, "x", true), bbox.left);
      const right = Math.min(Math.max(valToPos(to, "x", true), left + 2 * unit), bbox.left + bbox.width);
      ctx.fillStyle = colours.freeze;
      ctx.fillRect(left, bbox.top, right - left, bbox.height);
      ctx.fillStyle = colours.loss;
      ctx.fillRect(left, bbox.top - 3 * unit, right - left, 3 * unit);
    }
    ctx.restore();
  }

  paint(store, low, high, min, max) {
    const { plot, kind } = this;
    const columns = this.lines.map(({ name, scale }) => {
      const values = store.columns[name]?.slice(low, high) ?? new Array(high - low).fill(null);
      return scale === "y" && kind.factor !== 1 ? values.map((value) => (value === null ? null : value * kind.factor)) : values;
    });
    this.highest = this.bound(columns);
    plot.batch(() => {
      plot.setData([store.time.slice(low, high), ...columns], false);
      plot.setScale("x", { min, max });
    });
  }

  // Of the scale, in the panel's unit, where one figure is loose.
  bound(columns) {
    const firm = columns.filter((_, at) => ![...this.off, this.kind.loose].includes(this.lines[at].name));
    const highest = this.kind.loose ? firm.flat().reduce((most, value) => Math.max(most, value ?? 0), 0) : 0;
    return highest > 0 ? highest * LOOSE : Infinity;
  }

  toggle(name) {
    const show = this.off.delete(name) || (this.off.add(name), false);
    this.highest = this.bound(this.plot.data.slice(1));
    this.plot.setSeries(this.lines.findIndex((line) => line.name === name) + 1, { show });
    return show;
  }

  // What the legend says of a figure.
  text({ name, written, scale, suffix = "" }, row) {
    const value = row[written ?? name];
    if (value === undefined) return "–";
    return scale === "y" ? this.kind.write(value * this.kind.factor) + suffix : whole(value);
  }

  redraw() {
    this.plot?.redraw(false, true);
  }

  dispose() {
    this.plot?.destroy();
    Object.assign(this, { plot: null, drawn: null });
  }
}

import { byteUnit, drawn, node, ticks } from "./common.js";

// The timeline: entropy, acceptance, cache and bits on one token axis, as SVG drawn at its real width.

const LEFT = 46, RIGHT = 10, TOP = 22, HEIGHT = 66, GAP = 30, FOOT = 38;
const NAME = "Entropy, acceptance, cache and bits per element over the tokens; the data table holds the numbers.";
const ROWS = ["entropy", "acceptance", "cache", "bits"];

export function timelineChart(held, { onMove, onHover }) {
  const element = node("div", "wb-timeline");
  let width = 0, scale = null, cursor = null, hovered = null, lines = {};

  function draw() {
    const n = Math.max(held.count(), 1);
    width = Math.max(element.clientWidth, 240);
    const inner = width - LEFT - RIGHT, height = TOP + ROWS.length * (HEIGHT + GAP) - GAP + FOOT;
    scale = { x: (i) => LEFT + ((i + 0.5) / n) * inner, token: (x) => Math.floor(((x - LEFT) / inner) * n) };
    const chart = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": NAME });
    const parts = { entropy, acceptance, cache, bits };
    ROWS.forEach((name, k) => {
      const row = drawn("g", { transform: `translate(0 ${TOP + k * (HEIGHT + GAP)})` });
      parts[name](row);
      chart.append(row);
    });
    chart.append(tokenAxis(n, height));
    lines = {};
    for (const name of ["hover", "cursor"]) {
      lines[name] = drawn("line", { class: `wb-line-${name}`, y1: TOP - 4, y2: height - FOOT, visibility: "hidden" });
      chart.append(lines[name]);
    }
    element.replaceChildren(chart);
    place("cursor", cursor);
    place("hover", hovered);
  }

  function tokenAxis(n, height) {
    const axis = drawn("g", { class: "wb-axis" }), y = height - FOOT;
    axis.append(drawn("path", { d: `M${LEFT},${y}H${width - RIGHT}` }));
    for (const i of ticks(Math.max(n - 1, 1), Math.max(3, Math.min(10, width / 110)))) {
      if (!Number.isInteger(i) || i > n - 1) continue;
      axis.append(drawn("path", { d: `M${scale.x(i)},${y}v4` }));
      axis.append(drawn("text", { x: scale.x(i), y: y + 16, "text-anchor": "middle" }, i));
    }
    const middle = LEFT + (width - LEFT - RIGHT) / 2;
    axis.append(drawn("text", { x: middle, y: y + 32, "text-anchor": "middle" }, "token index"));
    return axis;
  }

  // The frame of a row: title with a sample of every series, ticks, and the scale from 0 to `high`.
  function frame(row, title, high, samples) {
    const up = (value) => HEIGHT - (value / (high || 1)) * HEIGHT, axis = drawn("g", { class: "wb-axis" });
    for (const value of ticks(high || 1)) {
      axis.append(drawn("path", { class: "wb-grid", d: `M${LEFT},${up(value)}H${width - RIGHT}` }));
      axis.append(drawn("text", { x: LEFT - 5, y: up(value) + 4, "text-anchor": "end" }, value));
    }
    const head = drawn("text", { x: 2, y: -8, class: "wb-title" }, title);
    for (const [sign, name, style] of samples) {
      head.append(drawn("tspan", { class: style, dx: 12 }, sign), drawn("tspan", { class: "wb-plainly", dx: 4 }, name));
    }
    row.append(axis, head);
    return up;
  }

  const largest = (...columns) => columns.flat().reduce((high, value) => Math.max(high, value ?? 0), 0);
  const at = (x, y) => `${x.toFixed(1)},${y.toFixed(1)}`;

  function nothing(row, note) {
    row.append(drawn("text", { class: "wb-none", x: LEFT + 8, y: HEIGHT / 2 + 4 }, held.count() ? note : "no tokens yet"));
  }

  function line(values, up) {
    let path = "", pen = false;
    values.forEach((value, i) => {
      if (value !== null) path += `${pen ? "L" : "M"}${at(scale.x(i), up(value))}${pen ? "" : "h0"}`;
      pen = value !== null;
    });
    return path;
  }

  function entropy(row) {
    const raw = held.series("tokens.entropy_raw_nats"), sampled = held.series("tokens.entropy_sampled_nats");
    const samples = [["━", "raw distribution", "wb-raw"], ["┅", "distribution sampled from", "wb-sampled"]];
    const up = frame(row, "entropy (nats)", largest(raw, sampled), samples);
    if (!held.known("tokens.entropy_raw_nats")) return nothing(row, "not recorded");
    row.append(drawn("path", { class: "wb-curve wb-raw", d: line(raw, up) }));
    row.append(drawn("path", { class: "wb-curve wb-sampled", d: line(sampled, up) }));
  }

  const edge = (i) => (scale.x(i) + scale.x(i - 1)) / 2;

  function acceptance(row) {
    const spans = held.spans(), drafted = spans.map(({ first }) => held.ofRound("drafted", first));
    const accepted = spans.map(({ first }) => held.ofRound("accepted", first));
    const samples = [["▯", "drafted", "wb-drafts"], ["▮", "accepted", "wb-kept"]];
    const up = frame(row, "per round (tokens)", largest(drafted), samples);
    if (!largest(drafted)) return nothing(row, "nothing was drafted");
    const bars = (heights) => spans.map(({ first, last }, k) => {
      const left = edge(first), wide = edge(last + 1) - left, gap = Math.min(1, wide / 6);
      if (!heights[k]) return "";
      return `M${at(left + gap, HEIGHT)}L${at(left + gap, up(heights[k]))}h${(wide - 2 * gap).toFixed(1)}V${HEIGHT}`;
    }).join("");
    row.append(drawn("path", { class: "wb-bars wb-kept", d: bars(accepted) }));
    row.append(drawn("path", { class: "wb-bars wb-drafts", d: bars(drafted) }));
  }

  // A figure of the round, held over its tokens: [from, to, value] runs.
  function overRounds(of) {
    const runs = [];
    for (const { first, last } of held.spans()) runs.push([edge(first), edge(last + 1), held.series(of)[first]]);
    return runs;
  }

  function cache(row) {
    const device = overRounds("rounds.cache_bytes"), host = overRounds("rounds.host_bytes");
    const sums = device.map(([from, to, value], k) => [from, to, (value ?? 0) + (host[k][2] ?? 0)]);
    const high = largest(sums.map((run) => run[2])), unit = byteUnit(high), hosted = host.some((run) => run[2] > 0);
    const samples = [["█", "device", "wb-device"], ...(hosted ? [["▒", "host", "wb-host"]] : [])];
    const up = frame(row, `keys and values (${unit.name})`, high / unit.scale, samples);
    if (!held.known("rounds.cache_bytes")) return nothing(row, "not recorded");
    const step = ([from, to, value]) => `L${at(from, up((value ?? 0) / unit.scale))}H${to.toFixed(1)}`;
    const closed = (runs) => `M${LEFT},${HEIGHT}${runs.map(step).join("")}V${HEIGHT}Z`;
    if (hosted) row.append(drawn("path", { class: "wb-area wb-host", d: closed(sums) }));
    row.append(drawn("path", { class: "wb-area wb-device", d: closed(device) }));
  }

  function bits(row) {
    const runs = overRounds("rounds.bits_per_element"), high = largest(runs.map((run) => run[2]));
    const up = frame(row, "bits / element (bits)", high, [["━", "keys and values of the target", "wb-bits"]]);
    if (!held.known("rounds.bits_per_element")) return nothing(row, "not recorded");
    let path = "";
    for (const [from, to, value] of runs) {
      if (value !== null) path += `${path ? "L" : "M"}${at(from, up(value))}H${to.toFixed(1)}`;
    }
    row.append(drawn("path", { class: "wb-curve wb-bits", d: path }));
  }

  function place(name, i) {
    const there = i !== null && i >= 0 && i < held.count() && lines[name];
    lines[name]?.setAttribute("visibility", there ? "visible" : "hidden");
    if (!there) return;
    lines[name].setAttribute("x1", scale.x(i));
    lines[name].setAttribute("x2", scale.x(i));
  }

  const under = (event) => {
    const i = scale.token(event.clientX - element.getBoundingClientRect().left);
    return i >= 0 && i < held.count() ? i : null;
  };
  element.addEventListener("pointermove", (event) => onHover(under(event)));
  element.addEventListener("pointerleave", () => onHover(null));
  element.addEventListener("click", (event) => {
    const i = under(event);
    if (i !== null) onMove(i);
  });
  const sizes = new ResizeObserver(() => {
    if (Math.max(element.clientWidth, 240) !== width) draw();
  });
  sizes.observe(element);

  return {
    element, draw,
    cursor: (i) => place("cursor", cursor = i),
    hover: (i) => place("hover", hovered = i),
    destroy: () => sizes.disconnect(),
  };
}

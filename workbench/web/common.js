// What all parts of the view share: elements, numbers, visible white space. Text goes in by textContent only.

export function node(tag, name = "", text = undefined) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

// The name space of SVG is asked of the parser, so that no address stands in this file.
const SVG = document.createRange().createContextualFragment("<svg></svg>").firstChild.namespaceURI;

export function drawn(tag, attributes = {}, text = undefined) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

export const label = (x, y, text, name = "") => drawn("text", { x, y, class: name }, text);
export const px = (value) => value.toFixed(1);
export const curve = (hue, d, name = "") => drawn("path", { class: `wb-curve ${name}`, stroke: `var(--wb-${hue})`, d });
export const cross = (x, y, m) => `M${px(x - m)},${px(y - m)}l${2 * m},${2 * m}m0,${-2 * m}l${-2 * m},${2 * m}`;

const ICONS = { // paths in a square of 14
  first: "M3,3v8M11,3L5,7l6,4z", last: "M11,3v8M3,3l6,4l-6,4z", back: "M10,3L4,7l6,4z", on: "M4,3l6,4l-6,4z",
  play: "M4,2.5l7,4.5l-7,4.5z", pause: "M4.5,3v8M9.5,3v8", branch: "M4,2v10M4,8c0,-3 6,-1 6,-4M8,5l2,-2l2,2",
  close: "M3.5,3.5l7,7M10.5,3.5l-7,7", record: "M7,3.5a3.5,3.5 0 1 0 .01,0z",
};

export function icon(name) {
  const made = drawn("svg", { viewBox: "0 0 14 14", width: 14, height: 14, "aria-hidden": "true", class: "wb-icon" });
  made.append(drawn("path", { d: ICONS[name] }));
  return made;
}

// text: a word, or {icon}.
export function button(text, label, act, name = "wb-button") {
  const words = text.word ?? (text.icon ? "" : text), made = node("button", name, words);
  if (text.icon) made.prepend(icon(text.icon), words && " ");
  made.type = "button";
  if (!words) made.ariaLabel = label;
  made.title = label;
  made.addEventListener("click", act);
  return made;
}

export function chooser(label, options, act) {
  const choice = node("select", "wb-select");
  choice.ariaLabel = choice.title = label;
  const fill = (entries, value) => {
    choice.replaceChildren(...entries.map(([name, text]) => {
      const option = node("option", "", text);
      option.value = name;
      return option;
    }));
    choice.value = value;
  };
  fill(options, options[0]?.[0]);
  choice.addEventListener("change", () => act(choice.value));
  return { choice, fill };
}

export function byteUnit(largest) {
  const power = largest >= 2 ** 30 ? 3 : largest >= 2 ** 20 ? 2 : largest >= 2 ** 10 ? 1 : 0;
  return { scale: 1024 ** power, name: ["B", "KiB", "MiB", "GiB"][power] };
}

export function shown(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (unit === "bytes") {
    const { scale, name } = byteUnit(value);
    return `${(value / scale).toFixed(scale > 1 ? 2 : 0)} ${name}`;
  }
  const size = Math.abs(value), small = size !== 0 && size < 0.001;
  const text = small || size >= 1e6 ? value.toExponential(1) : String(Math.round(value * 1000) / 1000);
  return unit ? `${text} ${unit}` : text;
}

export const count = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
export const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
export const percent = (part, whole) => (whole ? `${Math.round((100 * part) / whole)} %` : "–");
export const clamp = (value, low, high) => Math.max(low, Math.min(high, value));
export const mean = (values) => {
  const known = values.filter((value) => value !== null && value !== undefined);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

// What became of a draft or a token: its sign, its hue and its words.
export const FATES = {
  accepted: ["■", "accepted", "drafted and accepted"], rejected: ["✕", "rejected", "rejected"],
  sibling_won: ["✕", "rejected", "another branch was accepted"], bonus: ["✚", "bonus", "bonus: after a draft accepted whole"],
  resampled: ["▲", "resampled", "resampled in place of a rejected draft"],
  parent_rejected: ["□", "pending", "never reached"], pruned: ["□", "pending", "pruned before verification"],
  after_end: ["□", "pending", "after the end of the text"], pending: ["○", "pending", "not decided yet"],
  plain: ["", "ink", "from the target"],
};
export const fateOf = (row) => FATES[row.fate ?? "pending"] ?? ["□", "pending", String(row.fate).replaceAll("_", " ")];
const OF_KIND = { drafted: "accepted", bonus: "bonus", residual: "resampled" };
export const kindOf = (kind) => OF_KIND[kind] ?? "plain";

export function sign(fate) {
  const [text, hue, words] = FATES[fate] ?? FATES.pending, made = node("span", "wb-sign", text);
  made.style.color = `var(--wb-${hue})`;
  made.title = words;
  return made;
}

// A token as a label: nothing breaks, and white space shows.
export function word(text) {
  if (text === null || text === undefined) return "–";
  if (text === "") return "◦";
  return text.replaceAll("\n", "⏎").replaceAll("\r", "␍").replaceAll("\t", "⇥")
    .replace(/ {4,}/g, (spaces) => `␣×${spaces.length}`).replaceAll(" ", "␣");
}

export const short = (text, most) => (text.length > most ? `${text.slice(0, Math.max(1, most - 1))}…` : text);

export function ticks(high, count = 3) {
  const rough = high / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.7);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => Math.round(i * step * 1e6) / 1e6);
}

// The first row of a table: names of columns, or pairs of a name and what it means.
export function heads(names) {
  const row = node("tr");
  for (const [text, tip = ""] of names.map((name) => [name].flat())) {
    const cell = node("th", "", text);
    cell.scope = "col";
    cell.title = tip;
    row.append(cell);
  }
  return row;
}

export function plainTable(names, rows) {
  const table = node("table", "wb-plain");
  if (names.length) table.append(heads(names));
  for (const row of rows) {
    const line = node("tr");
    line.append(...row.map((text) => node("td", "", String(text))));
    table.append(line);
  }
  return table;
}

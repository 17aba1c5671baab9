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

export function button(text, label, act) {
  const made = node("button", "wb-button", text);
  made.type = "button";
  made.setAttribute("aria-label", label);
  made.title = label;
  made.addEventListener("click", act);
  return made;
}

export function chooser(label, options, act) {
  const made = node("label", "", `${label} `), choice = node("select");
  choice.setAttribute("aria-label", label);
  const fill = (entries, value) => {
    choice.replaceChildren(...entries.map(([name, text]) => {
      const option = node("option", "", text);
      option.value = name;
      return option;
    }));
    choice.value = value;
  };
  fill(options, options[0]?.[0]);
  choice.addEventListener("change", act);
  made.append(choice);
  return { element: made, choice, fill };
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

export const fateOf = (row) => `${(row.fate ?? "–").replaceAll("_", " ")}${row.reason ? `: ${row.reason}` : ""}`;

const MARKS = [["\n", "⏎"], ["\r", "␍"], ["\t", "⇥"]];

// In running text a line still breaks after its mark; in a label (`word`) nothing breaks and spaces show.
export function visible(text, word = false) {
  if (text === "") return "◦";
  for (const [mark, sign] of MARKS) text = text.replaceAll(mark, word || mark === "\r" ? sign : sign + mark);
  return word ? text.replaceAll(" ", "␣") : text;
}

export function ticks(high, count = 3) {
  const rough = high / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.7);
  return Array.from({ length: Math.floor(high / step + 1e-9) + 1 }, (_, i) => Math.round(i * step * 1e6) / 1e6);
}

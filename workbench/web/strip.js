// The token strip: a plain ES module without imports, used by the app and by notebooks.
//
// mount(element, {onPick, label}) -> {update(json), destroy()}. `json` is what dashboard/strip.py writes: columns over the
// tokens. Text goes in by textContent only, so model output stays text. Colours are chosen here, without the server.

export const css = `
.wb-strip { font: 14px/1.75 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.wb-bar { display: flex; flex-wrap: wrap; gap: 4px 16px; align-items: center; font: 13px/1.4 system-ui, sans-serif; }
.wb-bar select { font: inherit; padding: 2px 6px; border-radius: 6px; border: 1px solid #8888; background: inherit; color: inherit;
  appearance: auto; }
.wb-bar select option { color: #1b1b1b; background: white; }
.wb-legend { display: flex; flex-wrap: wrap; gap: 2px 12px; align-items: center; }
.wb-swatch { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 4px; vertical-align: -1px; }
.wb-ramp { display: inline-block; width: 96px; height: 10px; border-radius: 3px; margin: 0 6px; vertical-align: -1px; }
.wb-tokens { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 21em; min-height: 5em; overflow-y: auto;
  margin: 6px 0; padding: 8px 10px; border: 1px solid #8884; border-radius: 8px; }
.wb-tokens:focus-visible { outline: 2px solid #0072b2; outline-offset: 1px; }
.wb-prompt { opacity: .55; }
.wb-token { cursor: pointer; border-radius: 3px; padding: 1px 0; box-decoration-break: clone;
  -webkit-box-decoration-break: clone; }
.wb-token.wb-first { box-shadow: -2px 0 0 -0.5px #8889; }
.wb-token.wb-drafted { text-decoration: underline; text-underline-offset: 3px; text-decoration-thickness: 2px; }
.wb-token.wb-bonus { text-decoration: underline double; text-underline-offset: 3px; }
.wb-token.wb-residual { text-decoration: underline wavy; text-underline-offset: 3px; }
.wb-token.wb-ahead { opacity: .38; }
.wb-token:hover { filter: brightness(.9); }
.wb-token[aria-selected=true] { outline: 2px solid currentColor; outline-offset: 1px; }
.wb-note { min-height: 1.4em; font: 13px/1.4 system-ui, sans-serif; opacity: .8; overflow-wrap: anywhere; }
`;

const KINDS = [["drafted", "drafted and kept"], ["bonus", "after a draft kept whole"], ["residual", "in place of a refused draft"]];
const RAMP = { entropy: "0,114,178", sampled: "86,180,233", surprisal: "213,94,0", p: "0,158,115", cache: "230,159,0", bits: "204,121,167" };
let made = 0;

function node(tag, name, text) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}

function shown(value, unit = "") {
  if (value === null || value === undefined) return "–";
  if (unit === "bytes") {
    const power = value >= 2 ** 30 ? 3 : value >= 2 ** 20 ? 2 : value >= 2 ** 10 ? 1 : 0;
    return `${(value / 1024 ** power).toFixed(power ? 2 : 0)} ${["B", "KiB", "MiB", "GiB"][power]}`;
  }
  const size = Math.abs(value);
  return size !== 0 && (size < 0.01 || size >= 1e6) ? value.toExponential(2) : String(Math.round(value * 1000) / 1000);
}

function visible(text) {
  return text === "" ? "◦" : text.replace(/\n/g, "⏎\n").replace(/\t/g, "⇥\t").replace(/\r/g, "␍");
}

export function mount(element, { onPick, label = "decoded tokens" }) {
  const prefix = `wb-${(made += 1)}`;
  const root = node("div", "wb-strip");
  const style = node("style", "", css);
  const bar = node("div", "wb-bar");
  const choice = node("select");
  choice.setAttribute("aria-label", "colour tokens by");
  const legend = node("span", "wb-legend");
  const chooser = node("label", "", "colour by ");
  chooser.append(choice);
  bar.append(chooser, legend);
  const box = node("div", "wb-tokens");
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", label);
  const prompt = node("span", "wb-prompt");
  box.append(prompt);
  const note = node("div", "wb-note");
  root.append(style, bar, box, note);
  element.replaceChildren(root);

  let data = { text: [], source: [], kind: [], round: [], signals: {}, sources: {}, cursor: 0, selected: null, prompt: "" };
  let drawn = [];
  let selected = null;
  let waiting = null;

  const keyOf = (i) => `${data.round[i]}|${data.source[i]}|${data.text[i]}`;

  function draw() {
    prompt.textContent = data.prompt;
    let same = 0;
    while (same < drawn.length && same < data.text.length && drawn[same].key === keyOf(same)) same += 1;
    for (const old of drawn.splice(same)) old.span.remove();
    for (let i = same; i < data.text.length; i += 1) {
      const span = node("span", `wb-token wb-${data.kind[i]}`, visible(data.text[i]));
      span.id = `${prefix}-${i}`;
      span.dataset.index = i;
      span.setAttribute("role", "option");
      span.setAttribute("aria-label", `${i}: ${data.text[i]}, ${data.source[i]}`);
      drawn.push({ span, key: keyOf(i) });
      box.append(span);
    }
    const grouped = new Set(data.round).size < data.round.length; // rounds of one token each need no marks
    drawn.forEach(({ span }, i) => {
      span.classList.toggle("wb-ahead", i >= data.cursor);
      span.classList.toggle("wb-first", grouped && (i === 0 || data.round[i] !== data.round[i - 1]));
    });
  }

  function range(signal) {
    const known = signal.values.filter((value) => value !== null);
    const low = signal.low ?? Math.min(...known), high = signal.high ?? Math.max(...known);
    return known.length ? [low, high > low ? high : low + 1] : [0, 1];
  }

  function paint() {
    const name = choice.value, signal = data.signals[name];
    const [low, high] = signal ? range(signal) : [0, 1];
    drawn.forEach(({ span }, i) => {
      let colour = "";
      if (signal && signal.values[i] !== null && signal.values[i] !== undefined) {
        const share = Math.min(1, Math.max(0, (signal.values[i] - low) / (high - low)));
        colour = `rgba(${RAMP[name]},${(0.05 + 0.65 * share).toFixed(3)})`;
      } else if (!signal) {
        colour = `${data.sources[data.source[i]] ?? "#8a8a8a"}66`;
      }
      span.style.backgroundColor = colour;
    });
    legend.replaceChildren();
    if (signal) {
      const ramp = node("span", "wb-ramp");
      ramp.style.background = `linear-gradient(to right, rgba(${RAMP[name]},.05), rgba(${RAMP[name]},.7))`;
      const item = node("span");
      const unit = signal.unit === "bytes" ? "" : ` ${signal.unit}`;
      item.append(shown(low, signal.unit), ramp, shown(high, signal.unit) + unit);
      legend.append(item);
    }
    const present = new Set(data.kind);
    if (!signal) {
      for (const source of new Set(data.source)) {
        const swatch = node("span", "wb-swatch"), item = node("span");
        swatch.style.background = `${data.sources[source] ?? "#8a8a8a"}88`;
        item.append(swatch, source);
        legend.append(item);
      }
    }
    for (const [kind, text] of KINDS) {
      if (!present.has(kind)) continue;
      const item = node("span");
      const sample = node("span", `wb-token wb-${kind}`, "abc");
      sample.style.cursor = "default";
      item.append(sample, ` ${text}`);
      legend.append(item);
    }
  }

  function describe(i) {
    if (i === null || i >= data.text.length) return "";
    const facts = Object.values(data.signals).map((signal) => `${signal.label} ${shown(signal.values[i], signal.unit)}`);
    return [`token ${i}`, JSON.stringify(data.text[i]), `round ${data.round[i]}`, data.source[i], ...facts].join(" · ");
  }

  function select(i) {
    if (selected !== null && drawn[selected]) drawn[selected].span.setAttribute("aria-selected", "false");
    selected = i !== null && i < drawn.length ? i : null;
    if (selected === null) box.removeAttribute("aria-activedescendant");
    else {
      drawn[selected].span.setAttribute("aria-selected", "true");
      box.setAttribute("aria-activedescendant", drawn[selected].span.id);
    }
    note.textContent = describe(selected);
  }

  function reveal(i) {
    const span = drawn[i]?.span;
    if (!span) return;
    const top = span.offsetTop - box.offsetTop;
    if (top < box.scrollTop) box.scrollTop = top - 8;
    else if (top + span.offsetHeight > box.scrollTop + box.clientHeight) box.scrollTop = top + span.offsetHeight - box.clientHeight + 8;
  }

  function pick(i, later = 0) {
    select(i);
    reveal(i);
    clearTimeout(waiting);
    waiting = setTimeout(() => onPick(i), later);
  }

  function startOfRound(i, step) {
    let place = i;
    while (place > 0 && data.round[place - 1] === data.round[place]) place -= 1; // start of this round
    if (step < 0) {
      if (place < i || place === 0) return place;
      place -= 1;
      while (place > 0 && data.round[place - 1] === data.round[place]) place -= 1;
      return place;
    }
    const round = data.round[place];
    while (place < data.round.length - 1 && data.round[place] === round) place += 1;
    return place;
  }

  box.addEventListener("click", (event) => {
    const span = event.target.closest(".wb-token");
    if (span) pick(Number(span.dataset.index));
  });
  box.addEventListener("mouseover", (event) => {
    const span = event.target.closest(".wb-token");
    if (span) note.textContent = describe(Number(span.dataset.index));
  });
  box.addEventListener("mouseleave", () => { note.textContent = describe(selected); });
  box.addEventListener("keydown", (event) => {
    if (!drawn.length || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = selected ?? Math.max(0, Math.min(data.cursor, drawn.length) - 1), last = drawn.length - 1;
    const moves = {
      ArrowLeft: () => Math.max(0, at - 1), ArrowRight: () => Math.min(last, at + 1), Home: () => 0, End: () => last,
      ArrowUp: () => startOfRound(at, -1), ArrowDown: () => startOfRound(at, 1), Enter: () => at, " ": () => at,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    pick(moves[event.key](), event.key === "Enter" ? 0 : 150);
  });
  choice.addEventListener("change", paint);

  function update(json) {
    if (!json) return;
    data = JSON.parse(json);
    const names = ["source", ...Object.keys(data.signals)], before = choice.value;
    if (names.join() !== [...choice.options].map((option) => option.value).join()) {
      choice.replaceChildren(...names.map((name) => {
        const option = node("option", "", name === "source" ? "source (acceptance)" : data.signals[name].label);
        option.value = name;
        return option;
      }));
      choice.value = names.includes(before) ? before : "entropy";
    }
    draw();
    paint();
    select(data.selected);
    if (data.follow) reveal(data.cursor - 1);
  }

  return { update, destroy: () => { clearTimeout(waiting); root.remove(); } };
}

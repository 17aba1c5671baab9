import { chooser, fateOf, node, shown, visible } from "./common.js";
import { KINDS } from "./record.js";

// The token view: every token in the running text, coloured by a signal; a list box with a roving tab stop.

const STRONGEST = 60; // percent of a signal's colour behind a token, so that the text reads in light and in dark
const LINES = 8, TAIL = 12; // hypotheses that are listed, tokens of each
let views = 0;

export function tokenView(held, { label, colourBy, onMove, onPick, onHover }) {
  const prefix = `wb-${(views += 1)}`;
  const bar = node("div", "wb-bar"), legend = node("span", "wb-legend");
  const colour = chooser("colour tokens by", [], () => { wanted = colour.choice.value; paint(); });
  const asked = node("label", "wb-check"), ghosts = node("input");
  ghosts.type = "checkbox";
  ghosts.addEventListener("change", haunt);
  asked.append(ghosts, " show refused drafts");
  bar.append(colour.element, legend, asked);
  bar.hidden = true; // until there is something to colour
  const box = node("div", "wb-tokens"), prompt = node("span", "wb-prompt"), search = node("div", "wb-search");
  search.hidden = true;
  box.tabIndex = -1;
  box.setAttribute("role", "listbox");
  box.setAttribute("aria-label", label);
  box.append(prompt);
  const spans = [], before = []; // of the new tokens; of the prompt's, where their distributions are recorded
  let wanted = colourBy; // kept while a run has not recorded it yet
  let selected = null, hovered = null, drawn = null;
  let limit = Infinity, lit = 0; // tokens from `limit` on are faint; `lit` of them are drawn bright

  const spanOf = (i) => i === null ? undefined : i < 0 ? before.at(i) : spans[i]?.span;
  const keyOf = (i) => `${held.tokens.round[i]}|${held.token("source", i)}|${held.token("text", i)}`;

  function made(i, name) {
    const text = held.token("text", i) ?? "", span = node("span", `wb-token ${name}`, visible(text));
    span.id = `${prefix}-${i}`;
    span.dataset.index = i;
    span.tabIndex = -1;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    span.setAttribute("aria-label", `${i}: ${visible(text, true)}, ${held.token("source", i) ?? "unknown source"}`);
    return span;
  }

  function drawPrompt() {
    if (drawn === held.before && drawn.text) return;
    drawn = held.before;
    before.splice(0, Infinity, ...Array.from({ length: -held.first }, (_, k) => made(held.first + k, "")));
    prompt.replaceChildren(...(before.length ? before : [held.prompt]));
  }

  function draw() {
    const n = held.count();
    drawPrompt();
    let same = 0;
    while (same < Math.min(n, spans.length) && spans[same].key === keyOf(same)) same += 1;
    for (const { span } of spans.splice(same)) span.remove();
    if (selected >= same || selected < held.first) selected = null;
    box.classList.toggle("wb-grouped", held.spans().length < n); // rounds of one token each need no marks
    const more = document.createDocumentFragment();
    for (let i = same; i < n; i += 1) {
      const first = i === 0 || held.tokens.round[i] !== held.tokens.round[i - 1];
      const span = made(i, `wb-${held.token("kind", i)}${first ? " wb-first" : ""}`);
      more.append(span);
      spans.push({ span, key: keyOf(i) });
    }
    box.append(more);
    lit = Math.min(limit, n);
    spans.forEach(({ span }, i) => span.classList.toggle("wb-ahead", i >= lit));
    bar.hidden = held.empty();
    asked.hidden = !held.drafts.round?.length;
    choices();
    haunt();
  }

  function choices() {
    const signals = Object.entries(held.signals).filter(([, signal]) => held.known(signal.of));
    const labels = signals.map(([name, signal]) => [name, signal.label]);
    const options = [["source", "source (acceptance)"], ...labels, ["round", "round (alternating)"]];
    const names = options.map(([name]) => name);
    if (names.join() !== [...colour.choice.options].map((option) => option.value).join()) {
      colour.fill(options, names.includes(wanted) ? wanted : "source");
    }
    paint();
  }

  function paint() {
    const name = colour.choice.value, signal = held.signals[name], items = [];
    let share = () => 0, own;
    if (signal) {
      const values = held.series(signal.of), past = before.map((_, k) => held.value(signal.of, held.first + k));
      let low = Infinity, high = -Infinity;
      for (const value of [...past, ...values]) {
        if (value !== null) [low, high] = [Math.min(low, value), Math.max(high, value)];
      }
      [low, high] = low > high ? [0, 1] : [signal.low ?? low, signal.high ?? high];
      const place = (value) => Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
      share = (i) => {
        const value = i < 0 ? past.at(i) : values[i];
        return value === null ? 0 : 0.06 + 0.94 * place(value);
      };
      own = () => signal.colour;
      const ramp = node("span", "wb-ramp");
      ramp.style.setProperty("--ramp", signal.colour);
      items.push([shown(low, signal.unit), ramp, shown(high, signal.unit)]);
    } else if (name === "round") {
      own = () => "#0072b2";
      share = (i) => i < 0 ? 0 : held.tokens.round[i] % 2 ? 0.5 : 0.1;
      items.push(["odd rounds darker, even rounds lighter"]);
    } else {
      share = (i) => i < 0 ? 0 : 0.7;
      own = (i) => held.colours.source[held.token("source", i) ?? "unknown"] ?? "#8a8a8a";
      for (const source of new Set((held.tokens.source ?? []).map((text) => text ?? "unknown"))) {
        const swatch = node("span", "wb-swatch");
        swatch.style.setProperty("--ramp", held.colours.source[source] ?? "#8a8a8a");
        items.push([swatch, source]);
      }
    }
    const tint = (span, i) => {
      const strength = (STRONGEST * share(i)).toFixed(1);
      span.style.backgroundColor = strength > 0 ? `color-mix(in srgb, ${own(i)} ${strength}%, transparent)` : "";
    };
    before.forEach((span, k) => tint(span, held.first + k));
    spans.forEach(({ span }, i) => tint(span, i));
    const present = new Set(held.tokens.kind ?? []);
    for (const [kind, text] of Object.entries(KINDS)) {
      if (present.has(kind)) items.push([node("span", `wb-sample wb-${kind}`, "abc"), ` ${text}`]);
    }
    legend.replaceChildren(...items.map((parts) => {
      const item = node("span");
      item.append(...parts);
      return item;
    }));
  }

  // Drafted and refused tokens, struck out, before the place they would have taken.
  function haunt() {
    for (const ghost of box.querySelectorAll(".wb-ghost")) ghost.remove();
    if (!ghosts.checked) return;
    for (const span of held.spans()) {
      for (const { at, nodes } of held.refused(span)) {
        const ghost = node("span", "wb-ghost");
        ghost.setAttribute("aria-hidden", "true");
        ghost.title = nodes.map((row) => `${visible(row.text ?? "", true)}: ${fateOf(row)}`).join("\n");
        ghost.append(...nodes.map((row) => node("s", "", visible(row.text ?? "", true))));
        const before = spans[Math.min(at, span.last + 1)]?.span ?? null;
        box.insertBefore(ghost, before);
      }
    }
  }

  // The last tokens of a hypothesis: its own, and those of the hypotheses it goes on from.
  function tail(row, round) {
    let text = row.text ?? "";
    for (let n = 1; n < TAIL && row; n += 1) {
      const { id, parent, depth } = row, isParent = (other) => other.id === parent && other.depth < depth;
      let found = held.rows("hypotheses", round).find(isParent);
      while (!found) { // where it has waited, having ended: a round earlier
        const before = held.rows("hypotheses", --round);
        found = before.find(isParent);
        if (!found && !before.some((other) => other.id === id)) return text;
      }
      row = found;
      text = (row.text ?? "") + text;
    }
    return text;
  }

  // The hypotheses of a round, below the text.
  function searched(round) {
    const rows = round === null ? [] : held.rows("hypotheses", round);
    const lines = rows.slice(0, LINES).map((row, place) => {
      const over = row.fate === "pruned";
      const facts = [String.fromCharCode(65 + place), visible(tail(row, round), true), shown(row.score), fateOf(row)];
      return node("div", over ? "wb-over" : "", `${over ? "✕ " : ""}${facts.join(" · ")}`);
    });
    if (rows.length > LINES) lines.push(node("div", "", `+${rows.length - LINES}`));
    search.replaceChildren(...lines);
    search.hidden = !lines.length;
  }

  function dim(from) {
    limit = from;
    const edge = Math.min(from, spans.length);
    for (let i = Math.min(edge, lit); i < Math.max(edge, lit); i += 1) {
      spans[i].span.classList.toggle("wb-ahead", i >= edge);
    }
    lit = edge;
  }

  function select(i) {
    const old = spanOf(selected), now = spanOf(i);
    if (old) [old.tabIndex, old.ariaSelected] = [-1, "false"];
    selected = now ? i : null;
    if (!now) return;
    [now.tabIndex, now.ariaSelected] = [0, "true"];
    if (box.matches(":focus-within")) now.focus({ preventScroll: true });
  }

  function reveal(i) {
    const span = spanOf(i);
    if (!span) return;
    const top = span.offsetTop, low = top + span.offsetHeight;
    if (top < box.scrollTop || low > box.scrollTop + box.clientHeight) box.scrollTop = top - box.clientHeight / 3;
  }

  function hover(i) {
    spanOf(hovered)?.classList.remove("wb-hover");
    hovered = i;
    spanOf(i)?.classList.add("wb-hover");
  }

  const indexOf = (event) => {
    const span = event.target.closest(".wb-token");
    return span ? Number(span.dataset.index) : null;
  };
  box.addEventListener("click", (event) => {
    const i = indexOf(event);
    if (i !== null) onMove(i);
  });
  box.addEventListener("dblclick", (event) => {
    const i = indexOf(event);
    if (i !== null) onPick(i);
  });
  box.addEventListener("mouseover", (event) => onHover(indexOf(event)));
  box.addEventListener("mouseleave", () => onHover(null));
  box.addEventListener("keydown", (event) => {
    if (held.empty() || event.ctrlKey || event.metaKey || event.altKey) return;
    const at = selected ?? Math.max(held.first, Math.min(limit, spans.length) - 1), last = spans.length - 1;
    const moves = {
      ArrowLeft: () => event.shiftKey ? held.roundStart(at, -1) : Math.max(held.first, at - 1),
      ArrowRight: () => event.shiftKey ? held.roundStart(at, 1) : Math.min(last, at + 1),
      ArrowUp: () => held.roundStart(at, -1), ArrowDown: () => held.roundStart(at, 1),
      Home: () => held.first, End: () => last,
    };
    const picked = event.key === "Enter" || event.key === " ";
    if (!picked && !(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation();
    if (picked) onPick(at);
    else onMove(moves[event.key]());
  });

  return { bar, box, search, draw, select, reveal, hover, dim, searched };
}

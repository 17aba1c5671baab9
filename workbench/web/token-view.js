import { FATES, button, chooser, clamp, fateOf, kindOf, node, shown, short, sign, word } from "./common.js";

// The token view: every token in the running text, its background a signal, its underline where it came from.

const WEAKEST = 4, STRONGEST = 54; // percent of a signal's hue behind a token, so that the text reads on both pages
const WINDOW = 2000; // tokens that are in the page at a time
const GHOSTS = 2, LINES = 8, TAIL = 12; // refused drafts shown in a place; hypotheses listed, tokens of each
let views = 0;

export function tokenView(held, state, { label, onMove, onPick, onHover, onChange }) {
  const prefix = `wb-${(views += 1)}`, legend = node("div", "wb-legend");
  const box = node("div", "wb-tokens"), prompt = node("span", "wb-prompt"), search = node("div", "wb-search"), canvas = node("div", "wb-canvas");
  const from = (i) => {
    [start, atHead] = [Math.max(0, i), false];
    draw();
  };
  const turn = (step) => () => from(start + step * WINDOW / 2);
  const earlier = button("", "tokens before these", turn(-1), "wb-more"), later = button("", "tokens after these", turn(1), "wb-more"), tail = node("span", "wb-tail");
  const flow = node("div"), frames = node("div", "wb-frames");
  const colour = chooser("colour tokens by", [], (name) => { state.colour = name; paint(); onChange(); });
  const asked = node("label", "wb-check"), ghosts = node("input");
  ghosts.type = "checkbox";
  ghosts.checked = state.ghosts;
  ghosts.addEventListener("change", () => { state.ghosts = ghosts.checked; haunt(); onChange(); });
  asked.append(ghosts, " rejected drafts in the text");
  box.tabIndex = 0;
  box.setAttribute("role", "listbox");
  box.ariaLabel = label;
  search.hidden = canvas.hidden = true;
  let spans = [], before = [], start = 0, drawn = null, selected = null, lit = 0, atHead = true;
  flow.append(earlier, prompt, tail, later);
  box.append(flow, frames);

  const spanOf = (i) => (i === null ? undefined : i < 0 ? before[i - held.first] : spans[i - start]?.span);
  const keyOf = (i) => `${held.tokens.round[i]}|${held.token("source", i)}|${held.token("text", i)}`;

  // A line breaks behind its mark; the mark is tinted, indentation is not.
  function fill(span, text) {
    if (!/[\n\r]/.test(text)) {
      span.textContent = text === "" ? "◦" : text;
      if (/^<[^<>\s]{1,24}>$/.test(text)) span.classList.add("wb-special");
      return;
    }
    span.classList.add("wb-breaks");
    for (const piece of text.split(/(\n|\r)/)) {
      if (piece === "\n") span.append(node("span", "wb-nl", "⏎"), "\n");
      else if (piece === "\r") span.append(node("span", "wb-nl", "␍"));
      else if (piece.trim() === "") span.append(piece);
      else span.append(node("span", "wb-inked", piece));
    }
  }

  function made(i, name) {
    const text = held.token("text", i) ?? "", span = node("span", `wb-token ${name}`);
    fill(span, text);
    span.id = `${prefix}-${i}`;
    span.dataset.index = i;
    span.setAttribute("role", "option");
    span.setAttribute("aria-selected", "false");
    const entropy = held.token("entropy_raw_nats", i), told = entropy === null ? "" : `, entropy ${shown(entropy, "nats")}`;
    const source = i < 0 ? "prompt" : FATES[kindOf(held.token("kind", i))][2];
    span.ariaLabel = `${i}: ${word(text)}, ${source}${told}`;
    return span;
  }

  function drawPrompt() {
    if (drawn === held.before && drawn.text) return;
    drawn = held.before;
    before = Array.from({ length: -held.first }, (_, k) => made(held.first + k, ""));
    prompt.replaceChildren(...(before.length ? before : [held.prompt]));
  }

  function draw() {
    const reach = state.reach();
    if (start > reach || (atHead && reach - start > WINDOW * 1.5)) start = Math.max(0, Math.floor((reach - WINDOW) / WINDOW) * WINDOW);
    const end = Math.min(reach, start + WINDOW * 1.5);
    atHead = end === reach;
    drawPrompt();
    if (spans.start !== start) for (const { span } of spans.splice(0)) span.remove();
    spans.start = start;
    let same = 0;
    while (same < Math.min(end - start, spans.length) && spans[same].key === keyOf(start + same)) same += 1;
    for (const { span } of spans.splice(same)) span.remove();
    if (spanOf(selected) === undefined) selected = null;
    const grouped = held.spans().length < held.count(); // rounds of one token each need no marks
    const more = document.createDocumentFragment();
    for (let i = start + same; i < end; i += 1) {
      const first = grouped && (i ? held.tokens.round[i] !== held.tokens.round[i - 1] : held.first < 0);
      const span = made(i, `wb-${kindOf(held.token("kind", i))}${first ? " wb-first" : ""}`);
      more.append(span);
      spans.push({ span, key: keyOf(i) });
    }
    flow.insertBefore(more, tail);
    earlier.hidden = start === 0;
    later.hidden = end === reach;
    prompt.hidden = start > 0;
    earlier.textContent = `… ${start} tokens before`;
    later.textContent = `… ${reach - end} tokens more`;
    for (const { span } of spans.slice(same)) span.classList.remove("wb-ahead");
    lit = -1;
    veil();
    choices();
    haunt();
    pending();
  }

  // Tokens behind the run's own cursor are faint.
  function veil() {
    const edge = clamp(state.limit - start, 0, spans.length);
    if (edge === lit) return;
    spans.forEach(({ span }, k) => span.classList.toggle("wb-ahead", k >= edge));
    lit = edge;
  }

  // What is drafted while its round is looked at phase by phase, and the place of a token that is being decoded.
  function pending() {
    tail.replaceChildren();
    if (state.phase && state.phase.at < 3) {
      const open = state.phase.at < 2, of = state.phase.at < 1 ? "q" : "p";
      for (const row of held.chain(state.phase.round, !open)) {
        const ghost = node("span", `wb-ghost wb-is-${open ? "pending" : fateOf(row)[1]}`, word(row.text));
        if (row[of] != null) ghost.append(node("sub", "", `${of} ${shown(row[of])}`));
        tail.append(ghost);
      }
    } else if (state.waiting) tail.append(node("span", "wb-ghost wb-is-pending", "…"));
  }

  function choices() {
    const signals = Object.entries(held.signals ?? {}).filter(([, signal]) => held.known(signal.of));
    const options = [...signals.map(([name, signal]) => [name, signal.label]), ["source", "source"]];
    const names = options.map(([name]) => name);
    if (names.join() !== [...colour.choice.options].map((option) => option.value).join()) colour.fill(options, "source");
    colour.choice.value = names.includes(state.colour) ? state.colour : "source";
    paint();
  }

  // From 0 to 1, on a scale that is fixed for the run.
  function scaleOf(signal) {
    const values = [...Array.from({ length: -held.first }, (_, k) => held.value(signal.of, held.first + k)), ...held.series(signal.of)];
    let low = Infinity, high = -Infinity;
    for (const value of values) if (value !== null) [low, high] = [Math.min(low, value), Math.max(high, value)];
    [low, high] = low > high ? [0, 1] : [signal.low ?? low, signal.high ?? high];
    return { low, high, share: (value) => (value === null ? null : clamp((value - low) / (high - low || 1), 0, 1)) };
  }

  function paint() {
    const signal = held.signals?.[colour.choice.value], items = [], by = node("span", "", "Colour by ");
    by.append(colour.choice);
    items.push([by]);
    let tint = (i) => (i < 0 ? null : [`--wb-${FATES[kindOf(held.token("kind", i))][1]}`, 18]);
    if (signal) {
      const { low, high, share } = scaleOf(signal), ramp = node("span", "wb-ramp");
      tint = (i) => {
        const part = share(held.value(signal.of, i));
        return part === null ? null : [`--wb-${signal.hue}`, WEAKEST + (STRONGEST - WEAKEST) * part];
      };
      ramp.style.setProperty("--hue", `var(--wb-${signal.hue})`);
      items.push([shown(low), ramp, shown(high, signal.unit)]);
    }
    const put = (span, i) => {
      const found = tint(i);
      span.style.setProperty("--tint", found ? `color-mix(in srgb, var(${found[0]}) ${found[1].toFixed(1)}%, transparent)` : "transparent");
    };
    before.forEach((span, k) => put(span, held.first + k));
    spans.forEach(({ span }, k) => put(span, start + k));
    const kinds = new Set((held.tokens.kind ?? []).map(kindOf)), drafted = Boolean(held.drafts.round?.length);
    for (const fate of ["accepted", "rejected", "resampled", "bonus"]) {
      const there = fate === "rejected" ? held.drafts.fate?.some((one) => fateOf({ fate: one })[1] === "rejected") : kinds.has(fate);
      if (there) items.push([sign(fate), ` ${fate}`]);
    }
    if (drafted) items.push([asked]);
    legend.hidden = held.empty();
    legend.replaceChildren(...items.map((parts) => {
      const item = node("span");
      item.append(...parts);
      return item;
    }));
  }

  // Drafted and rejected tokens, struck out, before the token that came in their place.
  function haunt() {
    for (const ghost of box.querySelectorAll(".wb-refused")) ghost.remove();
    if (!state.ghosts || state.phase) return;
    for (const span of held.spans()) {
      if (span.last < start || span.first >= start + spans.length) continue;
      for (const { at, nodes } of held.refused(span)) {
        const ghost = node("span", "wb-ghost wb-refused wb-is-rejected");
        ghost.setAttribute("aria-hidden", "true");
        ghost.title = nodes.map((row) => `${word(row.text ?? "")}: ${fateOf(row)[2]}${row.reason ? ` (${row.reason})` : ""}`).join("\n");
        nodes.slice(0, GHOSTS).forEach((row, k) => ghost.append(k ? " · " : "", struck(row.text ?? "")));
        if (nodes.length > GHOSTS) ghost.append(` +${nodes.length - GHOSTS}`);
        flow.insertBefore(ghost, spanOf(Math.min(at, span.last + 1)) ?? tail);
      }
    }
  }

  const struck = (text) => node(/\w/.test(text) ? "s" : "span", "", short(word(text), 14));

  // The last tokens of a hypothesis: its own, and those of the hypotheses it goes on from.
  function ending(row, round) {
    let text = row.text ?? "";
    for (let n = 1; n < TAIL && row; n += 1) {
      const { id, parent, depth } = row, isParent = (other) => other.id === parent && other.depth < depth;
      let found = held.rows("hypotheses", round).find(isParent);
      while (!found) { // where it has waited, having ended: a round earlier
        const earlier = held.rows("hypotheses", --round);
        found = earlier.find(isParent);
        if (!found && !earlier.some((other) => other.id === id)) return text;
      }
      row = found;
      text = (row.text ?? "") + text;
    }
    return text;
  }

  // The hypotheses of a round, below the text: a row each, with a letter and a score.
  function searched(round) {
    const rows = round === null || state.phase ? [] : held.rows("hypotheses", round);
    const scores = rows.map((row) => row.score ?? row.logp ?? null).filter((score) => score !== null);
    const [low, high] = [Math.min(...scores), Math.max(...scores)];
    const lines = rows.slice(0, LINES).map((row, place) => {
      const over = row.fate === "pruned", score = row.score ?? row.logp ?? null, line = node("div", over ? "wb-over" : "");
      const bar = node("i"), text = `${word(ending(row, round))}${over ? " ✕" : row.fate === "live" ? "" : ` · ${row.fate}`}`;
      bar.style.width = score === null ? "0" : `${8 + 42 * (high > low ? (score - low) / (high - low) : 1)}px`;
      line.append(node("b", "", String.fromCharCode(65 + place)), node("span", "", text), bar, node("small", "", shown(score)));
      return line;
    });
    if (rows.length > LINES) lines.push(node("div", "wb-over", `+${rows.length - LINES}`));
    search.replaceChildren(...lines);
    search.hidden = !lines.length;
    drawCanvas(round);
  }

  // The blocks of a masked diffusion that a round worked on: decided cells with the round that did it.
  function drawCanvas(round) {
    const { canvas: all } = held, cells = new Map();
    const blocks = new Set(round === null || state.phase ? [] : held.rows("canvas", round).map((row) => row.block ?? 0));
    for (let k = 0; blocks.size && k < all.round.length && all.round[k] <= round; k += 1) {
      const of = (name) => all[name]?.[k] ?? null, was = cells.get(of("position"));
      if (!blocks.has(of("block") ?? 0)) continue;
      const at = was && was.state === of("state") ? was.at : all.round[k];
      cells.set(of("position"), { state: of("state") ?? "masked", text: of("text") ?? "", sure: of("confidence"), at });
    }
    canvas.replaceChildren(...[...cells].sort(([a], [b]) => a - b).map(([position, { state: name, text, sure, at }]) => {
      const there = name === "fixed" || name === "proposed", cell = node("span", `wb-slot wb-slot-${name}`, there ? short(word(text), 12) : "▢");
      if (name === "fixed" || name === "remasked") cell.append(node("sup", "", at));
      if (name === "fixed" && sure !== null) cell.style.setProperty("--sure", `${(WEAKEST + (STRONGEST - WEAKEST) * clamp(sure, 0, 1)).toFixed(1)}%`);
      cell.title = `position ${position}: ${there ? word(text) : "undecided"}, ${name} in round ${at}${sure === null ? "" : `, confidence ${shown(sure)}`}`;
      return cell;
    }));
    canvas.hidden = !cells.size;
  }

  // Frames lie over the text, so that the cursor moves without a new layout of it.
  function frame(name, i) {
    for (const old of frames.querySelectorAll(`.wb-frame-${name}`)) old.remove();
    const span = spanOf(i);
    if (!span) return;
    const parts = span.classList.contains("wb-breaks") ? [...span.children] : [span], origin = box.getBoundingClientRect();
    for (const part of parts) {
      for (const rect of part.getClientRects()) {
        const one = node("i", `wb-frame wb-frame-${name}`);
        Object.assign(one.style, {
          left: `${rect.left - origin.left + box.scrollLeft - 1}px`, top: `${rect.top - origin.top + box.scrollTop - 1}px`,
          width: `${rect.width}px`, height: `${rect.height}px`,
        });
        frames.append(one);
      }
    }
  }

  function select(i) {
    const old = spanOf(selected);
    if (old) old.ariaSelected = "false";
    if (i !== null && i >= 0 && i < state.reach() && (i < start || i >= start + spans.length)) {
      from(i - WINDOW / 2);
    }
    const now = spanOf(i);
    selected = now ? i : null;
    if (now) {
      now.ariaSelected = "true";
      box.setAttribute("aria-activedescendant", now.id);
    } else box.removeAttribute("aria-activedescendant");
  }

  function reveal(i) {
    const span = spanOf(i) ?? (spans.length ? spans.at(-1).span : null);
    if (!span) return;
    const { top, bottom } = span.getBoundingClientRect(), frame = box.getBoundingClientRect();
    if (top < frame.top + 4 || bottom > frame.bottom - 20) box.scrollTop += top - frame.top - frame.height * 0.6;
  }

  const outline = () => frame("at", selected);
  const hover = (i) => frame("hover", i);

  function range(chosen) {
    for (const { span } of spans) span.classList.remove("wb-in");
    if (chosen) for (let i = chosen[0]; i <= chosen[1]; i += 1) spanOf(i)?.classList.add("wb-in");
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

  function nextColour() {
    const { choice } = colour;
    choice.selectedIndex = (choice.selectedIndex + 1) % choice.options.length;
    choice.dispatchEvent(new Event("change"));
  }

  let seen = 0;
  const sizes = new ResizeObserver(() => {
    if (!seen && box.clientHeight) reveal(selected);
    seen = box.clientHeight;
    outline();
  });
  sizes.observe(box);

  return { destroy: () => sizes.disconnect(), nextColour, legend, box, search, canvas, draw, select, reveal, outline, hover, range, searched, veil, pending, ghosts };
}

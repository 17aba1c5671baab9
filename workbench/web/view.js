import { button, clamp, node } from "./common.js";
import { inspector } from "./inspector.js";
import { record } from "./record.js";
import { dataTable } from "./table.js";
import { timeline } from "./timeline.js";
import { tokenView } from "./token-view.js";
import { UNITS, transport } from "./transport.js";

// The view of a run: text over timeline, an inspector beside them, one transport, one cursor.
//
// mount(element, options) -> { update(delta), setCursor(i), refuse(text), destroy() }
//   data             what to draw first: a mapping as data.py describes it
//   label            name of the token view ("decoded tokens"); css: text of the stylesheet, where the page lacks it
//   onCursor(i), onPick(i)  the reader moved the cursor; chose a token, with a double click or Enter
//   onSettings({colour, ghosts, unit})  the reader chose how to look
//   onAct(name, more)  what needs the engine; without it nothing decodes or branches. "step" {by}, "run" {by, until},
//                    "pause", "back" {by}, "fork" {index, token | text}, "resettle" {index}, "choose" {run}
//   keys             where keys are heard ("view": in the view alone; "page")
//   words            the glossary (those words that tooltips show)
//   resettles        whether settings can change on the way (true)
// update(delta) returns false, and draws nothing, where rounds before the delta are missing: ask for all of them.

const QUEUE = 8, PATIENCE = 60_000; // steps pressed while one is under way; ms after which nobody waits for it any more
const WIDE = 1700, NARROW = 900, SMALL = 600; // px, from which there is room for more; under which the inspector is below; of a phone
const KEYS = [
  ["← → N B", "one step"], ["Shift ← →", "one round"], ["Home End", "first token, head"], ["Space", "play, decode or pause"],
  ["1 2 3", "step by phase, token, round"], ["G", "rejected drafts"], ["C", "next colour"], ["drag", "select a range"], ["Z Esc", "zoom to it, clear it"],
  ["+ − A D", "zoom and pan, as Ctrl and Shift with the wheel"], ["Enter", "branch here"], ["/", "stop where"], ["?", "this"],
];
let mounted = 0;

export function mount(element, options = {}) {
  const { data = null, label = "decoded tokens", css = "", onAct = null, keys = "view" } = options;
  const held = record(), id = `wb${(mounted += 1)}`;
  held.live = Boolean(onAct);
  held.resettles = options.resettles ?? true;
  const state = {
    at: null, hover: null, range: null, zoom: null, unit: options.unit ?? "token", phase: null, ghosts: true,
    colour: options.colour ?? "entropy", limit: Infinity, can: Boolean(options.onAct),
    running: false, playing: false, waiting: false, round: null,
    // tokens that may be shown: all, or as far as the round looked at phase by phase has got
    reach() {
      const { phase } = state, n = held.count();
      if (phase === null) return n;
      const span = held.spans().find((one) => one.round === phase.round);
      if (!span) return held.spans().filter((one) => one.round < phase.round).at(-1)?.last + 1 || 0;
      return phase.at < 3 ? span.first : span.last + 1;
    },
  };
  held.looked = (i) => state.round ?? roundOf(i); // the round looked at
  let queued = 0, dragging = 0, patience = 0, opener = null, sentence = "";
  const root = node("div", "wb-view"), stage = node("div", "wb-stage"), line = node("div", "wb-line"), live = node("div", "wb-unseen");
  root.tabIndex = -1;
  live.setAttribute("role", "status");
  live.setAttribute("aria-live", "polite");
  const act = onAct && ((name, more = {}) => onAct(name, { by: state.unit, until: keysBar.until(), pace: keysBar.pace(), index: state.at, ...more }));
  const text = tokenView(held, state, { label, onMove: move, onPick: picked, onHover: hover, onChange: settled });
  const chart = timeline(held, state, { id, onMove: move, onHover: hover, onRange: ranged });
  const table = dataTable(held, state), glass = inspector(held, state, { onAct: act, table: table.element });
  const keysBar = transport(held, state, { step, seek, head, decode: act && decode, onUnit: unit });
  const runs = node("div", "wb-runs"), badge = node("span", "wb-badge"), told = node("p", "wb-told"), message = node("p", "wb-message");
  badge.hidden = message.hidden = true;
  line.append(runs, badge, told);
  stage.append(line, message, text.legend, text.box, text.search, text.canvas, live);
  if (css) root.append(node("style", "", css));
  root.append(stage, keysBar.element, chart.element, glass.element);
  element.replaceChildren(root);

  function redraw() {
    held.open = state.phase && state.phase.at < 4 ? state.phase.round : null;
    told.textContent = told.title = state.phase ? "Stepping by phase: only what the run knows by now is shown." : sentence;
    text.draw();
    chart.draw();
    table.draw();
  }

  // round: the one looked at, where that is not the token's own, since it appended nothing
  function go(i, follow = true, round = null) {
    state.round = round;
    state.at = i === null || held.empty() ? null : clamp(i, held.first, Math.max(held.first, state.reach() - 1));
    text.select(state.at);
    if (follow) text.reveal(state.at);
    text.outline(); // after what is read of the layout
    text.searched(held.looked(state.at));
    chart.reveal(state.at);
    chart.mark();
    glass.show(state.at);
    keysBar.sync();
    if (!state.playing && !state.running) live.textContent = said();
  }

  function said() {
    const option = text.box.querySelector("[aria-selected=true]");
    return [option && `token ${option.getAttribute("aria-label")}`, state.round !== null && `round ${state.round}, which appends nothing`].filter(Boolean).join("; ");
  }

  function settled() { options.onSettings?.(); }

  function move(i) {
    keysBar.stop();
    if (state.phase) leave();
    go(i);
    options.onCursor?.(state.at);
  }

  function picked(i) {
    move(i);
    options.onPick?.(i);
  }

  function hover(i) {
    if (i === state.hover) return;
    state.hover = i;
    text.hover(i);
    chart.mark();
  }

  function ranged(range) {
    state.range = range;
    settled();
    text.range(range);
    chart.mark();
    cancelAnimationFrame(dragging);
    dragging = requestAnimationFrame(() => glass.show(state.at));
  }

  function unit(name) {
    state.unit = name;
    if (name !== "phase" && state.phase) {
      leave();
      go(state.at);
    }
    keysBar.sync();
    settled();
  }

  // ---- phases: what is shown goes as far as the round has got
  function enter(round, at) {
    state.phase = { round, at };
    state.range = null;
    redraw();
    const reach = state.reach();
    go(reach ? reach - 1 : null);
  }

  function leave() {
    state.phase = null;
    redraw();
  }

  const roundOf = (i) => (i === null || i < 0 || !held.count() ? (held.rounds.round?.[0] ?? null) : held.token("round", i));
  const next = (round, by) => {
    const list = held.rounds.round ?? [], k = list.indexOf(round);
    return list[k + by] ?? null;
  };

  // Whether nothing recorded lies ahead, by the unit of a step.
  function head() {
    const last = held.rounds.round?.at(-1) ?? null;
    if (last === null) return true;
    if (state.unit === "phase") return held.looked(state.at) === last && (!state.phase || state.phase.at === (held.phase ?? 4));
    return state.unit === "round" ? held.looked(state.at) === last : held.empty() || (state.at ?? -1) >= state.reach() - 1;
  }

  // One step of the chosen unit. On what is recorded it moves the cursor; at the head it asks the engine.
  function step(by, playing = false) {
    if (!playing) keysBar.stop();
    if (state.waiting) {
      queued = clamp(queued + by, -QUEUE, QUEUE);
      return;
    }
    if (state.unit === "phase") return stepPhase(by);
    if (by > 0 && head()) return ask("step");
    if (!held.rounds.round?.length) return undefined;
    if (state.unit === "round") stepRound(by);
    else go((state.at ?? -1) + by);
    if (!playing) options.onCursor?.(state.at);
    return undefined;
  }

  // Every round is a place, also one that appends nothing.
  function stepRound(by) {
    const to = next(held.looked(state.at), by);
    if (to === null) return;
    const before = held.spans().filter((one) => one.round <= to).at(-1), own = before?.round === to;
    go(own ? before.first : (before?.last ?? null), true, own ? null : to);
  }

  function stepPhase(by) {
    const open = state.phase;
    if (open && open.at + by >= 0 && open.at + by < 5) {
      if (by > 0 && held.phase !== null && open.at >= held.phase && open.round === held.rounds.round?.at(-1)) return ask("step");
      return enter(open.round, open.at + by);
    }
    const here = held.looked(state.at), within = state.round === null && state.at !== null && state.at >= 0 && held.count() && state.at < held.span(state.at).last;
    const round = open ? next(open.round, by) : by < 0 || within ? here : next(here, 1);
    if (round !== null) return enter(round, by > 0 ? 0 : 4);
    return by > 0 ? ask("step") : undefined;
  }

  function ask(name) {
    if (!state.can || held.ended || state.running) return;
    state.waiting = true;
    text.pending();
    text.reveal(null);
    act(name);
    clearTimeout(patience);
    patience = setTimeout(() => { state.waiting = false; text.pending(); }, PATIENCE);
  }

  function seek(where) {
    if (where === "here") return go(state.at);
    if (held.empty()) return undefined;
    if (state.phase) leave();
    return move(where === "first" ? (held.count() ? 0 : held.first) : held.count() - 1);
  }

  function decode(name) {
    if (state.phase) leave();
    keysBar.refuse("");
    act(name);
  }

  // ---- keys
  const typing = "input:not([type=radio]):not([type=checkbox]), textarea, select, [contenteditable]";
  const zoomed = () => {
    if (!state.range) return chart.zoom(1e9);
    state.zoom = [state.range[0], state.range[1] + 1];
    settled();
    return chart.draw();
  };
  const clear = () => {
    if (state.range) ranged(null);
    else if (state.zoom) chart.zoom(1e9);
  };
  const acts = {
    arrowleft: (event) => (event.shiftKey ? byRound(-1) : step(-1)), arrowright: (event) => (event.shiftKey ? byRound(1) : step(1)),
    arrowup: () => byRound(-1), arrowdown: () => byRound(1), n: () => step(1), b: () => step(-1), " ": () => keysBar.play(), home: () => seek("first"), end: () => seek("last"),
    1: () => unit(UNITS[0]), 2: () => unit(UNITS[1]), 3: () => unit(UNITS[2]), g: () => text.ghosts.click(), z: zoomed, escape: clear,
    a: () => chart.pan(-(chartWidth() / 4)), d: () => chart.pan(chartWidth() / 4), "+": () => chart.zoom(1 / 1.5), "-": () => chart.zoom(1.5), "=": () => chart.zoom(1 / 1.5),
    "?": () => help(), "/": () => keysBar.focus(), c: () => text.nextColour(),
    enter: () => { if (state.at !== null) (options.onPick ?? (() => glass.element.querySelector(".wb-branch input")?.focus()))(state.at); },
  };
  const chartWidth = () => (state.zoom ? state.zoom[1] - state.zoom[0] : 0);
  const byRound = (by) => { if (!held.empty()) move(held.roundStart(state.at ?? 0, by)); };
  function pressed(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || event.target.closest?.(typing)) return;
    const name = event.key.toLowerCase(), held_ = acts[name];
    if (!held_ || !element.isConnected || !root.offsetParent || root.closest("[inert]")) return;
    if (!root.contains(event.target) && event.target.closest?.("[role=dialog], [role=radiogroup], [role=tablist], [role=listbox]")) return;
    if ((name === " " || name === "enter") && event.target.closest?.("button, summary, a, [type=checkbox]")) return;
    event.preventDefault();
    held_(event);
  }
  const paused = () => act?.("pause");
  const hears = keys === "page" ? document : root;
  hears.addEventListener("keydown", pressed);

  // ---- what comes from the engine
  function headline(delta) {
    if (delta.runs) {
      runs.replaceChildren(...delta.runs.map(({ run, name, tip, on }) => {
        const chip = button(name, tip ?? name, () => act?.("choose", { run }), `wb-chip${on ? " wb-on" : ""}`);
        chip.ariaPressed = String(Boolean(on));
        return on && delta.can !== undefined ? [chip, button({ icon: "close" }, "close this run", () => act?.("forget"), "wb-shut")] : [chip];
      }).flat());
    }
    if (delta.badge) {
      badge.hidden = false;
      badge.textContent = delta.badge.text;
      badge.title = delta.badge.tip ?? "";
      badge.classList.toggle("wb-caution", Boolean(delta.badge.caution));
    }
    sentence = delta.line ?? sentence;
    const text = delta.status?.message ?? "";
    message.textContent = text;
    message.hidden = !text;
  }

  function update(delta) {
    const was = { id: held.id, count: held.count() };
    if (!held.take(delta)) return false;
    state.limit = delta.cursor ?? Infinity;
    state.running = Boolean(delta.status?.running);
    state.can = Boolean(act) && delta.can !== false;
    held.live = state.can;
    const at = delta.place?.at ?? null, empty = at !== null && !held.spans().some((one) => one.round === at);
    if (state.range && state.range[1] >= held.count()) state.range = null;
    state.phase = held.phase === null ? null : { round: held.rounds.round.at(-1), at: held.phase };
    headline(delta);
    const before = state.at, stepped = state.waiting && state.unit === "token" && held.id === was.id && before !== null && before < was.count;
    const told = delta.selected ?? (delta.cursor ? delta.cursor - 1 : null);
    const follow = !("selected" in delta) ? (before ?? 0) : stepped && told !== null ? Math.min(told, before + 1) : told;
    state.waiting = false;
    const scroll = text.box.scrollTop;
    redraw();
    const stays = delta.follow === false && was.id === held.id;
    go(follow, !stays, empty && delta.follow !== false ? at : null);
    if (stays) text.box.scrollTop = scroll;
    if (queued && !state.running) {
      const by = Math.sign(queued);
      queued -= by;
      step(by);
    }
    return true;
  }

  const sizes = new ResizeObserver(() => {
    root.classList.toggle("wb-wide", root.clientWidth >= WIDE);
    root.classList.toggle("wb-narrow", root.clientWidth < NARROW);
    root.classList.toggle("wb-small", root.clientWidth < SMALL);
  });
  sizes.observe(root);
  if (data) update(data);
  else {
    keysBar.sync();
    glass.show(null);
  }
  // Keys and words, over the page.
  let helped = null;
  function help() {
    if (helped) {
      helped.remove();
      helped = null;
      return opener?.focus();
    }
    opener = document.activeElement;
    helped = node("div", "wb-view wb-floating");
    const pane = node("div", "wb-help"), list = node("dl"), words = node("dl");
    pane.setAttribute("role", "dialog");
    pane.ariaLabel = "keys and words";
    pane.append(button({ icon: "close" }, "close (Esc)", help), node("h3", "", "Keys"), list, node("h3", "", "Words"), words);
    for (const [name, text] of KEYS) list.append(node("dt", "", name), node("dd", "", text));
    for (const [name, text] of Object.entries(options.words ?? WORDS)) words.append(node("dt", "", name), node("dd", "", text));
    pane.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Escape" || event.key === "?") help();
    });
    helped.append(pane);
    document.body.append(helped);
    return pane.querySelector("button").focus();
  }

  addEventListener("workbench-pause", paused);
  addEventListener("workbench-help", help);
  return {
    update,
    record: () => held,
    // where the reader looks, and going there: {at, by, colour, range, zoom}
    where: () => ({ at: state.at, by: state.unit, colour: state.colour, range: state.range, zoom: state.zoom }),
    look({ at = state.at, range = null, zoom = null }) {
      const inside = (pair) => pair?.map((one) => clamp(one, 0, held.count())), [low, high] = inside(zoom) ?? [0, 0];
      state.range = range && held.count() ? inside(range).map((one) => Math.min(one, held.count() - 1)).sort((a, b) => a - b) : null;
      state.zoom = high > low ? [low, high] : null;
      redraw();
      text.range(state.range);
      go(at);
    },
    setCursor: (i) => go(i),
    refuse(text) {
      state.waiting = false;
      queued = 0;
      keysBar.refuse(text);
    },
    destroy() {
      keysBar.stop();
      sizes.disconnect();
      text.destroy();
      chart.destroy();
      hears.removeEventListener("keydown", pressed);
      removeEventListener("workbench-pause", paused);
      removeEventListener("workbench-help", help);
      helped?.remove();
      root.remove();
    },
  };
}

import { timelineChart } from "./timeline.js";
import { node, shown, visible } from "./common.js";
import { dataTable, inspector } from "./inspector.js";
import { record } from "./record.js";
import { tokenView } from "./token-view.js";
import { decodeControls, transport } from "./transport.js";

// The view of a trace: token view, timeline, inspector, transport and data table around one cursor.
//
// mount(element, options) -> { update(delta), setCursor(i), destroy() }
//   data        what to draw first: a mapping as data.py describes it
//   parts       which of PARTS to draw, in that order (all)
//   label       name of the token view ("decoded tokens"); colourBy: signal it starts with ("entropy")
//   css         text of the stylesheet, where the page does not carry it
//   onCursor(i) the reader moved the cursor; onPick(i): pressed Enter or a double click on a token
//   onAction(n) a button of the running decoder: "step", "run", "pause" or "back"; without it there are no such buttons
// update(delta) returns false, and draws nothing, where rounds before the delta are missing: ask for all of them.

const PARTS = ["transport", "tokens", "timeline", "inspector", "table"];

export function mount(element, options = {}) {
  const { data = null, parts = PARTS, label = "decoded tokens", colourBy = "entropy", css = "" } = options;
  const held = record();
  let at = null, limit = Infinity, playing = false;
  const root = node("div", "wb-view"), note = node("div", "wb-note"), live = node("div", "wb-unseen");
  live.setAttribute("role", "status");
  live.setAttribute("aria-live", "polite");
  const moved = (i) => {
    go(i);
    options.onCursor?.(i);
  };
  const picked = (i) => options.onPick?.(i);
  const view = tokenView(held, { label, colourBy, onMove: moved, onPick: picked, onHover: hover });
  const timeline = timelineChart(held, { onMove: moved, onHover: hover });
  const glass = inspector(held), table = dataTable(held, { cursor: () => at });
  const keys = transport(held, { at: () => at, onMove: moved, onPlay: (on) => { playing = on; veil(); } });
  const decode = options.onAction && decodeControls({ onAction: options.onAction });
  const places = {
    transport: [keys.element], tokens: [view.bar, view.box, view.search, note, live], timeline: [timeline.element],
    inspector: [glass.element], table: [table.element],
  };
  if (css) root.append(node("style", "", css));
  if (decode) root.append(decode.element);
  for (const part of parts) root.append(...places[part]);
  element.replaceChildren(root);

  function describe(i) {
    if (i === null || i >= held.count()) return "";
    const signals = Object.values(held.signals).filter((signal) => held.known(signal.of));
    const facts = signals.map((signal) => `${signal.label} ${shown(held.value(signal.of, i), signal.unit)}`);
    const word = visible(held.token("text", i) ?? "", true), source = held.token("source", i) ?? "unknown source";
    const place = i < 0 ? "in the prompt" : `round ${held.tokens.round[i]}`;
    return [`token ${i}`, word, place, source, ...facts].join(" · ");
  }

  // While it plays, what has not been reached yet is faint.
  const veil = () => view.dim(Math.min(limit, playing && at !== null ? at + 1 : Infinity));

  function go(i) {
    at = i === null || held.empty() ? null : Math.max(held.first, Math.min(i, held.count() - 1));
    view.select(at);
    view.reveal(at);
    view.searched(at === null ? null : held.token("round", at));
    if (playing) veil();
    if (parts.includes("timeline")) timeline.cursor(at);
    if (parts.includes("inspector")) glass.show(at);
    keys.sync();
    note.textContent = describe(at);
    if (!playing) live.textContent = note.textContent;
  }

  function hover(i) {
    view.hover(i);
    timeline.hover(i);
    note.textContent = describe(i ?? at);
  }

  function update(delta) {
    if (!held.take(delta)) return false;
    limit = delta.cursor ?? Infinity;
    view.draw();
    veil();
    if (parts.includes("timeline")) timeline.draw();
    table.draw();
    const follow = "selected" in delta ? delta.selected ?? (delta.cursor ? delta.cursor - 1 : null) : at ?? 0;
    const scroll = view.box.scrollTop;
    go(follow);
    if (delta.place && delta.follow) view.searched(delta.place.at);
    if (delta.follow === false) view.box.scrollTop = scroll;
    const { cursor, place, status } = delta;
    decode?.show({ ended: held.ended, cursor, length: held.count(), place, ...status });
    return true;
  }

  if (data) update(data);
  else {
    keys.sync();
    decode?.show({});
    glass.show(null);
  }
  return {
    update,
    setCursor: go,
    destroy: () => { keys.stop(); timeline.destroy(); root.remove(); },
  };
}

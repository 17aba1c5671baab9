import { button, chooser, node } from "./common.js";

// Stepping over what is recorded, inside the browser; and the buttons of a run that is still decoding.

const SPEEDS = [
  ["10", "10 tokens / s"], ["2", "2 tokens / s"], ["5", "5 tokens / s"], ["40", "40 tokens / s"],
  ["own", "as recorded"],
];
const QUICKEST = 4, SLOWEST = 3000; // ms between two tokens at the recorded pace

export function transport(held, { at, onMove, onPlay }) {
  const element = node("div", "wb-transport");
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", "step through what is recorded");
  const scrub = node("input", "wb-scrub"), place = node("output", "wb-place");
  scrub.type = "range";
  scrub.setAttribute("aria-label", "token");
  scrub.addEventListener("input", () => { stop(); onMove(Number(scrub.value)); });
  const speed = chooser("speed", SPEEDS, () => timer && play());
  const toggle = button("▶ Play", "play from the cursor", () => timer ? stop() : play());
  const here = () => at() ?? 0;
  const move = (next) => () => { stop(); if (!held.empty()) onMove(next()); };
  const buttons = [
    button("|◀", "to the first token", move(() => held.count() ? 0 : held.first)),
    button("◀◀", "one round back", move(() => held.roundStart(here(), -1))),
    button("◀", "one token back", move(() => Math.max(held.first, here() - 1))),
    toggle,
    button("▶", "one token on", move(() => Math.min(held.count() - 1, here() + 1))),
    button("▶▶", "one round on", move(() => held.roundStart(here(), 1))),
  ];
  element.append(...buttons, speed.element, scrub, place);
  let timer = null;

  function pause(i) {
    if (speed.choice.value !== "own") return 1000 / Number(speed.choice.value);
    if (i < 0) return QUICKEST; // a prompt comes at once
    const { first, last } = held.span(i), ms = held.ofRound("total_ms", i) ?? 100;
    return Math.min(SLOWEST, Math.max(QUICKEST, ms / (last - first + 1)));
  }

  function play() {
    clearTimeout(timer);
    if (held.empty()) return;
    if (!timer && here() >= held.count() - 1) onMove(0);
    const tick = () => {
      if (here() >= held.count() - 1) return stop();
      onMove(here() + 1);
      timer = setTimeout(tick, pause(here()));
    };
    timer = setTimeout(tick, pause(here()));
    toggle.textContent = "❚❚ Pause";
    onPlay(true);
  }

  function stop() {
    if (!timer) return;
    clearTimeout(timer);
    timer = null;
    toggle.textContent = "▶ Play";
    onPlay(false);
  }

  function sync() {
    const n = held.count(), i = at();
    scrub.min = held.first;
    scrub.max = Math.max(n - 1, held.first);
    scrub.value = i ?? 0;
    scrub.disabled = held.empty();
    for (const one of buttons) one.disabled = held.empty();
    place.textContent = held.empty() ? "no tokens yet" : `${i ?? "–"} / ${n - 1}`;
    const said = i === null ? "no token" : i < 0 ? `token ${i}, of the prompt`
      : `token ${i} of ${n - 1}, round ${held.tokens.round[i]}`;
    scrub.setAttribute("aria-valuetext", said);
  }

  return { element, sync, stop };
}

export function decodeControls({ onAction }) {
  const element = node("div", "wb-transport wb-decode"), status = node("span", "wb-status");
  element.setAttribute("role", "group");
  element.setAttribute("aria-label", "decode");
  const names = [
    ["back", "◀ Back", "take the run one round back"], ["step", "Step ▶", "decode one round"],
    ["run", "Run ▶▶", "decode to the end"], ["pause", "❚❚ Pause", "pause after this round"],
  ];
  const buttons = names.map(([name, text, label]) => [name, button(text, label, () => onAction(name))]);
  status.setAttribute("role", "status");
  element.append(...buttons.map(([, one]) => one), status);

  const START = { at: null, tip: true };
  function show({ running = false, ended = null, cursor = 0, length = 0, place = START, message = "" }) {
    const done = ended && place.tip;
    const usable = { back: !running && place.at !== null, step: !running && !done, run: !running && !done, pause: running };
    for (const [name, one] of buttons) one.disabled = !usable[name];
    const where = `token ${cursor}${cursor < length ? ` of ${length} recorded` : ""}`;
    const round = place.at === null ? "" : `, round ${place.at}`;
    status.textContent = message || (running ? "decoding …" : done ? `ended: ${ended}` : where + round);
  }

  return { element, show };
}

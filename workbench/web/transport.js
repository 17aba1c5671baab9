import { button, chooser, fixed, icon, node } from "./common.js";

// One bar: steps over what is recorded, inside the browser; at the head of a run that can go on, the same buttons decode.

const SPEEDS = [["own", "1×"], ["2", "2/s"], ["10", "10/s"], ["40", "40/s"], ["0", "max"]];
const QUICKEST = 4, SLOWEST = 3000; // ms between two tokens at the recorded pace
export const UNITS = ["phase", "token", "round"];
const PHASES = ["draft", "verify", "accept", "commit", "cache"], PLAIN = ["start", "forward", "sample", "commit", "cache"];
export const phasesOf = (held, row) => (held.rounds.drafted?.[row] ? PHASES : PLAIN); // where nothing was drafted
export const TIMED = ["draft_ms", "target_ms", "verify_ms", "commit_ms", "cache_ms"];

export function transport(held, state, { step, seek, head, decode, onUnit }) {
  const element = node("div", "wb-transport"), place = node("output", "wb-place"), phases = node("div", "wb-phases");
  element.setAttribute("role", "group");
  element.ariaLabel = "step through the run";
  const speed = chooser("speed in tokens per second; 1× as recorded", SPEEDS, () => timer && play());
  const until = node("input", "wb-until"), wrong = node("p", "wb-wrong");
  until.placeholder = "stop: entropy > 3";
  until.ariaLabel = "stop where";
  until.title = "Decoding stops where this holds, as entropy > 3 or text ~ return";
  until.addEventListener("input", () => { wrong.hidden = true; });
  wrong.hidden = true;
  const toggle = button("", "", () => (timer ? stop() : play()));
  const back = button({ icon: "back" }, "one step back (←)", () => step(-1), ""), on = button({ icon: "on" }, "one step on (→)", () => step(1), "");
  const ends = [button({ icon: "first" }, "to the first token (Home)", () => seek("first"), ""), button({ icon: "last" }, "to the head of the run (End)", () => seek("last"), "")];
  const group = node("span", "wb-group"), units = node("span", "wb-group");
  group.append(ends[0], back, toggle, on, ends[1]);
  units.setAttribute("role", "group");
  units.ariaLabel = "step by";
  const unit = Object.fromEntries(UNITS.map((name, k) => [name, button(name, `step by ${name} (${k + 1})`, () => onUnit(name), "")]));
  units.append(...Object.values(unit));
  const stopAt = node("span", "wb-stop-at");
  stopAt.append(until, wrong);
  element.append(group, units, ...(decode ? [stopAt] : []), speed.choice, place, phases);
  let timer = null, stepped = "";

  const canDecode = () => state.can && !held.ended && !state.phase;

  function pause(i) {
    if (speed.choice.value !== "own") return Number(speed.choice.value) ? 1000 / Number(speed.choice.value) : 0;
    if (i < 0) return QUICKEST; // a prompt comes at once
    const { first, last } = held.span(i), ms = held.ofRound("total_ms", i) ?? 100;
    return Math.min(SLOWEST, Math.max(QUICKEST, ms / (last - first + 1)));
  }

  function play() {
    if (state.running) return decode("pause");
    if (head() && canDecode()) return decode("run");
    clearTimeout(timer);
    if (held.empty()) return undefined;
    if (!timer && head()) seek("first");
    state.playing = true;
    const tick = () => {
      if (head()) return stop();
      step(1, true);
      timer = setTimeout(tick, pause(state.at ?? 0));
      return undefined;
    };
    timer = setTimeout(tick, pause(state.at ?? 0));
    sync();
    return undefined;
  }

  function stop() {
    if (!timer) return;
    clearTimeout(timer);
    timer = null;
    state.playing = false;
    seek("here");
  }

  function say(name, words, label, name2 = "") {
    toggle.replaceChildren(icon(name), ` ${words}`);
    toggle.ariaLabel = label;
    toggle.title = `${label} (Space)`;
    toggle.className = `wb-play ${name2}`;
  }

  function sync() {
    const n = held.count(), i = state.at, atHead = head();
    if (timer || state.running) say("pause", "Pause", state.running ? "pause after this round" : "pause the replay");
    else if (atHead && canDecode()) say("record", "Decode", "decode on from here", "wb-live");
    else say("play", "Replay", "play what is recorded");
    toggle.disabled = held.empty() && !canDecode();
    back.disabled = held.empty() && !state.phase;
    on.disabled = (atHead && !canDecode() && !state.phase && state.unit !== "phase") || Boolean(state.running);
    for (const one of ends) one.disabled = held.empty();
    for (const [name, one] of Object.entries(unit)) one.ariaPressed = String(name === state.unit);
    const total = state.running && held.max_new_tokens ? held.max_new_tokens : n;
    const round = state.phase ? state.phase.round : held.looked(i);
    const where = held.empty() ? "no tokens yet" : state.phase && state.phase.at < 3 ? `${state.reach()} of ${n} tokens` : i === null ? "before token 0" : `token ${i} of ${total}`;
    place.textContent = place.title = round === null ? where : `${where} · round ${round}`;
    element.dataset.unit = state.unit;
    steps(round);
  }

  // The phases of the round at the cursor with their times.
  function steps(round) {
    const row = round === null || !held.rounds.round ? -1 : held.rounds.round.indexOf(round), now = `${held.id} ${row} ${state.phase?.at} ${held.phase}`;
    if (now === stepped) return;
    stepped = now;
    phases.hidden = row < 0;
    phases.replaceChildren(...phasesOf(held, row).map((name, k) => {
      const open = state.phase, time = held.rounds[TIMED[k]]?.[row] ?? null, later = open && k > open.at;
      const one = node("span", open && k === open.at ? "wb-now" : later ? "wb-later" : "", name);
      if (time !== null && !later) one.append(node("small", "", ` ${fixed(time, 1)}${k === 4 ? " ms" : ""}`));
      one.title = `${name}: ${time === null || later ? "no time known" : `${fixed(time, 2)} ms`}`;
      return one;
    }));
  }

  return {
    element, sync, stop, play,
    until: () => until.value,
    pace: () => (Number(speed.choice.value) ? 1 / Number(speed.choice.value) : 0), // seconds a step, where one is asked for
    focus: () => until.focus(),
    refuse(text) {
      wrong.textContent = text;
      wrong.hidden = !text;
    },
  };
}

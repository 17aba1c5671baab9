import { FATES, button, clamp, fateOf, fixed, heads, kindOf, mean, node, percent, plainTable, short, shown, sign, word } from "./common.js";
import { opened } from "./phases.js";
import { tree } from "./tree.js";

// The inspector: what is known about the token at the cursor and its round, in sections. One call adds one.
//
// section(name, {title, round, there(held, i) -> whether, or rows; draw(i, more) -> element; note(held, i)}); round: it
// depends on the round alone. While a round is looked at phase by phase, one table takes the place of all of them.

export const SECTIONS = new Map();
export const section = (name, made) => SECTIONS.set(name, made);

const FEW = 6, MANY = 20; // candidates listed at first, and unfolded
const folded = new Set(["passes", "table"]);

export function inspector(held, state, { onAct, table }) {
  const element = node("section", "wb-inspector");
  element.ariaLabel = "the token at the cursor";
  element.tabIndex = -1;
  const branch = onAct && branching(held, state, onAct);
  let unfolded = false, last = null, kept = {}; // sections of the round last looked at
  const more = { held, state, onAct, candidates: () => (unfolded ? MANY : FEW), unfold: () => { unfolded = !unfolded; show(last); } };

  function show(i) {
    last = i;
    const parts = [];
    if (state.phase) parts.push(...opened(held, state));
    else {
      if (state.range) parts.push(selection(held, state));
      if (i === null) parts.push(node("p", "wb-empty", "No token yet."));
      const round = held.looked(i);
      if (kept.round !== round || kept.of !== held.rounds) kept = { round, of: held.rounds, frames: {} };
      for (const [name, one] of SECTIONS) {
        if ([one.there(held, i)].flat().some(Boolean)) parts.push(one.round ? (kept.frames[name] ??= framed(name, one, i)) : framed(name, one, i));
      }
    }
    if (branch && state.can && !state.phase && i !== null && i >= 0 && held.count()) {
      const after = parts.findIndex((part) => part.dataset?.name === "candidates");
      parts.splice(after < 0 ? parts.length : after + 1, 0, branch);
    }
    parts.push(table);
    const focus = element.contains(document.activeElement) && document.activeElement, name = focus && focus.closest("[data-name]")?.dataset.name;
    for (const old of [...element.children]) if (!parts.includes(old)) old.remove();
    parts.forEach((part, k) => { if (element.children[k] !== part) element.insertBefore(part, element.children[k] ?? null); });
    if (focus && !element.contains(focus)) (element.querySelector(`[data-name="${name}"] > summary`) ?? element).focus({ preventScroll: true });
  }

  function framed(name, one, i) {
    const body = one.draw(i, more);
    if (!one.title) {
      body.dataset.name = name;
      return body;
    }
    const frame = node("details", "wb-section"), head = node("summary", "", one.title), note = one.note?.(held, i);
    if (note) head.append(node("small", "", note));
    frame.open = !folded.has(name);
    frame.addEventListener("toggle", () => folded[frame.open ? "delete" : "add"](name));
    frame.append(head, body);
    frame.dataset.name = name;
    return frame;
  }

  return { element, show };
}

// ---- the token

section("token", {
  there: (held, i) => i !== null,
  draw(i, { held }) {
    const part = node("div", "wb-word"), kind = kindOf(held.token("kind", i)), place = node("span", "wb-quiet"), from = node("div", "wb-from");
    place.textContent = `token ${i} · position ${held.token("position", i) ?? "–"}`;
    part.append(node("code", "", short(word(held.token("text", i) ?? ""), 24)), place);
    const forced = held.marks?.some((mark) => mark.index === i && mark.text === "forced token");
    const words = i < 0 ? "of the prompt" : forced ? "forced here" : kind === "plain" ? "from the target's own distribution" : FATES[kind][2];
    from.append(...(kind === "plain" ? [] : [sign(kind), " "]), words);
    from.title = `source: ${held.token("source", i) ?? "unknown"}, token id ${held.token("token_id", i)}`;
    const facts = node("dl", "wb-facts"), cut = held.token("cut_by", i);
    const add = (label, name, tip, show = fixed) => {
      const value = held.token(name, i), one = node("div");
      if (value === null) return;
      one.append(node("dt", "", label), node("dd", "", show(value, 2)));
      one.title = `${tip} (${name})`;
      facts.append(one);
    };
    const sampled = cut !== "greedy";
    add("entropy", "entropy_raw_nats", WORDS["entropy"]);
    add("surprisal", "surprisal_nats", WORDS["surprisal"]);
    add("rank", "rank", "Rank of this token in the distribution, 1 = most likely", String);
    if (sampled && cut) add(`left by ${cut.replaceAll("_", "-")}`, "keep_size", "Tokens left in the sampled distribution", String);
    if (sampled) add("sampled", "entropy_sampled_nats", WORDS["entropy, sampled"]);
    add("margin", "margin", WORDS["margin"]);
    add("allowed", "allowed_count", "Tokens that the constraint allowed", String);
    add("their p", "allowed_mass", "Probability of what the constraint allowed");
    add("layers", "layers_run", "Layers that ran for this token", String);
    add("exit at", "exit_layer", "Layer the token was read at, from 0", String);
    const whole = node("div");
    whole.append(part, from, facts);
    return whole;
  },
});

// ---- what might have stood there

function candidatesAt(held, i) {
  const raw = held.token("topk_raw", i), sampled = held.token("topk_sampled", i), taken = held.token("token_id", i);
  if (!raw) return [];
  const after = sampled ? new Map(sampled[0].map((token, k) => [token, sampled[1][k]])) : null;
  const list = raw[0].map((token, k) => ({ token, p: raw[1][k] }));
  for (const [token, p] of after ?? []) if (!list.some((one) => one.token === token)) list.push({ token, p: null, after: p });
  if (!list.some((one) => one.token === taken)) list.push({ token: taken, p: held.token("p_raw", i), after: held.token("p_sampled", i), text: held.token("text", i) });
  const depth = i < 0 ? 0 : i - held.span(i).first + 1, rows = i < 0 ? [] : held.rows("drafts", held.token("round", i)).filter((row) => row.depth === depth);
  const parent = depth > 1 ? held.rows("drafts", held.token("round", i)).filter((row) => row.depth === depth - 1 && row.fate === "accepted").at(-1)?.node : 0;
  for (const one of list) {
    one.after ??= after ? (after.get(one.token) ?? null) : null;
    one.cut = after !== null && one.after === null;
    one.taken = one.token === taken;
    one.draft = rows.find((row) => row.token_id === one.token && (row.parent ?? 0) === (parent ?? 0)) ?? null;
  }
  return list;
}

section("candidates", {
  title: "Next-token distribution",
  there: (held, i) => Boolean(held.token("topk_raw", i)),
  note: (held) => (held.live ? "Enter: branch here" : ""),
  draw(i, { held, onAct, candidates, unfold }) {
    const all = candidatesAt(held, i), list = all.slice(0, candidates()), most = Math.max(...all.map((one) => Math.max(one.p ?? 0, one.after ?? 0)), 1e-9);
    if (!list.some((one) => one.taken)) list.push(...all.filter((one) => one.taken));
    const table = node("table", "wb-candidates"), greedy = held.token("cut_by", i) === "greedy";
    const sampled = !greedy && held.token("topk_sampled", i);
    table.append(heads(["candidate", "", ["p", "probability under the next-token distribution"], ...(sampled ? [["sampled", "after temperature and cuts"]] : []), ""]));
    for (const one of list) {
      const row = node("tr", one.taken ? "wb-taken" : one.cut ? "wb-cut" : ""), cell = node("td"), bar = node("span", "wb-bar"), text = word(one.text ?? held.text(one.token));
      const wide = (value) => `${(88 * (value ?? 0)) / most}%`, outline = node("u"), filled = node("s");
      outline.style.width = wide(one.p);
      filled.style.width = wide(sampled ? one.after : one.p);
      bar.append(...(sampled ? [outline] : []), filled);
      if (one.draft?.q) {
        const tick = node("b");
        tick.style.left = `${clamp((88 * one.draft.q) / most, 0, 97)}%`;
        tick.title = `draft q ${shown(one.draft.q)}`;
        bar.append(tick);
      }
      cell.append(bar);
      const name = node("td");
      name.append(node("code", "", short(text, 13)));
      name.title = text;
      row.append(name, cell, node("td", "wb-number", fixed(one.p, 3)));
      if (sampled) row.append(node("td", "wb-number", one.cut ? (held.token("cut_by", i) ?? "cut").replaceAll("_", "-") : fixed(one.after, 3)));
      const end = node("td", "wb-end");
      if (one.taken) end.append(kindOf(held.token("kind", i)) === "plain" ? "✓" : sign(kindOf(held.token("kind", i))));
      else if (one.draft && fateOf(one.draft)[1] === "rejected") end.append(sign("rejected"));
      else if (onAct && held.live && i >= 0) end.append(button({ icon: "branch" }, `branch here with ${text}`, () => onAct("fork", { index: i, token: one.token }), "wb-fork"));
      row.append(end);
      table.append(row);
    }
    const whole = node("div"), said = sampled ? "outline p · filled: sampled from" : greedy ? "temperature 0 takes the first" : "";
    const drafts = all.some((one) => one.draft?.q) ? "tick: draft q" : "";
    whole.append(table);
    const note = node("p", "wb-note", [said, drafts].filter(Boolean).join(" · "));
    if (all.length > FEW) note.append(" ", button(candidates() > FEW ? "fewer" : `${all.length - FEW} more`, "more or fewer candidates", unfold, "wb-link"));
    whole.append(note);
    return whole;
  },
});

function branching(held, state, onAct) {
  const row = node("div", "wb-branch"), typed = node("input");
  typed.placeholder = "or type a token";
  typed.ariaLabel = "token to branch with";
  const fork = () => onAct("fork", { index: state.at, text: typed.value });
  typed.addEventListener("keydown", (event) => { if (event.key === "Enter") fork(); });
  const here = button({ icon: "branch", word: "Branch" }, "fork before this token, without reading the prompt again", fork);
  const again = button("Go on with new settings", "fork after this token and go on with the settings as they are now", () => onAct("resettle", { index: state.at }));
  row.append(typed, here, ...(held.resettles === false ? [] : [again]));
  return row;
}

// ---- the round looked at: its draft as a tree

const rowsOf = (table) => (held, i) => held.rows(table, held.looked(i));
const roundOf = (held, i) => (name) => held.inRound(name, held.looked(i));

section("round", {
  title: "Round", round: true,
  there: rowsOf("drafts"),
  note(held, i) {
    const of = roundOf(held, i), ms = of("total_ms");
    return `${held.looked(i)} · ${of("accepted") ?? 0} of ${of("drafted") ?? 0} accepted${ms === null ? "" : ` · ${ms.toFixed(1)} ms`}`;
  },
  draw: (i, { held }) => tree(held, held.looked(i), 4),
});

// ---- decisions, hypotheses, cache, passes

section("decisions", {
  title: "Decisions", round: true,
  there: rowsOf("decisions"),
  draw(i, { held }) {
    const list = node("div");
    for (const row of rowsOf("decisions")(held, i)) {
      const signals = row.signals ? `${row.signals}${row.threshold ? ` against ${row.threshold}` : ""}: ` : "";
      list.append(node("div", "", `◆ ${signals}${(row.action ?? "").replaceAll("_", " ")}${row.controller ? ` (${row.controller})` : ""}`));
    }
    return list;
  },
});

section("hypotheses", {
  title: "Hypotheses", round: true,
  there: rowsOf("hypotheses"),
  draw(i, { held }) {
    const rows = rowsOf("hypotheses")(held, i).map((row) => [word(row.text ?? ""), shown(row.score ?? row.logp), row.role ?? "–", row.fate ?? "–"]);
    return plainTable(["token", "score", "role", "fate"], rows);
  },
});

section("cache", {
  title: "Cache after this round", round: true,
  there: (held, i) => roundOf(held, i)("cache_bytes") !== null,
  draw(i, { held }) {
    const of = roundOf(held, i), full = of("target_full_bytes"), target = of("target_bytes"), rows = [];
    if (target === null) rows.push(["all models", shown(of("cache_bytes"), "bytes")]);
    else rows.push(["target", `${shown(target, "bytes")}${full ? ` of ${shown(full, "bytes")} (${percent(target, full)})` : ""}`]);
    for (const [label, name] of [["free slots", "free_bytes"], ["other models", "others_bytes"], ["on the host", "host_bytes"]]) {
      if (of(name)) rows.push([label, shown(of(name), "bytes")]);
    }
    rows.push(["bits / element", shown(of("bits_per_element"))]);
    return plainTable([], rows);
  },
});

section("passes", {
  title: "Forwards of the round", round: true,
  there: rowsOf("forwards"),
  draw(i, { held }) {
    const found = new Map();
    for (const row of rowsOf("forwards")(held, i)) {
      const name = [...new Set([row.model, row.phase])].filter(Boolean).join(", ");
      const one = found.get(name) ?? { count: 0, rows: 0, ms: 0, by: row.implementation ?? "–" };
      found.set(name, { ...one, count: one.count + 1, rows: one.rows + (row.rows ?? 0), ms: one.ms + (row.wall_ms ?? 0) });
    }
    return plainTable(["model", "forwards", "rows", "ms", "attention"], [...found].map(([name, one]) => [name, one.count, one.rows, fixed(one.ms, 1), one.by]));
  },
});

// ---- a range of tokens against the rest

function selection(held, state) {
  const [a, b] = state.range, reach = state.reach();
  const of = (keep) => {
    const list = Array.from({ length: reach }, (_, i) => i).filter((i) => (i >= a && i <= b) === keep), spans = [...new Set(list.map((i) => held.span(i)))];
    const sum = (values) => values.reduce((all, value) => all + (value ?? 0), 0), series = (name) => list.map((i) => held.value(name, i));
    const bytes = mean(series(held.known("rounds.target_bytes") ? "rounds.target_bytes" : "rounds.cache_bytes"));
    return [list.length, spans.length, fixed(mean(series("tokens.entropy_raw_nats")), 2), percent(sum(spans.map(({ first }) => held.ofRound("accepted", first))), sum(spans.map(({ round }) => held.drafted(round)))),
      spans.length ? (list.length / spans.length).toFixed(2) : "–", shown(bytes, "bytes"), fixed(mean(series("rounds.bits_per_element")), 1),
      fixed(mean(spans.map(({ first }) => held.ofRound("total_ms", first))), 1)];
  };
  const names = ["tokens", "rounds", "entropy, mean (nats)", "acceptance rate", "tokens / round", "target cache, mean", "bits / element, mean", "ms / round"];
  const [inside, outside] = [of(true), of(false)], card = node("div", "wb-card"), head = node("h3", "", `Tokens ${a} to ${b}`);
  head.append(node("small", "", "Z zooms · Esc clears"));
  card.append(head, plainTable(["", "selection", "rest of the run"], names.map((name, k) => [name, inside[k], outside[k]])));
  card.classList.add("wb-selection");
  return card;
}

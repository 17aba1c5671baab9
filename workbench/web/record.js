// The rounds received so far, joined. `take(delta)` is the receiving side of the contract in data.py.
// Tokens go by index: 0 is the first new one; those of a prompt whose distributions are recorded come before, from `first` on.

const TABLES = ["tokens", "rounds", "drafts", "hypotheses", "canvas", "forwards", "decisions", "slots"];
const COMMITTED = new Set(["round", "drafted", "depth", "draft_ms", "target_ms", "accepted", "verify_ms", "emitted", "commit_ms", "context"]);

const FACTS = ["signals", "marks", "prompt_tokens", "max_new_tokens", "layers", "heads"];

function joined(before, after, since) {
  const kept = before.round ? before.round.findIndex((round) => round >= since) : 0;
  const n = kept < 0 ? before.round.length : kept, more = after.round?.length ?? 0;
  const columns = {};
  for (const name of new Set([...Object.keys(before), ...Object.keys(after)])) {
    const gap = (length) => new Array(length).fill(null);
    columns[name] = (before[name]?.slice(0, n) ?? gap(n)).concat(after[name] ?? gap(more));
  }
  return columns;
}

export function record() {
  const held = { id: null, rounds_recorded: 0, prompt: "", before: {}, names: {}, signals: {}, marks: [], phase: null, open: null };
  for (const table of TABLES) held[table] = {};
  const cache = new Map(); // `open`: the round whose cache is not known yet, as it is looked at phase by phase

  held.take = (delta) => {
    const whole = delta.since === 0;
    if (!whole && (delta.id !== held.id || delta.since > held.rounds_recorded)) return false;
    cache.clear();
    for (const table of TABLES) held[table] = whole ? (delta[table] ?? {}) : joined(held[table], delta[table] ?? {}, delta.since);
    held.names = whole ? delta.names : { ...held.names, ...delta.names };
    if (whole) {
      const plain = typeof delta.prompt === "string";
      Object.assign(held, { prompt: plain ? delta.prompt : "", before: plain ? {} : delta.prompt });
      for (const name of FACTS) held[name] = delta[name] ?? null;
    }
    for (const name of ["id", "rounds_recorded", "ended", "phase"]) held[name] = delta[name];
    return true;
  };

  const once = (name, make) => {
    if (!cache.has(name)) cache.set(name, make());
    return cache.get(name);
  };

  held.memo = once;
  held.count = () => held.tokens.round?.length ?? 0;
  Object.defineProperty(held, "first", { get: () => -(held.before.text?.length ?? 0) });
  held.empty = () => held.count() === held.first; // both are 0
  held.token = (name, i) => (i < 0 ? held.before[name]?.[i - held.first] : held.tokens[name]?.[i]) ?? null;
  const places = () => once("places", () => new Map((held.rounds.round ?? []).map((round, k) => [round, k])));
  held.inRound = (name, round) => {
    const late = round !== null && round === held.open && !COMMITTED.has(name);
    return late ? null : (held.rounds[name]?.[places().get(round)] ?? null);
  };
  held.ofRound = (name, i) => held.inRound(name, held.token("round", i));
  const column = (of) => [of.slice(0, of.indexOf(".")), of.slice(of.indexOf(".") + 1)]; // "table.column", which may hold dots
  held.known = (of) => Object.hasOwn(held[column(of)[0]], column(of)[1]);

  // A column over tokens; one of rounds is held over the tokens of the round.
  held.series = (of) => once(`${of} ${held.open}`, () => {
    const [table, name] = column(of);
    if (table === "tokens") return held.tokens[name] ?? new Array(held.count()).fill(null);
    return Array.from({ length: held.count() }, (_, i) => held.ofRound(name, i));
  });

  // The value of such a column at one token, in the prompt too.
  held.value = (of, i) => {
    const [table, name] = column(of);
    return table === "tokens" ? held.token(name, i) : held.ofRound(name, i);
  };

  // {round, first, last}: the tokens of every round that emitted some.
  held.spans = () => once("spans", () => {
    const spans = [];
    (held.tokens.round ?? []).forEach((round, i) => {
      if (spans.length && spans.at(-1).round === round) spans.at(-1).last = i;
      else spans.push({ round, first: i, last: i });
    });
    return spans;
  });
  const repeated = (span) => new Array(span.last - span.first + 1).fill(span);
  held.span = (i) => once("spanOf", () => held.spans().flatMap(repeated))[i];

  // The first token of the round that begins before (step < 0) or after token i; the ends where there is none.
  held.roundStart = (i, step) => {
    if (i < 0) return step > 0 && held.count() ? 0 : held.first;
    const spans = held.spans(), here = spans.indexOf(held.span(i));
    if (step > 0) return here + 1 < spans.length ? spans[here + 1].first : held.count() - 1;
    return i > spans[here].first ? spans[here].first : spans[Math.max(0, here - 1)].first;
  };

  // Rows of `drafts`, `hypotheses` or `forwards` that belong to a round, as objects.
  held.rows = (table, round) => once(`${table}/${round}`, () => {
    const found = once(`${table} by round`, () => {
      const lists = new Map();
      (held[table].round ?? []).forEach((of, k) => lists.has(of) ? lists.get(of).push(k) : lists.set(of, [k]));
      return lists;
    }).get(round) ?? [];
    return found.map((k) => Object.fromEntries(Object.keys(held[table]).map((name) => [name, held[table][name][k]])));
  });

  // Tokens that a round drafted, without those behind the end of the text: where it ended within a draft.
  held.drafted = (round) => {
    const emitted = held.inRound("emitted", round), cut = held.ended && round === held.rounds.round.at(-1) && emitted > 0 && emitted === held.inRound("accepted", round);
    return (held.inRound("drafted", round) ?? 0) - (cut ? held.rows("drafts", round).filter((row) => row.depth > emitted).length : 0);
  };

  // What a round drafted and did not keep: chains of nodes, each with the place it would have taken.
  held.refused = (span) => {
    const nodes = new Map(held.rows("drafts", span.round).map((row) => [row.node, row])), chains = new Map();
    for (const row of nodes.values()) {
      if (row.fate === "accepted" || row.fate == null) continue;
      let start = row;
      while (start.parent < start.node && nodes.has(start.parent) && nodes.get(start.parent).fate !== "accepted") start = nodes.get(start.parent);
      if (!chains.has(start.node)) chains.set(start.node, { at: span.first + (start.depth ?? 1) - 1, nodes: [] });
      chains.get(start.node).nodes.push(row);
    }
    return [...chains.values()];
  };

  // A draft as the text might go on: from node to node the one that was kept, where that is decided, or the first.
  held.chain = (round, decided = true) => {
    const rows = held.rows("drafts", round), chain = [];
    while (chain.length < rows.length) {
      const next = rows.filter((row) => (row.parent ?? row.node - 1) === (chain.at(-1)?.node ?? 0));
      if (!next.length) break;
      chain.push((decided && next.find((row) => row.fate === "accepted")) || next[0]);
    }
    return chain;
  };

  held.text = (token) => held.names[token] ?? `id ${token}`;
  return held;
}

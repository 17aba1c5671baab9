// The rounds received so far, joined. `take(delta)` is the receiving side of the contract in data.py.
// Tokens go by index: 0 is the first new one; those of a prompt whose distributions are recorded come before, from `first` on.

const TABLES = ["tokens", "rounds", "drafts", "hypotheses", "forwards"];

export const KINDS = {
  drafted: "drafted and kept", bonus: "after a draft kept whole", residual: "in place of a refused draft",
};

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
  const held = { id: null, rounds_recorded: 0, prompt: "", before: {}, names: {}, signals: {} };
  held.colours = { source: {}, fate: {} };
  for (const table of TABLES) held[table] = {};
  const cache = new Map();

  held.take = (delta) => {
    const whole = delta.since === 0;
    if (!whole && (delta.id !== held.id || delta.since > held.rounds_recorded)) return false;
    cache.clear();
    for (const table of TABLES) held[table] = whole ? delta[table] : joined(held[table], delta[table], delta.since);
    held.names = whole ? delta.names : { ...held.names, ...delta.names };
    if (whole) {
      const plain = typeof delta.prompt === "string";
      Object.assign(held, { prompt: plain ? delta.prompt : "", before: plain ? {} : delta.prompt });
      Object.assign(held, { signals: delta.signals, colours: delta.colours });
    } else held.colours = { ...held.colours, source: { ...delta.colours.source, ...held.colours.source } };
    for (const name of ["id", "rounds_recorded", "ended"]) held[name] = delta[name];
    return true;
  };

  const once = (name, make) => {
    if (!cache.has(name)) cache.set(name, make());
    return cache.get(name);
  };

  held.count = () => held.tokens.round?.length ?? 0;
  Object.defineProperty(held, "first", { get: () => -(held.before.text?.length ?? 0) });
  held.empty = () => held.count() === held.first; // both are 0
  held.token = (name, i) => (i < 0 ? held.before[name]?.[i - held.first] : held.tokens[name]?.[i]) ?? null;
  const places = () => once("places", () => new Map((held.rounds.round ?? []).map((round, k) => [round, k])));
  held.ofRound = (name, i) => held.rounds[name]?.[places().get(held.token("round", i))] ?? null;
  held.known = (of) => of.split(".")[1] in held[of.split(".")[0]];

  // A column over tokens; one of rounds is held over the tokens of the round.
  held.series = (of) => once(of, () => {
    const [table, name] = of.split("."), column = held[table][name];
    if (table === "tokens") return column ?? new Array(held.count()).fill(null);
    return Array.from({ length: held.count() }, (_, i) => held.ofRound(name, i));
  });

  // The value of such a column at one token, in the prompt too.
  held.value = (of, i) => {
    const [table, name] = of.split(".");
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

  // What a round drafted and did not keep: chains of nodes, each with the place it would have taken.
  held.refused = (span) => {
    const nodes = new Map(held.rows("drafts", span.round).map((row) => [row.node, row])), chains = new Map();
    for (const row of nodes.values()) {
      if (row.fate === "accepted" || row.fate === null) continue;
      let start = row;
      while (nodes.has(start.parent) && nodes.get(start.parent).fate !== "accepted") start = nodes.get(start.parent);
      if (!chains.has(start.node)) chains.set(start.node, { at: span.first + (start.depth ?? 1) - 1, nodes: [] });
      chains.get(start.node).nodes.push(row);
    }
    return [...chains.values()];
  };

  held.text = (token) => held.names[token] ?? `id ${token}`;
  return held;
}

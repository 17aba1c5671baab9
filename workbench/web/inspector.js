import { button, fateOf, node, shown, visible } from "./common.js";

// One token under the glass, and the numbers of all of them as a table for whoever cannot see the chart.

const FACTS = [
  ["p_raw", "p, raw distribution", ""], ["p_sampled", "p, sampled distribution", ""], ["rank", "rank", ""],
  ["surprisal_nats", "surprisal", "nats"], ["entropy_raw_nats", "entropy, raw", "nats"],
  ["entropy_sampled_nats", "entropy, sampled", "nats"], ["margin", "margin", ""],
  ["keep_size", "tokens left", ""], ["cut_by", "cut by", ""], ["decision", "decision", ""],
];
const OF_ROUND = [
  ["cache_bytes", "cache", "bytes"], ["host_bytes", "on the host", "bytes"], ["bits_per_element", "bits / element", ""],
  ["total_ms", "round took", "ms"],
];
const COLUMNS = [
  ["index", "index"], ["tokens.text", "token"], ["tokens.round", "round"], ["tokens.source", "source"],
  ["tokens.entropy_raw_nats", "entropy raw (nats)"], ["tokens.entropy_sampled_nats", "entropy sampled (nats)"],
  ["tokens.surprisal_nats", "surprisal (nats)"], ["tokens.rank", "rank"], ["tokens.p_raw", "p"],
  ["rounds.drafted", "drafted in round"], ["rounds.accepted", "accepted in round"],
  ["rounds.cache_bytes", "cache (bytes)"], ["rounds.bits_per_element", "bits / element"],
];
const PAGE = 200; // rows of the data table drawn at a time

export function inspector(held) {
  const element = node("section", "wb-inspector");
  element.setAttribute("aria-label", "the token at the cursor");

  function show(i) {
    if (i === null) return element.replaceChildren(node("p", "wb-empty", "No token yet."));
    const round = held.token("round", i), nodes = held.rows("drafts", round);
    const both = distributions(i);
    if (nodes.length) both.append(drafts(round, nodes));
    element.replaceChildren(head(i, round), facts(i), both);
  }

  function head(i, round) {
    const line = node("p", "wb-head"), mode = i < 0 ? "the prompt" : held.ofRound("mode", i);
    const passes = new Map();
    for (const row of held.rows("forwards", round)) {
      const name = `${row.model ?? row.phase} (${row.phase}, ${row.implementation ?? "–"})`;
      const seen = passes.get(name) ?? { count: 0, rows: 0 };
      passes.set(name, { count: seen.count + 1, rows: seen.rows + (row.rows ?? 0) });
    }
    const forwards = [...passes].map(([name, { count, rows }]) => `${count} × ${name}, ${rows} rows`).join("; ");
    const place = ` token ${i} at position ${held.token("position", i)}, round ${round}`;
    line.append(node("code", "wb-word", visible(held.token("text", i) ?? "", true)), place, mode ? ` (${mode}), from ` : ", from ");
    line.append(node("b", "", held.token("source", i) ?? "unknown"), `, id ${held.token("token_id", i)}`);
    if (forwards) line.append(node("br"), node("small", "", `forwards of the round: ${forwards}`));
    return line;
  }

  function facts(i) {
    const list = node("dl", "wb-facts");
    const add = (value, label, unit) => {
      if (value === null) return;
      const item = node("div");
      item.append(node("dt", "", label), node("dd", "", shown(value, unit)));
      item.title = WORDS[label] ?? "";
      list.append(item);
    };
    for (const [name, label, unit] of FACTS) add(held.token(name, i), label, unit);
    for (const [name, label, unit] of OF_ROUND) {
      const value = held.ofRound(name, i);
      if (name !== "host_bytes" || value) add(value, label, unit);
    }
    return list;
  }

  function distributions(i) {
    const both = node("div", "wb-distributions"), taken = held.token("token_id", i);
    for (const [name, title] of [["topk_raw", "raw distribution"], ["topk_sampled", "distribution sampled from"]]) {
      const distribution = held.token(name, i);
      if (!distribution) continue;
      const table = node("table", "wb-distribution"), kept = name === "topk_raw" ? held.token("topk_sampled", i)?.[0] : null;
      table.append(node("caption", "", title));
      distribution[0].forEach((token, k) => {
        const cut = kept && !kept.includes(token), row = node("tr", token === taken ? "wb-taken" : cut ? "wb-cut" : "");
        const bar = node("span", "wb-p"), cell = node("td", "wb-share"), word = node("td");
        bar.style.width = `${(100 * (distribution[1][k] ?? 0)).toFixed(1)}%`;
        cell.append(bar);
        word.append(node("code", "", visible(held.text(token), true)), token === taken ? " ✓" : "");
        row.append(word, cell, node("td", "wb-number", shown(distribution[1][k])));
        table.append(row);
      });
      both.append(table);
    }
    if (held.token("cut_by", i) === "greedy") both.append(node("p", "wb-empty", "temperature 0 takes the first"));
    return both;
  }

  function drafts(round, nodes) {
    const table = node("table", "wb-drafts"), top = node("tr");
    table.append(node("caption", "", `drafted in round ${round} by ${nodes[0].drafter ?? "unknown"}`));
    for (const name of ["node", "after", "token", "q", "p", "fate"]) {
      const cell = node("th", "", name);
      cell.scope = "col";
      top.append(cell);
    }
    table.append(top);
    for (const row of nodes) {
      const line = node("tr"), word = node("td"), fate = node("td"), dot = node("span", "wb-dot");
      dot.style.setProperty("--ramp", held.colours.fate[row.fate] ?? "#8a8a8a");
      word.append(node("code", "", visible(row.text ?? "", true)));
      fate.append(dot, fateOf(row));
      const numbers = [row.q, row.p].map((value) => node("td", "wb-number", shown(value)));
      line.append(node("td", "", row.node), node("td", "", row.parent ?? "–"), word, ...numbers, fate);
      table.append(line);
    }
    return table;
  }

  return { element, show };
}

export function dataTable(held, { cursor }) {
  const element = node("details", "wb-table"), area = node("div", "wb-scroll");
  element.append(node("summary", "", "Data table"), area);
  let from = 0;

  function fill() {
    const n = held.count(), start = held.first, to = Math.min(n, from + PAGE);
    const table = node("table"), top = node("tr"), bar = node("p", "wb-bar");
    table.append(node("caption", "", held.empty() ? "no tokens yet" : `tokens ${from} to ${to - 1} of ${n}`));
    const shownColumns = COLUMNS.filter(([of]) => of === "index" || held.known(of));
    for (const [, label] of shownColumns) {
      const cell = node("th", "", label);
      cell.scope = "col";
      top.append(cell);
    }
    table.append(top);
    for (let i = from; i < to; i += 1) {
      const row = node("tr");
      for (const [of] of shownColumns) {
        const value = of === "index" ? i : held.value(of, i);
        row.append(node("td", "", of === "tokens.text" ? visible(value ?? "", true) : shown(value)));
      }
      table.append(row);
    }
    const turn = (step) => () => {
      from = Math.max(start, Math.min(from + step, start + PAGE * Math.floor((n - start - 1) / PAGE)));
      fill();
    };
    const pages = [button("earlier", "earlier tokens", turn(-PAGE)), button("later", "later tokens", turn(PAGE))];
    if (n - start > PAGE) bar.append(...pages);
    area.replaceChildren(bar, table);
  }

  element.addEventListener("toggle", () => {
    from = held.first + PAGE * Math.floor(((cursor() ?? 0) - held.first) / PAGE);
    if (element.open) fill();
  });
  return { element, draw: () => element.open && fill() };
}

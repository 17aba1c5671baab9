import { button, heads, node, shown, word } from "./common.js";

// The numbers of all tokens, for whoever cannot see the chart.

const COLUMNS = [
  ["index", "index"], ["tokens.text", "token"], ["tokens.round", "round"], ["tokens.source", "source"],
  ["tokens.entropy_raw_nats", "entropy (nats)"], ["tokens.entropy_sampled_nats", "entropy, sampled (nats)"],
  ["tokens.surprisal_nats", "surprisal (nats)"], ["tokens.rank", "rank"], ["tokens.p_raw", "p"],
  ["rounds.drafted", "drafted in round"], ["rounds.accepted", "accepted in round"],
  ["rounds.cache_bytes", "cache (bytes)"], ["rounds.bits_per_element", "bits / element"],
];
const PAGE = 200; // rows of the data table drawn at a time

export function dataTable(held, state) {
  const element = node("details", "wb-table"), area = node("div", "wb-scroll");
  element.append(node("summary", "", "Data table"), area);
  let from = 0;

  function fill() {
    const n = state.reach(), start = held.first, to = Math.min(n, from + PAGE);
    const table = node("table"), bar = node("p", "wb-pages");
    table.append(node("caption", "", held.empty() ? "no tokens yet" : `tokens ${from} to ${to - 1} of ${n}`));
    const columns = COLUMNS.filter(([of]) => of === "index" || held.known(of));
    table.append(heads(columns.map(([, label]) => label)));
    for (let i = from; i < to; i += 1) {
      const row = node("tr");
      for (const [of] of columns) {
        const value = of === "index" ? i : held.value(of, i);
        row.append(node("td", "", of === "tokens.text" ? word(value ?? "") : shown(value)));
      }
      table.append(row);
    }
    const turn = (step) => () => {
      from = Math.max(start, Math.min(from + step, start + PAGE * Math.floor((n - start - 1) / PAGE)));
      fill();
    };
    if (n - start > PAGE) bar.append(button("earlier", "earlier tokens", turn(-PAGE)), button("later", "later tokens", turn(PAGE)));
    area.replaceChildren(bar, table);
  }

  element.addEventListener("toggle", () => {
    from = held.first + PAGE * Math.floor(((state.at ?? 0) - held.first) / PAGE);
    if (element.open) fill();
  });
  return { element, draw: () => element.open && fill() };
}

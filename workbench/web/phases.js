import { FATES, count, fixed, heads, kindOf, node, short, shown, sign, word } from "./common.js";
import { TIMED, phasesOf } from "./transport.js";
import { tree } from "./tree.js";

// A round phase by phase: one table that fills in.

export function opened(held, state) {
  const { round, at } = state.phase, rows = held.rows("drafts", round), k = held.rounds.round.indexOf(round), of = (name) => held.rounds[name]?.[k] ?? null;
  const card = node("div", "wb-card"), head = node("h3", "", `Round ${round}, phase ${at + 1} of 5`), list = node("table", "wb-fills");
  head.append(node("small", "", "N: next phase"));
  const forwards = held.rows("forwards", round), target = forwards.filter((row) => row.model !== "draft" && row.phase !== "draft"), read = target.reduce((all, row) => all + (row.kv_read_bytes ?? 0), 0);
  const span = held.spans().find((one) => one.round === round), drafted = of("drafted");
  const told = [
    drafted ? `${rows[0]?.drafter?.replaceAll("_", " ") ?? "the drafter"} proposed ${count(drafted, "token")}, ${of("depth") ?? "–"} deep` : "nothing was drafted",
    `${count(target.length, "target forward")} over ${count(target.reduce((all, row) => all + (row.rows ?? 0), 0), "row")}${read ? `, ${shown(read, "bytes")} of KV read` : ""}`,
    drafted ? `${of("accepted") ?? "–"} of ${drafted} accepted` : "the token comes from the target's own distribution",
    span ? `${count(span.last - span.first + 1, "token")} committed, the last one ${FATES[kindOf(held.token("kind", span.last))][2]}` : "no token committed",
    `target ${shown(of("target_bytes") ?? of("cache_bytes"), "bytes")} after maintenance`,
  ];
  phasesOf(held, k).forEach((name, phase) => {
    const line = node("tr", phase > at ? "wb-later" : phase === at ? "wb-now" : ""), time = of(TIMED[phase]);
    for (const text of [phase === at ? "▸" : phase < at ? "✓" : "·", name, phase <= at ? told[phase] : "not yet", phase <= at && time !== null ? `${time.toFixed(1)} ms` : ""]) line.append(node("td", "", text));
    list.append(line);
  });
  card.append(head, list);
  const parts = [card];
  if (rows.length) {
    const tested = held.known("drafts.u");
    const test = (row) => (at < 2 ? "?" : row.u == null ? "–" : `${fixed(row.u, 2)} ${row.fate === "accepted" ? "≤" : ">"} ${row.q ? fixed(Math.min(1, (row.p ?? 0) / row.q), 2) : "–"}`);
    const table = node("table", "wb-plain wb-drafted");
    table.append(heads(["depth", "token", "q", "p", ...(tested ? ["u ≤ p / q"] : []), "fate"]));
    for (const row of rows.slice(0, 24)) {
      const line = node("tr"), name = at < 2 ? "pending" : (row.fate ?? "pending"), token = node("td"), fate = node("td");
      token.append(node("code", "", short(word(row.text ?? ""), 12)));
      fate.append(sign(name), ` ${at < 2 ? "open" : FATES[name]?.[1] === "pending" ? "never reached" : (FATES[name]?.[1] ?? name)}`);
      line.append(node("td", "", row.depth), token, node("td", "", fixed(row.q, 2)), node("td", "", at < 1 ? "?" : fixed(row.p, 2)), ...(tested ? [node("td", "", test(row))] : []), fate);
      table.append(line);
    }
    const title = node("h3", "", "Draft");
    title.append(node("small", "", "fills in as the phases pass"));
    parts.push(title, table, node("h3", "", "Tree of the round"), tree(held, round, at));
  }
  if (at < 2 && rows.length) parts.push(node("p", "wb-note", "Which of these stand is not decided yet. Text, tracks and tree stop where the run has got to."));
  return parts;
}

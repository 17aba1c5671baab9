import { clamp, cross, drawn, fateOf, kindOf, label, percent, px, word } from "../common.js";
import { register } from "../tracks.js";

// Every round's draft as cells over the tokens it proposed, in the first free row; below, what was committed.

const THIN = 3; // px a token, under which rounds are bars
const square = (x, y, w, h) => `M${px(x)},${px(y)}h${px(w)}v${px(h)}h${px(-w)}z`;

function sums(held, end) {
  let drafted = 0, accepted = 0, rounds = 0, tokens = 0;
  for (const { round, first, last } of held.spans()) {
    if (last >= end) break;
    drafted += held.drafted(round);
    accepted += held.ofRound("accepted", first) ?? 0;
    rounds += 1;
    tokens += last - first + 1;
  }
  return { drafted, accepted, rounds, tokens };
}

register("drafts", {
  title: "Drafts", hue: "accepted",
  tip: "Drafted tokens over the places they proposed: accepted, rejected, never reached. Acceptance rate = accepted / drafted, without what was drafted after the end",
  there: (held) => (held.rounds.drafted ?? []).some((count) => count > 0),
  draw(group, c) {
    const { held, cell } = c, base = c.height - 13, gap = cell > 5 ? 1 : 0.4, open = c.state.phase, named = cell > 36;
    const rows = [], placed = [];
    for (const { round, first } of held.spans()) if (first < c.end) placed.push({ round, first });
    if (open && open.at < 3) placed.push({ round: open.round, first: c.end });
    for (const one of placed) {
      one.chain = held.chain(one.round, !(open && one.round === open.round && open.at < 2));
      if (open && one.round !== open.round) one.chain = one.chain.slice(0, c.end - one.first); // beyond it stands what is pending
      one.row = rows.findIndex((free) => free <= one.first);
      if (one.row < 0) one.row = rows.push(0) - 1;
      rows[one.row] = one.first + one.chain.length;
    }
    const tall = clamp((base - 4 - c.pad) / Math.max(rows.length, 1), 4, 17);
    const paths = { accepted: "", rejected: "", pending: "" }, crosses = [];
    for (const { round, first, chain, row } of placed) {
      if (first > c.to || first + chain.length < c.from) continue;
      chain.forEach((one, d) => {
        const i = first + d;
        if (i < c.from - 1 || i >= c.to) return;
        const hidden = open && round === open.round && open.at < 2, name = hidden ? "pending" : fateOf(one)[1];
        const kind = name === "accepted" || name === "rejected" ? name : "pending";
        const x = c.x(i) + gap / 2, y = base - 3 - (row + 1) * tall, w = Math.max(cell - gap, 0.5), h = tall - 2;
        paths[kind] += kind === "accepted" ? square(x, y, w, h) : square(x + 0.5, y + 0.5, Math.max(w - 1, 0.3), h - 1);
        if (named && h > 11) {
          group.append(label(x + w / 2, y + h / 2 + 3.5, word(one.text).slice(0, Math.floor(w / 7.5)), `wb-cell wb-middle wb-is-${kind}`));
        } else if (kind === "rejected" && w > THIN && h > 4) {
          crosses.push(cross(x + w / 2, y + h / 2, Math.min(w, h) / 2 - 1.6));
        }
      });
    }
    const cells = [
      drawn("path", { fill: "var(--wb-accepted)", "fill-opacity": named ? 0.2 : 1, stroke: "var(--wb-accepted)", "stroke-width": named ? 1 : 0, d: paths.accepted }),
      drawn("path", { fill: "var(--wb-rejected)", "fill-opacity": 0.16, stroke: "var(--wb-rejected)", "stroke-width": Math.min(1, cell / 4), d: paths.rejected }),
      drawn("path", { fill: "none", stroke: "var(--wb-pending)", "stroke-dasharray": "2 1.5", "stroke-width": Math.min(1, cell / 4), d: paths.pending }),
      drawn("path", { stroke: "var(--wb-rejected)", "stroke-width": 1.2, d: crosses.join("") }),
    ];
    group.prepend(...cells);
    const kept = { accepted: "", resampled: "", bonus: "", plain: "" };
    for (let i = Math.max(0, Math.floor(c.from)); i < Math.min(c.end, c.to); i += 1) {
      const kind = kindOf(held.token("kind", i)), x = c.x(i) + gap / 2, w = cell - gap, mid = x + w / 2, arm = Math.min(4.5, w / 2);
      if (kind === "resampled") kept.resampled += `M${px(mid - arm)},${base + 8}l${arm},-8l${arm},8z`;
      else if (kind === "bonus") kept.bonus += `M${px(mid)},${base}v8M${px(mid - arm)},${base + 4}h${2 * arm}`;
      else kept[kind] += square(x, base, Math.max(w, 0.4), 8);
    }
    group.append(
      drawn("path", { fill: "var(--wb-accepted)", opacity: 0.8, d: kept.accepted }),
      drawn("path", { fill: "var(--wb-pending)", opacity: 0.8, d: kept.plain }),
      drawn("path", { fill: "var(--wb-resampled)", d: kept.resampled }),
      drawn("path", { stroke: "var(--wb-bonus)", "stroke-width": Math.min(2.4, cell / 2), d: kept.bonus }),
    );
  },
  value(held, i) {
    const drafted = held.ofRound("drafted", i);
    return drafted ? [`${held.ofRound("accepted", i) ?? "?"} of ${drafted}`, `accepted in round ${held.token("round", i)}`] : ["none"];
  },
  about(held, end) {
    const { drafted, accepted, rounds, tokens } = sums(held, end);
    return [`${percent(accepted, drafted)} accepted`, rounds ? `${(tokens / rounds).toFixed(2)} tokens / round` : ""];
  },
});

import { FATES, drawn, fateOf, fixed, kindOf, label, node, short, shown, word } from "./common.js";

// The draft of a round as a tree: nodes by depth and branch; before `verify` no p, before `accept` no fate is shown.

export function tree(held, round, phase) {
  const rows = held.rows("drafts", round), span = held.spans().find((one) => one.round === round), wide = 344;
  const byNode = new Map(rows.map((row) => [row.node, row]));
  let most = 0;
  for (const row of rows) { // a first child goes on in its parent's line, others open a new one
    const siblings = rows.filter((one) => (one.parent ?? 0) === (row.parent ?? 0));
    row.line = siblings[0] === row ? (byNode.get(row.parent)?.line ?? 0) : (most += 1);
  }
  const end = span && phase >= 3 ? kindOf(held.token("kind", span.last)) : "plain", replaced = end === "resampled" || end === "bonus";
  const accepted = rows.filter((row) => row.fate === "accepted").sort((a, b) => a.depth - b.depth).at(-1);
  const depth = Math.max(...rows.map((row) => row.depth ?? 1), replaced ? (accepted?.depth ?? 0) + 1 : 1), step = Math.min(74, (wide - 62) / depth);
  const last = replaced && (end === "resampled" || accepted?.depth !== depth) && rows.some((row) => row.depth === (accepted?.depth ?? 0) + 1) ? most + 1 : accepted?.line ?? 0;
  const shownLines = Math.min(Math.max(most, replaced ? last : 0) + 1, 7), roomy = shownLines <= 3, tall = roomy ? 58 : 34, height = (roomy ? 6 : 24) + shownLines * tall;
  const chart = drawn("svg", { class: "wb-tree", viewBox: `0 0 ${wide} ${height}`, role: "img", "aria-label": `draft tree of round ${round}, ${rows.length} nodes` });
  const at = (row) => [30 + (row.depth ?? 1) * step, 30 + row.line * tall], root = [30, 30];
  const curve = ([px, py], [x, y], attributes) => drawn("path", { d: `M${px},${py}C${px + step / 2},${py} ${x - step / 2},${y} ${x},${y}`, fill: "none", ...attributes });
  const marks = [], name = (row) => (phase < 2 ? "pending" : (row.fate ?? "pending"));
  for (const row of rows) {
    if (row.line >= shownLines) continue;
    const parent = byNode.has(row.parent) ? at(byNode.get(row.parent)) : root, [x, y] = at(row), hue = FATES[name(row)]?.[1] ?? "pending", kept = hue === "accepted";
    chart.append(curve(parent, [x, y], { stroke: `var(--wb-${kept ? "accepted" : "edge"})`, "stroke-width": kept ? 3 : 1.2 }));
    marks.push(glyph(hue, FATES[name(row)]?.[0] ?? "○", x, y));
    if (step < 15) continue;
    const text = label(x, y - 11, short(word(row.text ?? ""), Math.floor(step / 6.7)), "wb-t");
    text.append(drawn("title", {}, `${word(row.text ?? "")}${row.p == null || phase < 1 ? "" : `, p ${shown(row.p)}`}${row.q == null ? "" : `, q ${shown(row.q)}`}, ${phase < 2 ? "open" : fateOf(row)[2]}`));
    marks.push(text);
    if (roomy && step > 30) {
      marks.push(label(x, y + 18, phase < 1 ? "p ?" : row.p == null ? "" : `p ${fixed(row.p, 2)}`));
      marks.push(label(x, y + 29, row.q == null ? "" : `q ${fixed(row.q, 2)}`));
    }
  }
  if (replaced && last < shownLines) {
    const from = accepted ? at(accepted) : root, place = [30 + ((accepted?.depth ?? 0) + 1) * step, 30 + last * tall], [x, y] = place;
    chart.append(curve(from, place, { stroke: `var(--wb-${end})`, "stroke-width": 2, "stroke-dasharray": "4 2" }));
    marks.push(glyph(end, FATES[end][0], ...place));
    marks.push(label(x, y - 11, short(word(held.token("text", span.last)), Math.max(3, Math.floor(step / 6.7))), "wb-t"));
    if (roomy && step > 30) marks.push(label(x, y + 18, end));
  }
  chart.append(drawn("circle", { cx: 30, cy: 30, r: 5, fill: "var(--wb-ink)" }), ...marks);
  if (span?.first > 0) chart.append(label(30, 16, short(word(held.token("text", span.first - 1)), 7), "wb-t"));
  const hidden = Math.max(0, most + 1 - shownLines), whole = node("div");
  whole.append(chart, ...(hidden ? [node("p", "wb-note", `+ ${hidden} more branches, in the draft tree of Figures`)] : []));
  return whole;
}

function glyph(hue, text, x, y) {
  const colour = `var(--wb-${hue})`;
  if (hue === "accepted") return drawn("rect", { x: x - 6, y: y - 6, width: 12, height: 12, rx: 2, fill: colour });
  if (hue === "resampled") return drawn("path", { d: `M${x - 7},${y + 6}L${x},${y - 7}L${x + 7},${y + 6}z`, fill: colour });
  if (hue === "bonus") return drawn("path", { d: `M${x},${y - 7}v14M${x - 7},${y}h14`, stroke: colour, "stroke-width": 4 });
  if (hue === "pending" && text === "○") return drawn("circle", { cx: x, cy: y, r: 6, fill: "var(--wb-panel)", stroke: colour, "stroke-width": 1.5 });
  const box = drawn("g");
  box.append(drawn("rect", { x: x - 6, y: y - 6, width: 12, height: 12, rx: 2, fill: "var(--wb-panel)", stroke: colour, ...(hue === "pending" ? { "stroke-dasharray": "2 2" } : {}) }));
  if (hue === "rejected") box.append(drawn("path", { d: `M${x - 3},${y - 3}l6,6m0,-6l-6,6`, stroke: colour, "stroke-width": 1.6 }));
  return box;
}

import { curve, drawn, fixed, mean, px } from "../common.js";
import { labelled, register } from "../tracks.js";

// Entropy of the next-token distribution, of the sampled one where it differs, and where a controller acted.

const RAW = "tokens.entropy_raw_nats", SAMPLED = "tokens.entropy_sampled_nats";
const varies = (values) => values.some((value) => value !== null && value !== 0);

register("entropy", {
  title: "Entropy", hue: "entropy", over: true,
  tip: "Uncertainty of the next-token distribution, before temperature and cuts: −Σ p log p in nats (entropy_raw_nats)",
  there: (held) => held.known(RAW),
  draw(group, c) {
    const raw = c.held.series(RAW), sampled = c.held.series(SAMPLED), before = c.held.before.entropy_raw_nats ?? [];
    const top = Math.max(1, ...raw, ...sampled, ...before) * 1.08;
    const up = c.scale(0, top);
    c.ticks(labelled(top, "nats"), up);
    group.append(
      drawn("path", { fill: "var(--wb-entropy)", opacity: 0.16, d: c.steps(raw, up, true) }),
      curve("entropy", c.steps(raw, up)),
    );
    if (varies(sampled)) {
      group.append(curve("entropy", c.steps(sampled, up), "wb-thin"));
    }
    if (c.held.first < 0) group.append(curve("entropy", c.past(RAW, up), "wb-past"));
    let acted = "";
    for (const { round, first } of c.held.spans()) {
      if (first >= c.end || first < c.from - 1 || first > c.to || !c.held.rows("decisions", round).length) continue;
      acted += `M${px(c.x(first) + c.cell / 2)},${px(up(raw[first] ?? 0) - 8)}l3,3l-3,3l-3,-3z`;
    }
    if (acted) group.append(drawn("path", { fill: "var(--wb-ink)", d: acted }));
  },
  value(held, i) {
    const sampled = held.value(SAMPLED, i);
    return [`${fixed(held.value(RAW, i), 2)} nats`, sampled ? `sampled ${fixed(sampled, 2)}` : ""];
  },
  about: (held, end) => [`mean ${fixed(mean(held.series(RAW).slice(0, end)), 2)}`, ...(held.decisions.round?.length ? ["◆ a controller acted"] : [])],
});

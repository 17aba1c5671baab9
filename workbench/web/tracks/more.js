import { clamp, cross, curve, drawn, px, shown } from "../common.js";
import { labelled, lineTrack, register } from "../tracks.js";

// Time, surprisal, the share a constraint leaves, layers that ran, what attention read, hypotheses.

const TIMES = [["draft_ms", "pending"], ["target_ms", "ink"], ["verify_ms", "accepted"], ["commit_ms", "bonus"], ["cache_ms", "cache"]];

register("time", {
  title: "Time", hue: "ink", height: 0.8, closed: true,
  tip: "Time of each round by phase: draft, target forward, verification, commit, cache maintenance (ms)",
  there: (held) => held.known("rounds.total_ms"),
  draw(group, c) {
    const total = c.held.series("rounds.total_ms"), up = c.scale(0, Math.max(1, ...total.slice(1)) * 1.05);
    c.ticks(labelled(Math.max(1, ...total.slice(1)), "ms"), up);
    let below = new Array(c.held.count()).fill(0);
    const parts = TIMES.map(([name, hue]) => {
      const above = c.held.series(`rounds.${name}`).map((value, i) => below[i] + (value ?? 0));
      const part = drawn("path", { d: `${c.steps(above, up, true)}`, fill: `var(--wb-${hue})`, "fill-opacity": 0.8 });
      below = above;
      return part;
    });
    group.append(...parts.reverse());
  },
  value: (held, i) => [shown(held.ofRound("total_ms", i), "ms"), "in its round"],
  about: () => ["draft, target, verify, commit, cache"],
});

register("surprisal", lineTrack({
  title: "Surprisal", hue: "entropy", of: "tokens.surprisal_nats", unit: "nats",
  tip: "−log p of the token under the next-token distribution (surprisal_nats)",
}));
register("allowed", lineTrack({
  title: "Allowed", hue: "entropy", of: "tokens.allowed_mass", high: 1, closed: false,
  tip: "Share of the next-token distribution that the constraint leaves (allowed_mass)",
}));
register("layers", lineTrack({
  title: "Layers", hue: "ink", of: "tokens.layers_run", closed: false, tip: "Layers that ran for the token (layers_run)",
}));

const READ = "rounds.units_read", HOLD = "rounds.units_held";
register("reads", {
  title: "Reads", hue: "cache", height: 0.7,
  tip: "Pages or slots that attention read in each round, all layers together; dashed: those there were; rings: some came from another tier",
  there: (held) => held.known(READ),
  draw(group, c) {
    const read = c.held.series(READ), hold = c.held.series(HOLD), fetched = c.held.series("rounds.bytes_fetched"), top = Math.max(1, ...read, ...hold) * 1.15;
    const up = c.scale(0, top);
    let rings = "";
    for (let i = Math.max(0, Math.floor(c.from)); i < Math.min(c.end, c.to); i += 1) {
      if (fetched[i]) rings += `M${px(c.x(i) + c.cell / 2 - 3)},${px(up(read[i] ?? 0) - 6)}a3,3 0 1 0 6,0a3,3 0 1 0 -6,0`;
    }
    c.ticks(labelled(top), up);
    group.append(
      drawn("path", { fill: "var(--wb-cache)", "fill-opacity": 0.8, d: c.steps(read, up, true) }),
      curve("ink", c.steps(hold, up), "wb-full"),
      curve("cache", rings, "wb-rings"),
    );
  },
  value(held, i) {
    const fetched = held.ofRound("bytes_fetched", i);
    return [shown(held.ofRound("units_read", i)), `of ${shown(held.ofRound("units_held", i))} read`, fetched && `${shown(fetched, "bytes")} fetched`];
  },
  about: () => [],
});

register("hypotheses", {
  title: "Hypotheses", hue: "ink", height: 0.9,
  tip: "Hypotheses of every round over the last token of each, by score, the best on top; those that were dropped end in a cross",
  there: (held) => Boolean(held.hypotheses.round?.length),
  draw(group, c) {
    const { held } = c, kept = [], gone = [];
    const scores = (held.hypotheses.score ?? held.hypotheses.logp ?? [0]).filter((score) => score !== null).sort((a, b) => a - b);
    const low = scores[Math.floor(scores.length / 10)], high = scores.at(-1); // the lowest tenth would flatten all others
    const scale = c.scale(low, high + 1e-9), up = (score) => scale(clamp(score, low, high)), m = clamp(c.cell / 3, 1, 3);
    const { phase } = c.state, stop = phase ? phase.round + (phase.at < 4 ? 0 : 1) : Infinity;
    held.hypotheses.round.forEach((round, k) => {
      const of = (name) => held.hypotheses[name]?.[k] ?? null, at = (of("depth") ?? 0) - 1;
      if (round >= stop || at < c.from - 1 || at >= Math.min(c.end, c.to)) return;
      const y = up(of("score") ?? of("logp") ?? 0), x = c.x(Math.max(at, 0));
      kept.push(`M${px(x)},${px(y)}h${px(c.cell)}`);
      if (of("fate") === "pruned") gone.push(cross(x + c.cell / 2, y, m));
    });
    group.append(
      drawn("path", { class: "wb-curve", stroke: "var(--wb-ink)", opacity: 0.55, d: kept.join("") }),
      curve("rejected", gone.join("")),
    );
  },
  value(held, i) {
    const rows = held.rows("hypotheses", held.token("round", i));
    return [`${rows.filter((row) => row.fate !== "pruned").length} live`, `of ${rows.length}`];
  },
  about: () => [],
});

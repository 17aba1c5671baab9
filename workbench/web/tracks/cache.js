import { byteUnit, curve, drawn, label, shown } from "../common.js";
import { labelled, register } from "../tracks.js";

// Bytes of keys and values: the target's filled, other models' hatched on top, and the target's full cache dashed.

const of = (held, name) => held.series(`rounds.${name}`);

register("cache", {
  title: "KV cache", hue: "cache", over: true,
  tip: "Bytes of keys and values after each round, counted from the storages with all metadata; dashed: the target's cache if all of it were kept",
  there: (held) => held.known("rounds.cache_bytes"),
  draw(group, c) {
    const { held } = c, zero = new Array(held.count()).fill(0);
    const target = held.known("rounds.target_bytes") ? of(held, "target_bytes") : of(held, "cache_bytes");
    const others = held.known("rounds.others_bytes") ? of(held, "others_bytes") : zero;
    const free = held.known("rounds.free_bytes") ? of(held, "free_bytes") : zero;
    const host = of(held, "host_bytes"), full = held.known("rounds.target_full_bytes") ? of(held, "target_full_bytes") : zero;
    const both = target.map((value, i) => (value ?? 0) + (others[i] ?? 0)), all = both.map((value, i) => value + (free[i] ?? 0));
    const high = Math.max(1, ...all, ...full) * 1.1, unit = byteUnit(high), up = c.scale(0, high);
    c.ticks(labelled(high / unit.scale, unit.name).map(([value, text]) => [value * unit.scale, text]), up);
    const area = (values, more) => group.append(drawn("path", { d: c.steps(values, up, true), ...more }));
    if (Math.max(0, ...free) > 0) area(all, { fill: "none", stroke: "var(--wb-faint)", "stroke-dasharray": "1 2" });
    if (Math.max(0, ...others) > 0) {
      area(both, { fill: "var(--wb-page)" });
      area(both, { fill: `url(#${c.id}-stripes)`, stroke: "var(--wb-cache)", "stroke-opacity": 0.6 });
    }
    area(target, { fill: "var(--wb-page)" });
    area(target, { fill: "var(--wb-cache)", "fill-opacity": 0.8 });
    if (Math.max(0, ...host) > 0) {
      const device = target.map((value, i) => (value ?? 0) - (host[i] ?? 0));
      group.append(drawn("path", { d: `${c.steps(target, up, true)}${c.steps(device, up, true)}`, "fill-rule": "evenodd", fill: "var(--wb-page)", "fill-opacity": 0.55 }));
    }
    group.append(curve("ink", c.steps(full, up), "wb-full"));
    const last = Math.min(c.end, Math.ceil(c.to)) - 1;
    if (last < 0 || c.phone || c.x(last) < 160) return;
    const note = (y, text) => group.append(label(Math.min(c.width, c.x(last + 1)) - 4, y, text, "wb-halo wb-left"));
    if (target[last] < 0.9 * full[last]) note(up(full[last]) - 5, "full cache of the target");
    if (up(target[last]) - up(both[last]) > 13) note(up(target[last] + others[last] / 2) + 4, "other models");
  },
  value(held, i) {
    const [full, target, others, host] = ["target_full_bytes", "target_bytes", "others_bytes", "host_bytes"].map((name) => held.ofRound(name, i));
    const more = [full && `of ${shown(full, "bytes")} if kept in full`, others && `+ ${shown(others, "bytes")} other models`, host && `${shown(host, "bytes")} on the host`];
    return [shown(target ?? held.ofRound("cache_bytes", i), "bytes"), ...more];
  },
  about: () => [],
});

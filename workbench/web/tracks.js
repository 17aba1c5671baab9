import { curve, mean, shown, ticks } from "./common.js";

// The tracks of the timeline, by name: what each needs, draws and says. One call adds one.
//
// register(name, track), where a track is
//   title, hue, tip        its name, the palette's hue, and what it shows in a sentence
//   height                 its share of the room; closed: whether it is shown only when asked for
//   over                   of two runs, the second's lines lie over the first's
//   there(held)            whether the trace has what it draws
//   draw(group, c)         draws into an SVG group; c as in timeline.js
//   value(held, i)         [what stands large beside it, quiet lines …] at token i
//   about(held, end, layer)  quiet lines about the tokens before `end`; layer: the one that is open in a map, or null

export const TRACKS = new Map();

export function register(name, track) {
  TRACKS.set(name, { height: 1, closed: false, ...track });
}

// The tracks of a trace, in order; a numeric column that no track or signal knows is one by itself.
export function tracksOf(held) {
  const found = [...TRACKS].filter(([, track]) => track.there(held));
  for (const name of Object.keys(held.tokens)) if (!KNOWN.has(name)) found.push([`tokens.${name}`, columnTrack(name)]);
  return found;
}

const KNOWN = new Set([
  "position", "round", "token_id", "text", "source", "kind", "entropy_raw_nats", "entropy_sampled_nats", "surprisal_nats",
  "p_raw", "p_sampled", "rank", "margin", "topk_raw", "topk_sampled", "cut_by", "keep_size",
  "allowed_count", "allowed_mass", "exit_layer", "layers_run",
]);

function columnTrack(name) {
  const title = name.replaceAll("_", " ");
  return lineTrack({ title, hue: "ink", of: `tokens.${name}`, tip: `The column ${name} of the trace, a value per token` });
}

// A track of one column as steps.
export function lineTrack({ title, hue, of, tip, unit = "", high = null, closed = true, height = 0.7 }) {
  return {
    title, hue, tip, closed, height, over: true,
    there: (held) => held.known(of),
    draw(group, c) {
      const values = c.held.series(of), known = values.filter((value) => value !== null);
      const low = Math.min(0, ...known), top = high ?? Math.max(low + 1e-9, ...known);
      const up = c.scale(low, top);
      c.ticks(low < 0 ? [low, 0, top].map((value) => [value, shown(value)]) : labelled(top), up);
      group.append(curve(hue, c.steps(values, up)));
    },
    value: (held, i) => [shown(held.value(of, i), unit), ""],
    about: (held, end) => [`mean ${shown(mean(held.series(of).slice(0, end)), unit)}`],
  };
}

export const labelled = (high, unit = "") => ticks(high, 2).map((value, k, all) => [value, k === all.length - 1 && unit ? `${value} ${unit}` : `${value}`]);

import { curve, fixed } from "../common.js";
import { map } from "../map.js";
import { labelled, register } from "../tracks.js";

// Mean bits per element as a line; below it a map, rows the layers, columns the positions, as they are at the cursor.

const MEAN = "rounds.bits_per_element", MOST = 6e6; // slots of a map
const maps = (held) => Boolean(held.slots.round?.length) && held.layers > 0 && held.layers * held.heads * (held.prompt_tokens + held.count()) <= MOST;

register("bits", {
  title: "Bits / element", hue: "bits", height: 1.35,
  tip: "8 × bytes over live elements of the target's cache, all metadata counted (bits_per_element); the map: layers by positions at the cursor; a double click opens a layer into its heads",
  there: (held) => held.known(MEAN),
  draw(group, c) {
    const values = c.held.series(MEAN), mapped = maps(c.held);
    const line = mapped ? Math.floor(c.height * 0.36) : c.height, high = Math.max(1, ...values) * 1.08;
    const up = c.scale(0, high, line);
    c.ticks(mapped ? [[0, "0"], [Math.round(high / 1.08), `${Math.round(high / 1.08)} bits`]] : labelled(high, "bits"), up);
    group.append(curve("bits", c.steps(values, up)));
    if (mapped) c.canvas(line + 4, c.height - line - 8, map);
  },
  value: (held, i) => [fixed(held.ofRound("bits_per_element", i), 1), "all metadata counted"],
  about(held, end, layer) {
    if (!maps(held)) return [];
    return layer === null ? [`layers 0 to ${held.layers - 1} at the cursor`, "height: heads that hold it", "shade: bits"] : [`layer ${layer}, a row a head`, "shade: bits"];
  },
});

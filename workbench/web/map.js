import { clamp } from "./common.js";

// The slots of the target's cache at a round, replayed from what the trace says happened; drawn on a canvas.

const EVERY = 24; // rounds between two states that are kept, so that going back costs little
const [HELD, EVICTED, AWAY, INTO, HOST, WIDTH] = [0, 1, 2, 3, 4, 5], ABSENT = 255;
const OFFLINE = new Set([EVICTED, AWAY, ABSENT]);

// {state, bits}: [layers × heads × positions] after a round.
export function slotsAt(held, round) {
  const memo = held.memo("slots", () => ({ kept: [], rows: held.slots, row: 0, round: -1, state: null, bits: null }));
  const positions = held.prompt_tokens + held.count(), size = held.layers * held.heads * positions;
  if (memo.state === null || memo.round > round) {
    const from = memo.kept.findLast((one) => one.round <= round);
    memo.state = from ? from.state.slice() : new Uint8Array(size).fill(ABSENT);
    memo.bits = from ? from.bits.slice() : new Float32Array(size);
    [memo.row, memo.round] = from ? [from.row, from.round] : [0, -1];
  }
  const { rows, state, bits } = memo, all = (value, n) => (value >= 0 ? [value] : Array.from({ length: n }, (_, k) => k));
  for (; memo.row < (rows.round?.length ?? 0) && rows.round[memo.row] <= round; memo.row += 1) {
    const k = memo.row, width = rows.bits[k], op = rows.op[k];
    if (rows.round[k] >= (memo.kept.at(-1)?.round ?? -1) + EVERY) {
      memo.kept.push({ round: rows.round[k] - 1, row: k, state: state.slice(), bits: bits.slice() });
    }
    for (const l of all(rows.layer[k], held.layers)) for (const h of all(rows.head[k], held.heads)) {
      const first = (l * held.heads + h) * positions, end = Math.min(rows.start[k] + rows.length[k], positions);
      for (let p = first + rows.start[k]; p < first + end; p += 1) {
        if (op !== WIDTH && (!OFFLINE.has(state[p]) || (op === HELD && state[p] === ABSENT))) state[p] = op;
        if (width !== null) bits[p] = width;
      }
    }
  }
  memo.round = Math.max(memo.round, round);
  return { state, bits, positions };
}

const strength = (bits) => clamp(0.16 + 0.13 * Math.log2(Math.max(bits, 1)), 0.16, 0.82);

// Rows are layers, or the heads of the one that is open; the height of a cell is the share of heads that hold it.
export function map(canvas, height, held, c, round, open = null) {
  const ratio = devicePixelRatio || 1, width = c.width;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  if (round === null || open >= held.layers) return;
  const { state, bits, positions } = slotsAt(held, round), heads = held.heads;
  const count = open === null ? held.layers : heads, row = height / count, prompt = held.prompt_tokens;
  pen.fillStyle = getComputedStyle(canvas).color;
  const cellOf = (r, p) => {
    let here = 0, sum = 0, far = 0, into = 0;
    for (let h = 0; h < heads; h += 1) {
      if (open !== null && h !== r) continue;
      const k = ((open ?? r) * heads + h) * positions + p;
      if (OFFLINE.has(state[k])) continue;
      here += 1;
      sum += bits[k];
      far += state[k] === HOST ? 1 : 0;
      into += state[k] === INTO ? 1 : 0;
    }
    return here ? [here / (open === null ? heads : 1), sum / here, far / here, into] : null;
  };
  const put = (r, x, w, found) => {
    if (!found) return;
    const [share, width, far] = found, tall = Math.max(1, (row - 1) * share * (1 - far / 2));
    pen.globalAlpha = strength(width) * (1 - far / 2);
    pen.fillRect(x, r * row + row - 1 - tall, Math.max(w, 0.5), tall);
    if (found[3] && w > 4) {
      pen.globalAlpha = 1;
      pen.fillRect(x + w / 2 - 2, r * row + row / 2, 4, 1);
      pen.fillRect(x + w / 2 - 0.5, r * row + row / 2 - 1.5, 1, 4);
    }
  };
  const bins = Math.min(prompt, Math.floor((c.before - 3) / 2)), bin = (c.before - 3) / bins, gap = c.cell > 4 ? 0.8 : 0;
  const stride = Math.max(1, Math.round(1.5 / c.cell)); // of positions narrower than a pixel one stands for its neighbours
  for (let r = 0; r < count; r += 1) {
    for (let k = 0; k < bins; k += 1) put(r, k * bin, bin - (bin > 3 ? 0.4 : 0), cellOf(r, Math.floor((k * prompt) / bins)));
    for (let i = Math.max(0, Math.floor(c.from)); i < Math.min(c.end, c.to, held.count()); i += stride) put(r, c.x(i), c.cell * stride - gap, cellOf(r, prompt + i));
  }
}

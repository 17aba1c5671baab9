import { clamp, drawn, label, node, px, short, word } from "./common.js";
import { tracksOf } from "./tracks.js";

// The timeline: all tracks on one token axis, with zoom, range and flags. What moves with the cursor is an overlay.
// With a second run (`other`) tracks are pairs on one scale: its lines dashed over the first's, or in a half of its own.

const RULER = 34, PROMPT = 62, STRIP = 26, PHONE = 600, LEAST = 56, TALLEST = 190, END = 6; // px
const SHORTEST = 24; // tokens of the axis, however short the run
const WHEEL = 1.25, FEWEST = 8; // zoom of a step; tokens that fill the axis at most

export function timeline(held, state, { id, onMove, onHover, onRange, other = null, names = [] }) {
  const runs = other ? [held, other] : [held], endOf = (run) => (run === held ? state.reach() : run.count());
  const element = node("div", "wb-timeline"), gutter = node("div", "wb-gutter"), plot = node("div", "wb-plot");
  const foot = node("div", "wb-foot"), menu = node("details", "wb-menu"), hint = node("span", "", "drag selects · Ctrl wheel zooms · Shift wheel pans");
  const opened = new Set(), closed = new Set();
  let size = "", c = null, over = null, maps = [], layer = null, named = [], offered = "", drawnRound;
  menu.append(node("summary", "wb-button", "+ tracks"));
  foot.append(menu, hint);
  element.append(gutter, plot, foot);

  const isShown = ([name, track]) => (track.closed ? opened.has(name) : !closed.has(name));

  // Tokens that the axis holds: while it decodes, all that there may be.
  function extent() {
    const drafted = state.phase ? state.reach() + held.chain(state.phase.round).length : 0;
    const whole = state.running && held.max_new_tokens ? held.max_new_tokens : 0;
    return Math.max(SHORTEST, ...runs.map((run) => run.count()), drafted, whole);
  }

  const tracks = () => [...new Map(runs.flatMap(tracksOf))];

  function layout() {
    const seen = tracks().filter(isShown), phone = element.clientWidth < PHONE;
    const room = element.clientHeight - RULER - foot.offsetHeight - 4, sum = seen.reduce((all, [, track]) => all + track.height, 0);
    const unit = clamp(room / (sum || 1), LEAST, TALLEST);
    return { phone, placed: seen.map(([name, track]) => [name, track, Math.floor(unit * track.height)]) };
  }

  function draw() {
    const { phone, placed } = layout(), n = extent();
    element.classList.toggle("wb-phone", phone); // which makes room
    const width = Math.max(plot.clientWidth, 200);
    size = `${element.clientWidth}×${element.clientHeight}`;
    if (state.zoom && state.zoom[1] > n) state.zoom = null;
    const [from, to] = state.zoom ?? [0, n], before = phone ? STRIP : PROMPT, cell = (width - before - END) / (to - from);
    const past = (before - 4) / (-held.first || 1); // the prompt, compressed
    const end = Math.max(...runs.map(endOf)), x = (i) => (i < 0 ? (i - held.first) * past : before + (i - from) * cell);
    const height = placed.reduce((all, [, , tall]) => all + tall, RULER);
    c = { held, state, id, from, to, end, before, cell, past, width, phone, x, pad: phone ? 20 : 8 };
    c.token = (px) => (px < before ? Math.min(-1, Math.floor(px / past) + held.first) : Math.floor((px - before) / cell + from));
    const chart = drawn("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": told(placed) });
    chart.append(patterns(), bands(height));
    maps = [];
    plot.replaceChildren(chart);
    let top = RULER;
    for (const [, track, tall] of placed) {
      chart.append(drawn("path", { class: "wb-rule", d: `M0,${top}H${width}` }));
      const ends = other && runs.map((run) => endsOf(track, run, tall)), part = track.over ? tall : Math.floor(tall / runs.length);
      runs.forEach((run, k) => {
        const at = top + (track.over ? 0 : k * part), over = track.over && k > 0, place = { transform: `translate(0 ${at})` };
        const [axis, group, numbers] = ["wb-axis", over ? "wb-other" : "", "wb-names"].map((name) => drawn("g", { ...place, class: name }));
        group.setAttribute("clip-path", `url(#${id}-clip)`);
        chart.append(...(over ? [group] : [axis, group, numbers]));
        const canvas = (y, tall, paint) => maps.push({ canvas: mapAt(at + y, tall), tall, paint, run });
        if (run.count() && track.there(run)) track.draw(group, { ...ownOf(run, part, axis, numbers, ends), canvas });
      });
      top += tall;
    }
    chart.append(ruler(n), flags(height));
    if (!other && end < n && (state.phase || !held.ended)) chart.append(undecided(end, height));
    over = drawn("svg", { class: "wb-over-all", width, height, "aria-hidden": "true" });
    plot.append(over);
    drawnRound = undefined;
    labels(placed);
    offer();
    mark();
  }

  const told = (placed) => `${placed.map(([, track]) => track.title).join(", ")} over the tokens; the data table holds the numbers`;

  function patterns() {
    const defs = drawn("defs");
    for (const [name, step, attributes] of [["stripes", 5, { fill: "var(--wb-cache)", "fill-opacity": 0.75 }], ["hatch", 7, { fill: "var(--wb-line)" }]]) {
      const pattern = drawn("pattern", { id: `${id}-${name}`, width: step, height: step, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" });
      pattern.append(drawn("rect", { width: step / 2, height: step, ...attributes }));
      defs.append(pattern);
    }
    const clip = drawn("clipPath", { id: `${id}-clip` });
    clip.append(drawn("rect", { x: state.zoom ? c.before : 0, y: -2, width: c.width, height: 2000 }));
    defs.append(clip);
    return defs;
  }

  // Rounds in alternating ground, where they are of more than one token.
  function bands(height) {
    let path = "";
    if (held.spans().length < held.count() && c.cell > 1.5) {
      held.spans().forEach(({ first, last }, k) => {
        if (k % 2 || last >= c.end || last < c.from || first > c.to) return;
        const left = Math.max(c.x(first), c.before);
        path += `M${px(left)},${RULER}H${px(c.x(last + 1))}V${height}H${px(left)}z`;
      });
    }
    return drawn("path", { class: "wb-band", d: path });
  }

  // The ends of a track's scale, by drawing it for nobody.
  function endsOf(track, run, tall) {
    const ends = [Infinity, -Infinity];
    const scale = (low, high) => {
      [ends[0], ends[1]] = [Math.min(ends[0], low), Math.max(ends[1], high)];
      return () => 0;
    };
    if (run.count() && track.there(run)) track.draw(drawn("g"), { ...ownOf(run, tall), scale, ticks() {}, canvas() {} });
    return ends;
  }

  // What tracks draw with: a scale, ticks and steps over the tokens in view.
  function ownOf(run, tall, axis, names, ends = null) {
    const first = Math.max(0, Math.floor(c.from)), end = endOf(run), stop = Math.min(end, Math.ceil(c.to));
    const [least, most] = ends ? [Math.min(...ends.map(([low]) => low)), Math.max(...ends.map(([, high]) => high))] : [];
    return {
      ...c, held: run, end, height: tall,
      scale: (from, to, height = tall) => {
        const [low, high] = ends ? [least, most] : [from, to];
        return (value) => height - 6 - ((value - low) / (high - low || 1)) * (height - 6 - c.pad);
      },
      ticks(list, up) {
        for (const [value, text] of c.phone ? [] : list) {
          axis.append(drawn("path", { d: `M${c.before},${px(up(value))}H${c.width}` }));
          names.append(label(c.before - 6, up(value) + 3.5, text, "wb-halo wb-left"));
        }
      },
      steps(values, up, shut = false) {
        let path = "", from = null; // where a run of known values begins
        const over = () => {
          if (shut && from !== null) path += `V${px(up(0))}H${px(c.x(from))}z`;
          from = null;
        };
        for (let i = first; i < stop; i += 1) {
          if (values[i] == null) { over(); continue; }
          path += `${from === null ? "M" : "L"}${px(c.x(i))},${px(up(values[i]))}H${px(c.x(i) + c.cell)}`;
          from ??= i;
        }
        over();
        return path;
      },
      past(of, up) { // over the prompt
        let path = "";
        for (let i = run.first; i < 0; i += 1) {
          const value = run.value(of, i);
          if (value !== null) path += `${path ? "L" : "M"}${px(c.x(i))},${px(up(value))}h${c.past.toFixed(2)}`;
        }
        return path;
      },
    };
  }

  function mapAt(top, height) {
    const canvas = node("canvas", "wb-map");
    Object.assign(canvas.style, { top: `${top}px`, height: `${height}px`, width: `${c.width}px` });
    plot.append(canvas);
    return canvas;
  }

  // A double click on the map opens a layer into its heads, or closes it.
  function opens(event) {
    for (const { canvas, run } of maps) {
      const box = canvas.getBoundingClientRect();
      if (event.clientY < box.top || event.clientY > box.bottom) continue;
      layer = layer === null ? Math.floor(((event.clientY - box.top) / box.height) * run.layers) : null;
      draw();
      return true;
    }
    return false;
  }

  function ruler(n) {
    const axis = drawn("g", { class: "wb-ruler" }), step = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024].find((one) => one * c.cell > 34) ?? 2048;
    for (let i = Math.ceil(c.from / step) * step; i < c.to; i += step) {
      const text = c.cell > 34 && i < endOf(held) ? short(word(held.token("text", i)), Math.floor(c.cell / 7)) : i;
      axis.append(label(c.x(i) + c.cell / 2, 28, text, "wb-middle"));
    }
    if (!c.phone && held.prompt_tokens) axis.append(label(0, 28, `prompt ${held.prompt_tokens}`));
    axis.append(drawn("path", { class: "wb-decoded", d: `M${c.x(Math.max(c.from, 0))},${RULER}H${c.x(Math.min(c.end, c.to))}` }));
    axis.append(drawn("path", { class: "wb-rule", d: `M${c.before - 1.5},${RULER}V${2000}` }));
    return axis;
  }

  // What the reader did to the run: settings changed, branches, stops. Of tokens forced in a row the first has a flag.
  function flags(height) {
    const group = drawn("g", { class: "wb-flags" }), found = new Map(), told = new Map();
    for (const { index, text } of held.marks ?? []) {
      const again = told.get(text) === index - 1;
      told.set(text, index);
      if (!again && index <= c.end && index >= c.from && index <= c.to) found.set(index, [...(found.get(index) ?? []), text]);
    }
    let taken = 0; // px, up to which flags stand
    for (const [index, texts] of [...found].sort(([a], [b]) => a - b)) {
      const text = texts.join(" · "), wide = text.length * 5.9 + 10, x = c.x(index), left = clamp(x, taken, Math.max(taken, c.width - wide));
      taken = left + wide + 3;
      group.append(drawn("path", { d: `M${x},4V${height}` }), drawn("rect", { x: left, y: 2, width: wide, height: 14, rx: 3 }));
      group.append(label(left + 5, 12.5, text));
    }
    return group;
  }

  function undecided(end, height) {
    const group = drawn("g", { class: "wb-undecided" }), left = Math.max(c.before, c.x(end)), open = state.phase && state.phase.at < 3;
    const drafted = open ? held.chain(state.phase.round, false).length * c.cell : 0, from = left + drafted;
    group.append(drawn("rect", { x: from, y: RULER, width: Math.max(0, c.width - from), height: height - RULER, fill: `url(#${id}-hatch)` }));
    if (drafted) group.append(drawn("rect", { class: "wb-open", x: left, y: RULER, width: drafted, height: height - RULER }));
    const text = from + 8;
    if (text < c.width - 90) group.append(label(text, RULER + (c.phone ? 38 : 16), state.phase ? "not decided yet" : "not decoded yet", "wb-halo"));
    return group;
  }

  function labels(placed) {
    const head = node("div", "wb-axis-name", "token index");
    head.style.height = `${RULER}px`;
    head.title = "Index of the new token, from 0";
    gutter.replaceChildren(head, ...placed.map(([name, track, tall]) => {
      const one = node("div"), title = node("b"), dot = node("i");
      one.style.height = `${tall}px`;
      one.title = track.tip;
      dot.style.background = `var(--wb-${track.hue})`;
      title.append(dot, track.title);
      one.append(title);
      one.dataset.track = name;
      return one;
    }));
    named = placed.map(([, track]) => [track, other ? [] : track.about(held, state.reach(), layer)]);
  }

  function values() {
    const i = state.hover ?? state.at, said = (track, run) => (i !== null && i < endOf(run) && !run.empty() && track.there(run) ? track.value(run, i) : ["–"]);
    named.forEach(([track, about], k) => {
      const one = gutter.children[k + 1], [large, ...quiet] = said(track, held), lines = other ? [`${names[1][0]}: ${said(track, other)[0]}`] : [...quiet, ...about];
      one.replaceChildren(one.firstChild, node("span", "wb-big", large), ...lines.filter(Boolean).map((text) => node("small", "", text)));
    });
  }

  function offer() {
    const all = tracks(), names = all.map(([name]) => name).join(), list = node("div", "wb-list");
    if (names === offered) return; // a box that is being used stays
    offered = names;
    for (const [name, track] of all) {
      const choice = node("label"), box = node("input");
      box.type = "checkbox";
      box.checked = isShown([name, track]);
      box.addEventListener("change", () => {
        const set = track.closed ? opened : closed, add = track.closed ? box.checked : !box.checked;
        set[add ? "add" : "delete"](name);
        draw();
      });
      choice.append(box, ` ${track.title}`);
      choice.title = track.tip;
      list.append(choice);
    }
    menu.replaceChildren(menu.firstChild, list);
  }

  // The overlay: cursor, hover, range; and the maps, which show the cache at the cursor.
  function mark() {
    if (!c) return;
    const parts = [], height = Number(over.getAttribute("height"));
    if (state.range && (state.range[0] > c.from || state.range[1] + 1 < c.to)) { // less than all that is in view
      const [a, b] = state.range, left = Math.max(c.before, c.x(a)), right = c.x(b + 1);
      parts.push(drawn("rect", { class: "wb-range", x: left, y: RULER, width: Math.max(0, right - left), height: height - RULER }));
      parts.push(drawn("path", { class: "wb-range-ends", d: `M${left},${RULER}V${height}M${right},${RULER}V${height}` }));
    }
    const line = (i, name) => {
      if (i === null || (i >= 0 && (i < c.from || i >= c.to || i >= c.end)) || (i < 0 && state.zoom)) return;
      const x = c.x(i) + (i < 0 ? c.past : c.cell) / 2;
      parts.push(drawn("path", { class: name, d: `M${x},${RULER}V${height}` }));
      if (name === "wb-cursor") parts.push(drawn("path", { class: "wb-knob", d: `M${x - 5},${RULER - 6}h10l-5,7z` }));
    };
    line(state.hover, "wb-hovered");
    line(state.at, "wb-cursor");
    over.replaceChildren(...parts);
    values();
    const seen = (run) => (state.phase ? state.phase.round - (state.phase.at < 4 ? 1 : 0) : run.looked(state.at)), rounds = runs.map(seen).join();
    if (rounds !== drawnRound) for (const { canvas, tall, paint, run } of maps) paint(canvas, tall, run, c, seen(run), layer);
    drawnRound = rounds;
  }

  const under = (event) => {
    if (!c) return null;
    const i = c.token(event.clientX - plot.getBoundingClientRect().left);
    return i >= held.first && i < Math.min(c.end, c.to) && (i >= 0 || !state.zoom) ? i : null;
  };
  const clip = (i) => clamp(i, 0, Math.max(0, c.end - 1));
  let pressed = null, held_ = null;
  plot.addEventListener("pointerdown", (event) => {
    if (event.button !== 0 || !c) return;
    const i = c.token(event.clientX - plot.getBoundingClientRect().left);
    pressed = { i: clip(i), x: event.clientX, dragging: event.pointerType === "mouse" };
    if (!pressed.dragging) held_ = setTimeout(() => { if (pressed) pressed.dragging = true; }, 350);
  });
  plot.addEventListener("pointermove", (event) => {
    onHover(under(event));
    if (!pressed?.dragging || Math.abs(event.clientX - pressed.x) < 5) return;
    const i = clip(c.token(event.clientX - plot.getBoundingClientRect().left));
    onRange(i < pressed.i ? [i, pressed.i] : [pressed.i, i]);
  });
  const released = (event) => {
    clearTimeout(held_);
    if (pressed && Math.abs(event.clientX - pressed.x) < 5) {
      const i = under(event);
      if (i !== null) onMove(i);
    }
    pressed = null;
  };
  plot.addEventListener("pointerup", released);
  plot.addEventListener("scroll", () => { gutter.scrollTop = plot.scrollTop; });
  plot.addEventListener("pointerleave", () => { onHover(null); });
  window.addEventListener("pointerup", released);
  plot.addEventListener("dblclick", (event) => {
    const i = under(event);
    if (opens(event) || i === null || i < 0 || i >= endOf(held)) return;
    const { first, last } = held.span(i);
    onRange([first, last]);
  });
  plot.addEventListener("wheel", (event) => {
    if (!c || !(event.ctrlKey || event.metaKey || event.shiftKey)) return;
    event.preventDefault();
    const px = event.clientX - plot.getBoundingClientRect().left;
    if (event.shiftKey) pan(((event.deltaY || event.deltaX) / c.width) * (c.to - c.from));
    else zoom(event.deltaY < 0 ? 1 / WHEEL : WHEEL, c.from + Math.max(0, px - c.before) / c.cell);
  }, { passive: false });

  function zoom(factor, around = null) {
    const n = extent(), [from, to] = state.zoom ?? [0, n], wide = clamp((to - from) * factor, Math.min(FEWEST, n), n);
    const middle = around ?? clamp(state.at ?? (from + to) / 2, from, to), left = clamp(middle - (middle - from) * (wide / (to - from)), 0, n - wide);
    state.zoom = wide >= n - 0.01 ? null : [left, left + wide];
    draw();
  }

  function pan(by) {
    if (!state.zoom) return;
    const n = extent(), [from, to] = state.zoom, left = clamp(from + by, 0, n - (to - from));
    state.zoom = [left, left + to - from];
    draw();
  }

  // Keeps the cursor in view.
  function reveal(i) {
    if (!state.zoom || i === null || i < 0 || (i + 1 > state.zoom[0] && i < state.zoom[1])) return;
    pan(i - (state.zoom[0] + state.zoom[1]) / 2);
  }

  const again = () => { drawnRound = undefined; mark(); };
  const sizes = new ResizeObserver(() => {
    if (`${element.clientWidth}×${element.clientHeight}` !== size) draw();
  });
  sizes.observe(element);
  const themes = new MutationObserver(again); // canvases hold colours, not variables
  for (const one of [document.documentElement, document.body]) themes.observe(one, { attributes: true, attributeFilter: ["class", "data-theme", "data-jp-theme-light", "style"] });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  dark.addEventListener("change", again);

  return {
    element, draw, mark, zoom, pan, reveal,
    destroy() {
      sizes.disconnect();
      themes.disconnect();
      dark.removeEventListener("change", again);
      window.removeEventListener("pointerup", released);
    },
  };
}

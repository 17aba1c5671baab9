// Two runs beside each other: both texts over one timeline of paired tracks, with one cursor. The first's lines are
// solid, the second's dashed. The value says {runs: [payload, payload], names, said, detail, part, tables: [{title, rows: [[what, a, b]]}]}.
const beside = ({ element, props, watch }, { css }) => {
  let views = [], chart = null;
  const show = () => {
    for (const one of [...views, chart]) one?.destroy();
    [views, chart] = [[], null];
    if (!props.value) return element.replaceChildren(node("p", "wb-empty", "Choose two runs or branches."));
    const { runs, names, said, detail, part, tables } = JSON.parse(props.value), [a, b] = runs.map((data) => Object.assign(record(), { taken: data }));
    for (const held of [a, b]) {
      held.take(held.taken);
      held.looked = (i) => (i === null || i < 0 || i >= held.count() ? (held.rounds.round?.at(i === null || i < 0 ? 0 : -1) ?? null) : held.token("round", i));
    }
    const state = { at: null, hover: null, range: null, zoom: null, phase: null, ghosts: false, colour: "entropy", limit: Infinity, running: false, waiting: false, reach: a.count };
    const states = [state, Object.create(state, { reach: { value: b.count } })], last = Math.max(a.count(), b.count()) - 1;
    const go = (i, follow = true) => {
      state.at = i === null ? null : clamp(i, 0, Math.max(0, last));
      for (const view of views) {
        view.select(state.at);
        if (follow) view.reveal(state.at);
        view.outline();
      }
      chart.reveal(state.at);
      chart.mark();
    };
    const hover = (i) => {
      if (i === state.hover) return;
      state.hover = i;
      for (const view of views) view.hover(i);
      chart.mark();
    };
    const ranged = (range) => {
      state.range = range;
      for (const view of views) view.range(range);
      chart.mark();
    };
    const recoloured = () => views[1].draw();
    views = [a, b].map((held, k) => tokenView(held, states[k], { label: `tokens of ${names[k]}`, onMove: go, onPick: go, onHover: hover, onChange: recoloured }));
    chart = timeline(a, state, { id: "wb-beside", onMove: go, onHover: hover, onRange: ranged, other: b, names });
    const root = node("div", "wb-view wb-beside"), stage = node("div", "wb-stage"), verdict = node("p", "wb-verdict"), texts = node("div", "wb-sides"), glass = node("div", "wb-inspector");
    verdict.append(node("b", "", said), ` ${detail}`);
    views.forEach((view, k) => {
      const side = node("section"), name = node("h4", "", names[k]);
      name.prepend(node("i", k ? "wb-dashes" : "wb-solid"));
      side.append(name, view.box);
      texts.append(side);
    });
    stage.append(verdict, views[0].legend, texts);
    for (const { title, rows } of tables) {
      const table = node("table", "wb-plain"), head = node("tr");
      head.append(...["", ...names.map((name) => name[0])].map((text) => node("th", "", text)));
      table.append(head, ...rows.map((row) => {
        const line = node("tr");
        line.append(...row.map((text, k) => node(k ? "td" : "th", "", text)));
        return line;
      }));
      glass.append(node("h3", "", title), table);
    }
    root.append(node("style", "", css), stage, chart.element, glass);
    root.addEventListener("keydown", (event) => {
      const acts = {
        ArrowLeft: () => go((state.at ?? 0) - 1), ArrowRight: () => go((state.at ?? -1) + 1), Home: () => go(0), End: () => go(last),
        "+": () => chart.zoom(1 / 1.5), "-": () => chart.zoom(1.5), Escape: () => ranged(null),
      };
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("select, input") || !acts[event.key]) return;
      event.preventDefault();
      acts[event.key]();
    });
    element.replaceChildren(root);
    for (const view of views) view.draw();
    chart.draw();
    if (part !== null) for (const view of views) view.box.querySelector(`[data-index="${part}"]`)?.classList.add("wb-parted");
    go(part ?? 0);
  };
  watch("value", show);
  show();
};

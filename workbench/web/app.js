// The view on the app's page. `host` is what Gradio gives a component's script.
//
// What the reader asks of the engine goes out as an event of that name: "step", "run", "pause", "fork", "resettle",
// "choose", "forget". The cursor, once it rests (`settled` ms), is told as "pick"; "lost" says that rounds are missing
// before those that came last. While the run is decoded, the page looks for what is new every `beat` ms, as the server
// says, or less often where answers take long; once it no longer is, "rest" asks for the whole page, again after `away`
// ms where nobody answered.
const connect = ({ element, props, trigger, watch }, { settled, away, ...options }) => {
  let resting = null, kept = null, page = null, beat = 0, turn = 0, drawn = {}, begun = null;
  const told = (index) => {
    clearTimeout(resting);
    resting = setTimeout(() => trigger("pick", { index }), settled);
    keep();
  };
  const keep = () => {
    clearTimeout(kept);
    kept = setTimeout(() => history.replaceState(null, "", `#${addressed(view.where())}`), settled);
  };
  const onAct = (name, more) => {
    clearTimeout(resting);
    window.workbenchTold = more; // for events that take the form along: see `form.py`
    trigger(name, more);
  };
  const view = mount(element, { ...options, keys: "page", words: GLOSSARY, onCursor: told, onAct, onSettings: keep, colour: asked.colour, unit: asked.by });
  const tell = (data) => { // the setup row shows how far a run is
    const running = Boolean(data.live);
    if (running && begun === null) begun = { at: performance.now(), tokens: data.length };
    if (!running) begun = null;
    const speed = begun ? (1000 * (data.length - begun.tokens)) / Math.max(1, performance.now() - begun.at) : 0;
    dispatchEvent(new CustomEvent("workbench-run", { detail: { running, tokens: data.length, of: view.record().max_new_tokens, speed, ended: data.ended } }));
  };
  let met = false;
  const draw = (data) => {
    const fits = view.update(data);
    beat = data.beat ?? beat;
    if (fits && !met && data.length) {
      if (asked.at !== undefined || asked.range) view.look(asked);
      tour(element);
    }
    met ||= fits && data.length > 0;
    const { id: run, rounds_recorded: rounds, cursor, place } = data;
    drawn = fits ? { run, rounds, cursor, at: place?.at } : {};
    if (fits) tell(data);
    return fits;
  };
  const look = async () => {
    const mine = turn, asked = performance.now();
    let found = {};
    try {
      found = await (await fetch(`live/${page}?${new URLSearchParams(drawn)}`)).json();
    } catch { // Gradio's own event says that nobody answers, and comes back with the server
      if (mine === turn) trigger("rest", {});
      return;
    }
    if (mine !== turn) return;
    const took = performance.now() - asked;
    if (found.id !== undefined) draw(found);
    if (found.rest) trigger("rest", {});
    const wait = found.rest ? away : Math.max(beat - (performance.now() - asked), 2 * took);
    setTimeout(() => mine === turn && look(), wait);
  };
  const show = () => {
    turn += 1;
    const data = props.value ? JSON.parse(props.value) : {};
    page = data.live ?? null;
    if (props.value && !draw(data)) trigger("lost", {});
    if (page !== null) look();
  };
  watch("value", show);
  addEventListener("workbench-picture", () => picture(element.querySelector(".wb-timeline"), view.record().id ?? "run").catch(() => view.refuse("the picture could not be made")));
  addEventListener("workbench-failed", ({ detail }) => view.refuse(detail.startsWith("condition") ? detail : ""));
  show();
};

// Where the reader looks, as the address says it: #at=50&by=round&colour=p&range=40-70&zoom=32-96
const asked = (() => {
  const said = new URLSearchParams(location.hash.slice(1)), pair = (name) => said.get(name)?.match(/^(\d+)-(\d+)$/)?.slice(1).map(Number);
  const at = said.get("at"), by = said.get("by");
  return { at: /^-?\d+$/.test(at ?? "") ? Number(at) : undefined, by: UNITS.includes(by) ? by : undefined, colour: said.get("colour") ?? undefined, range: pair("range") ?? null, zoom: pair("zoom") ?? null };
})();
const addressed = ({ range, zoom, ...plain }) => {
  const pairs = [["range", range], ["zoom", zoom]].filter(([, pair]) => pair).map(([name, pair]) => [name, pair.map(Math.round).join("-")]);
  return new URLSearchParams([...Object.entries(plain).filter(([, value]) => value !== null), ...pairs]);
};

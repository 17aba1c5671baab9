// The trace view on the app's page. `host` is what Gradio gives a component's script.
//
// The cursor, once it rests (`settled` ms), is told to the server as a `pick` event; `lost` says that rounds are missing
// before those that came last. While the run is decoded, the page looks for what is new every `beat` ms; once it no
// longer is, `rest` asks for the whole page, again after `away` ms where nobody answered.
const connect = ({ element, props, trigger, watch }, { settled, beat, away, ...options }) => {
  let resting = null, page = null, turn = 0, drawn = {};
  const told = (index, wait) => {
    clearTimeout(resting);
    resting = setTimeout(() => trigger("pick", { index }), wait);
  };
  const view = mount(element, { ...options, onCursor: (i) => told(i, settled), onPick: (i) => told(i, 0) });
  const draw = (data) => {
    const fits = view.update(data);
    const { id: run, rounds_recorded: rounds, cursor, phase, place } = data;
    drawn = fits ? { run, rounds, cursor, phase: phase ?? "", at: place?.at } : {};
    return fits;
  };
  const look = async () => {
    const mine = turn;
    let found = {}, wait = beat;
    try {
      found = await (await fetch(`live/${page}?${new URLSearchParams(drawn)}`)).json();
    } catch { // Gradio's own event says that nobody answers, and comes back with the server
      if (mine === turn) trigger("rest", {});
      return;
    }
    if (mine !== turn) return;
    if (found.id !== undefined) draw(found);
    if (found.rest) {
      trigger("rest", {});
      wait = away;
    }
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
  show();
};

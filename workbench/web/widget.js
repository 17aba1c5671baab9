// Joins a widget's model to the module. A view that lacks rounds, as every new one does, asks for all of them.
function render({ model, el }) {
  const tell = (name) => (i) => {
    model.set(name, i ?? -1);
    model.save_changes();
  };
  const onAct = model.get("live") ? (name, more) => model.send({ act: name, ...more }) : undefined;
  const view = mount(el, { onCursor: tell("cursor"), onPick: onAct ? undefined : tell("picked"), onAct, resettles: false });
  const take = (delta) => {
    if (!view.update(delta)) model.send({ act: "all" });
  };
  const changed = () => take(JSON.parse(model.get("delta")));
  const moved = () => view.setCursor(model.get("cursor"));
  const told = (content) => (content.refused === undefined ? take(JSON.parse(content.all)) : view.refuse(content.refused));
  const quiet = (event) => { // JupyterLab would take arrows and Enter for its own, before they get here
    const chord = event.ctrlKey || event.metaKey || event.altKey;
    if (el.contains(event.target)) event.target.toggleAttribute("data-lm-suppress-shortcuts", !chord);
  };
  window.addEventListener("keydown", quiet, true);
  model.on("change:delta", changed);
  model.on("change:cursor", moved);
  model.on("msg:custom", told);
  model.send({ act: "all" });
  return () => {
    model.off("change:delta", changed);
    model.off("change:cursor", moved);
    model.off("msg:custom", told);
    window.removeEventListener("keydown", quiet, true);
    view.destroy();
  };
}
export default { render };

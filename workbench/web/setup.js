// The setup row: a chip for each group of the form, the presets, and the button that runs what the form says.
// Events: "go" and "start" run the form, "stop" ends the loading of a model, "preset" asks for one; "edited" says that
// something in the form changed: one event however many controls there are, since each costs the page time.
const PATIENCE = 20000; // ms that a run may take to begin
const setup = ({ element, props, trigger, watch }) => {
  const made = (tag, name, text) => {
    const one = document.createElement(tag);
    one.className = name;
    if (text !== undefined) one.textContent = text;
    return one;
  };
  const row = made("div", "wb-setup"), chips = made("div", "wb-chips"), presets = made("select", "wb-presets"), go = made("button", "wb-go", "Run ▶");
  const paused = made("button", "wb-start", "❚❚"), where = document.querySelector("#loading");
  for (const one of [go, paused]) one.type = "button";
  paused.title = "Open the run without decoding: step it";
  paused.setAttribute("aria-label", "start paused");
  presets.setAttribute("aria-label", "preset: a run that teaches");
  const trouble = made("span", "wb-trouble");
  trouble.hidden = true;
  element.replaceChildren(row);
  chips.append(trouble);
  row.append(chips, presets, paused, go);
  let state = { running: false, loading: "", busy: false }, patience = null;
  const hold = () => { // busy until a run is seen or refused, or for as long as that may take
    clearTimeout(patience);
    state.busy = true;
    patience = setTimeout(() => { state.busy = false; say(); }, PATIENCE);
  };

  const say = () => {
    const { running, loading, busy, tokens, of, speed } = state, left = speed > 0 && of ? ` · ${Math.max(1, Math.round((of - tokens) / speed))} s left` : "";
    const text = loading ? `${loading} ✕` : running ? `${of ? `Decoding ${tokens} of ${of}` : `Decoding ${tokens}`}${speed > 0 ? ` · ${speed.toFixed(0)} tok/s` : ""}${left} ✕` : busy ? "Starting …" : "Run ▶";
    if (go.textContent !== text) go.textContent = text;
    go.setAttribute("aria-label", running || loading ? "stop" : "run");
    row.classList.toggle("wb-working", running || Boolean(loading));
    paused.disabled = running || busy || Boolean(loading);
  };
  const toRun = () => document.querySelector("#tabs [role=tab]")?.click();
  const begin = (name) => () => {
    if (state.loading) return trigger("stop", {});
    if (state.running) return dispatchEvent(new CustomEvent("workbench-pause"));
    hold();
    say();
    toRun();
    window.workbenchTold = { until: document.querySelector(".wb-until")?.value ?? "" };
    return setTimeout(() => trigger(name, {}), 30); // once that is seen
  };
  go.addEventListener("click", begin("go"));
  paused.addEventListener("click", begin("start"));
  presets.addEventListener("change", () => {
    if (!presets.value) return;
    toRun();
    trigger("preset", { name: presets.value });
  });
  addEventListener("workbench-run", ({ detail }) => { Object.assign(state, detail, { busy: false }); say(); });
  addEventListener("workbench-failed", () => { state.busy = false; say(); });
  if (where) {
    new MutationObserver(() => {
      const now = (where.querySelector(".wb-progress")?.textContent ?? "").trim().replace(/ …$/, "");
      if (now === state.loading) return;
      if (!now && state.busy) hold(); // what was loaded is run now
      state.loading = now;
      say();
    }).observe(where, { childList: true, subtree: true, characterData: true });
  }

  let waiting = null;
  for (const name of ["input", "change", "click", "keyup"]) {
    document.addEventListener(name, (event) => {
      if (!event.target.closest?.("#drawer") || event.target.closest("#reset, #adopt")) return;
      clearTimeout(waiting);
      waiting = setTimeout(() => trigger("edited", {}), 400);
    }, true);
  }

  const known = {}; // the chip of every group: it stays, so that the focus comes back to it
  const chipOf = (group) => {
    const chip = made("button", "wb-setting");
    chip.type = "button";
    chip.addEventListener("click", () => dispatchEvent(new CustomEvent("workbench-drawer", { detail: { group, from: chip } })));
    trouble.before(chip);
    return chip;
  };
  const tell = ({ group, text, run }) => {
    const chip = (known[group] ??= chipOf(group)), other = run && run !== text && group !== "Model";
    chip.replaceChildren(made("small", "", group), text, ...(other ? [made("i", "wb-changed")] : []));
    chip.setAttribute("aria-label", `${group}: ${text}`);
    chip.title = other ? `${group}: ${text}; the run shown has ${run}` : `${group}: ${text}`;
  };

  // Choices that do not fit the rest of the form are hidden, and a line below says how many, and why.
  const hidden = document.head.appendChild(made("style", ""));
  const quoted = (text) => JSON.stringify(text.replaceAll("\n", " "));
  const hide = (refused) => {
    hidden.textContent = Object.entries(refused).map(([id, names]) => {
      const all = Object.keys(names), why = [...new Set(Object.values(names))].join("; ");
      return `${all.map((name) => `#${id} li[aria-label=${quoted(name)}]`).join()} { display: none !important; }
#${id}::after { content: ${quoted(`${all.length} hidden: ${why}`)}; display: block; font-size: 11.5px; color: var(--wb-quiet); padding-top: 3px; }`;
    }).join("\n");
  };

  const show = () => {
    if (!props.value) return;
    const data = JSON.parse(props.value);
    data.chips.forEach(tell);
    hide(data.refused ?? {});
    trouble.hidden = !data.trouble;
    trouble.textContent = `! ${data.trouble}`;
    trouble.title = data.trouble;
    const entries = Object.entries(data.presets);
    if (presets.options.length !== entries.length + 1) {
      presets.replaceChildren(...[["", "Preset"], ...entries.map(([name]) => [name, name])].map(([value, text]) => {
        const one = made("option", "", text);
        one.value = value;
        return one;
      }));
    }
    presets.value = data.preset ?? "";
    presets.title = data.presets[data.preset] ?? "runs that teach something";
    say();
  };
  watch("value", show);
  show();
};

// Four steps for a first visit; once it is closed it never comes back.
const tour = (root) => {
  const KEPT = "workbench-tour", STEPS = [
    [".wb-tokens", "The text, token by token: the darker, the less sure the model was. Green was drafted and accepted; struck out in red was drafted and rejected."],
    [".wb-transport", "One bar steps through it: by phase, token or round, back as well. At the head of a run it decodes on."],
    [".wb-timeline", "Entropy, drafts, KV cache and bits on one axis. Drag to compare a range with the rest, Ctrl and the wheel zoom."],
    ["#setup", "What was set, a chip a group. Change one and press Run: a further run opens beside this one."],
  ];
  if (localStorage.getItem(KEPT) || !document.querySelector("#setup")) return;
  const card = document.createElement("div"), text = document.createElement("p"), next = document.createElement("button"), done = document.createElement("button");
  let at = 0;
  card.className = "wb-tour";
  card.setAttribute("role", "dialog");
  card.setAttribute("aria-label", "tour");
  done.textContent = "Close";
  card.append(text, done, next);
  const close = () => { localStorage.setItem(KEPT, "seen"); card.remove(); document.querySelector(".wb-toured")?.classList.remove("wb-toured"); };
  const show = () => {
    document.querySelector(".wb-toured")?.classList.remove("wb-toured");
    const place = document.querySelector(STEPS[at][0]);
    if (!place) return close();
    place.classList.add("wb-toured");
    text.textContent = `${at + 1} of ${STEPS.length} · ${STEPS[at][1]}`;
    next.textContent = at === STEPS.length - 1 ? "Begin" : "Next";
    return undefined;
  };
  next.addEventListener("click", () => { at += 1; if (at < STEPS.length) show(); else close(); });
  done.addEventListener("click", close);
  document.body.append(card);
  requestAnimationFrame(show);
};

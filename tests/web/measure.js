// What tests ask of a page: contrast by the colours that the browser computed, and what is cut off.

const view = document.querySelector(".wb-view");
const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });

function rgba(colour) {
  pen.clearRect(0, 0, 1, 1);
  pen.fillStyle = colour;
  pen.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
}

const over = ([r, g, b, a], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a), 1];
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);

function ratio(one, other) {
  const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
}

// A colour of the palette as it is here.
function named(name, alpha = 1) {
  const probe = document.createElement("i");
  probe.style.color = `var(--wb-${name})`;
  view.append(probe);
  const [r, g, b] = rgba(getComputedStyle(probe).color);
  probe.remove();
  return [r, g, b, alpha];
}

const upwards = (one) => (one ? [one, ...upwards(one.parentElement)] : []);
const opacity = (one) => upwards(one).reduce((all, at) => all * Number(getComputedStyle(at).opacity), 1);
const seen = (one) => one.checkVisibility({ visibilityProperty: true }) && one.getBoundingClientRect().width > 0;
const className = (one) => one.className.baseVal ?? one.className;
const drawnOver = (colour, alpha, back) => ratio(over([...colour.slice(0, 3), colour[3] * alpha], back), back);

function ground(one) {
  let found = named("page");
  for (const at of upwards(one).reverse()) found = over(rgba(getComputedStyle(at).backgroundColor), found);
  return one.closest(".wb-in") ? over(named("ink", 0.06), found) : found;
}

// Contrast, class, text of everything that says something, and whether it is a sign rather than a text.
function texts() {
  const found = [];
  for (const one of view.querySelectorAll("*")) {
    const own = [...one.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const field = one.matches("input:not([type=checkbox])"), svg = one.closest("svg");
    if (!(own || field) || !seen(one) || one.matches("style, option, title") || one.closest(":disabled")) continue;
    const style = getComputedStyle(one, field ? "::placeholder" : null);
    let back = ground(svg ? svg.parentElement : one);
    if (one.closest(".wb-flags")) back = named("ink");
    if (svg && one.matches(".wb-is-accepted")) back = over(named("accepted", 0.2), back);
    if (svg && one.matches(".wb-is-rejected")) back = over(named("rejected", 0.16), back);
    const contrast = drawnOver(rgba(svg ? style.fill : style.color), opacity(one), back);
    found.push([contrast, className(one), one.textContent.slice(0, 20), one.matches(".wb-sign, .wb-nl")]);
  }
  return found;
}

// The best contrast of each hue in each part of what is drawn: an area may be faint where a line stands at its edge.
function marks() {
  const best = new Map(), page = named("page"), panel = named("panel"), grounds = ["page", "panel", "line", "edge"];
  const put = (key, value) => best.set(key, Math.max(best.get(key) ?? 0, value));
  for (const one of view.querySelectorAll("svg :is(path, rect, circle)")) {
    const style = getComputedStyle(one), tree = one.closest(".wb-tree");
    if (one.closest("defs, .wb-icon") || one.getAttribute("d") === "") continue;
    const group = [...one.ownerSVGElement.querySelectorAll(":scope > g")].findIndex((each) => each.contains(one));
    for (const kind of ["fill", "stroke"]) {
      const hue = /^var\(--wb-(\w+)\)$/.exec(one.getAttribute(kind) ?? "")?.[1];
      if (!hue || grounds.includes(hue)) continue;
      const alpha = opacity(one) * Number(style[`${kind}Opacity`]);
      put(`${tree ? "tree" : `group ${group}`} ${hue}`, drawnOver(rgba(style[kind]), alpha, tree ? panel : page));
    }
  }
  for (const name of ["accepted", "bonus", "resampled"]) {
    const one = view.querySelector(`.wb-token.wb-${name}:not(.wb-breaks)`);
    if (!one) continue;
    const { backgroundClip, borderBottomColor } = getComputedStyle(one);
    put(`underline ${name}`, drawnOver(rgba(borderBottomColor), opacity(one), backgroundClip === "padding-box" ? page : ground(one)));
  }
  for (const one of view.querySelectorAll(".wb-bar :is(u, s, b)")) {
    const style = getComputedStyle(one), colour = one.matches("u") ? style.borderTopColor : style.backgroundColor;
    put(`bar ${one.tagName}`, drawnOver(rgba(colour), opacity(one), panel));
  }
  for (const one of view.querySelectorAll("button:not(:disabled) .wb-icon")) {
    const button = one.parentElement;
    put(`icon ${button.className}`, drawnOver(rgba(getComputedStyle(one).color), opacity(one), ground(button)));
  }
  return [...best];
}

// What is wider than the view, and controls of which a part is hidden. What scrolls sideways by design is left out.
function cut() {
  const frame = view.getBoundingClientRect(), wide = [], hidden = [];
  const name = (one) => `${one.tagName} .${className(one)}: ${one.textContent.slice(0, 20)}`;
  const outside = (box, edge) => box.left < edge.left - 1 || box.right > edge.right + 1;
  for (const one of view.querySelectorAll("*")) {
    if (!seen(one) || one.closest(".wb-unseen")) continue;
    const inside = upwards(one.parentElement).filter((at) => view.contains(at) && at !== view);
    const clips = inside.filter((at) => getComputedStyle(at).overflowX !== "visible"), box = one.getBoundingClientRect();
    if (!clips.length && outside(box, frame)) wide.push(name(one));
    if (!one.matches("button, select, input, summary, output")) continue;
    const edges = clips.filter((at) => !at.matches(".wb-scroll, .wb-runs")).map((at) => at.getBoundingClientRect());
    const short = one.matches("button, output") && one.scrollWidth > one.clientWidth + 1;
    if (short || edges.some((edge) => outside(box, edge))) hidden.push(name(one));
  }
  return [wide, hidden];
}

// The timeline as a PNG: its drawings with the colours that they have on the page, maps in their places, words beside it.
const STYLES = ["fill", "fill-opacity", "stroke", "stroke-opacity", "stroke-width", "stroke-dasharray", "opacity", "font-family", "font-size", "font-weight", "text-anchor", "paint-order", "display"];
const UNFIT = /[\0-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]/g; // for XML
const picture = async (timeline, name) => {
  document.querySelector("#tabs [role=tab]")?.click(); // where it is seen
  await new Promise((drawn) => { setTimeout(drawn, 100); });
  const whole = timeline.getBoundingClientRect(), canvas = document.createElement("canvas"), pen = canvas.getContext("2d"), sharp = 2;
  [canvas.width, canvas.height] = [whole.width * sharp, whole.height * sharp];
  pen.scale(sharp, sharp);
  pen.fillStyle = getComputedStyle(timeline.closest(".wb-view")).backgroundColor;
  pen.fillRect(0, 0, whole.width, whole.height);
  const place = (one) => { const { left, top, width, height } = one.getBoundingClientRect(); return [left - whole.left, top - whole.top, width, height]; };
  for (const one of timeline.querySelectorAll(".wb-plot > :is(svg, canvas)")) {
    let image = one;
    if (one.tagName !== "CANVAS") {
      const copy = one.cloneNode(true), copies = copy.querySelectorAll("*");
      one.querySelectorAll("*").forEach((part, k) => {
        const style = getComputedStyle(part);
        copies[k].setAttribute("style", STYLES.map((known) => `${known}:${style.getPropertyValue(known)}`).join(";"));
      });
      image = new Image();
      const text = new XMLSerializer().serializeToString(copy).replace(UNFIT, "\ufffd");
      image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
      await image.decode();
    }
    pen.drawImage(image, ...place(one));
  }
  pen.textBaseline = "top";
  for (const part of timeline.querySelectorAll(".wb-gutter :is(.wb-axis-name, b, .wb-big, small)")) {
    const style = getComputedStyle(part), [left, top] = place(part);
    [pen.font, pen.fillStyle] = [`${style.fontWeight} ${style.fontSize} ${style.fontFamily}`, style.color];
    pen.fillText(part.textContent, left, top);
  }
  const link = document.createElement("a");
  [link.href, link.download] = [canvas.toDataURL("image/png"), `${name}.png`];
  link.click();
};

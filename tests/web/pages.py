"""What tests of the view in a real Chromium share: finding things in a page, waiting, the page's own time."""

import time
from types import SimpleNamespace
from typing import Any

from tests.conftest import PATIENCE
from workbench import web

__all__ = [
    "SIZES",
    "TOKEN",
    "at",
    "close",
    "clock",
    "drag",
    "mount",
    "open_file",
    "sideways",
    "tracks",
    "until",
    "x_of",
]

TOKEN = ".wb-token[role=option]"
SIZES = {"laptop": (1440, 900), "screen": (1920, 1080), "phone": (390, 844)}
AT = """token => [
  document.querySelector('.wb-tokens').getAttribute('aria-activedescendant'),
  [...document.querySelectorAll(`${token}[aria-selected=true]`)].map((one) => [one.id, one.dataset.index]),
]"""
MOUNT = """async ([source, css, data, options]) => {
  const { mount } = await import(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })));
  window.acts = [];
  const onAct = options.live ? { onAct: (name, more) => acts.push({ act: name, ...more }) } : {};
  window.view = mount(document.getElementById('place'), { data, css, ...onAct, ...options });
}"""


def open_file(chromium, path, size: str = "laptop", **options) -> Any:
    """A file in a window; `page.seen` holds its requests and errors."""
    width, height = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, **options)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.seen = SimpleNamespace(requests=[], errors=[], own=path.as_uri())
    page.on("request", lambda request: page.seen.requests.append(request.url))
    page.on("pageerror", lambda error: page.seen.errors.append(str(error)))
    page.on("console", lambda line: line.type == "error" and page.seen.errors.append(line.text))
    page.goto(page.seen.own)
    page.wait_for_selector(".wb-view")
    return page


def mount(chromium, data: dict, size: str = "laptop", live: bool = True, scheme: str = "light", **options) -> Any:
    """The view in an empty page; what it asks of an engine is listed in the page's `acts`."""
    width, height = SIZES[size] if isinstance(size, str) else size
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    page.seen = SimpleNamespace(requests=[], errors=[], own=None)
    page.on("pageerror", lambda error: page.seen.errors.append(str(error)))
    look = f":root {{ color-scheme: light dark; {web.variables()} }} body {{ margin: 0; background: var(--wb-page) }}"
    page.set_content(f"<!doctype html><style>{look}</style><div id=place></div>")
    page.evaluate(MOUNT, [web.module(), web.css(), data, {"live": live, **options}])
    return page


def close(page) -> None:
    """Close the window; nothing else was asked for, no script failed, no policy was broken."""
    seen = page.seen
    page.context.close()
    assert not seen.errors and (seen.own is None or seen.requests == [seen.own])


def at(page) -> int | None:
    """The token at the cursor, as the list says it."""
    name, chosen = page.evaluate(AT, TOKEN)
    assert [one for one, _ in chosen] == ([] if name is None else [name])
    return int(chosen[0][1]) if chosen else None


def tracks(page) -> list[str]:
    """Names of the tracks that are shown."""
    return page.locator(".wb-gutter [data-track]").evaluate_all("all => all.map((one) => one.dataset.track)")


def x_of(page, i: int, n: int) -> float:
    """Where the middle of a token is in the timeline of n tokens, in the window."""
    left, right = page.locator(".wb-decoded").evaluate(
        "path => { const box = path.getBoundingClientRect(); return [box.left, box.right]; }"
    )
    return left + (i + 0.5) * (right - left) / n


def drag(page, first: int, last: int, n: int) -> None:
    """Press at a token of the timeline and let go at another."""
    box = page.locator(".wb-plot").bounding_box()
    y = box["y"] + 80
    page.mouse.move(x_of(page, first, n), y)
    page.mouse.down()
    page.mouse.move(x_of(page, (first + last) / 2, n), y, steps=3)
    page.mouse.move(x_of(page, last, n), y, steps=3)
    page.mouse.up()


def sideways(page) -> int:
    """How far the page scrolls sideways, in px."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def until(holds) -> None:
    """Wait for something; the page's policy lets no waiting function in."""
    end = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < end, "nothing happened"


def clock(page):
    """spent() -> ms of the page's own processor time so far, however busy the machine is."""
    meter = page.context.new_cdp_session(page)
    meter.send("Performance.enable", {"timeDomain": "threadTicks"})

    def spent() -> float:
        measured = {one["name"]: one["value"] for one in meter.send("Performance.getMetrics")["metrics"]}
        return 1000 * measured["TaskDuration"]

    return spent

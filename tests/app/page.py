"""What tests do to the app's page in Chromium: settings, runs, waits."""

from playwright.sync_api import TimeoutError

from tests.conftest import PATIENCE

TOKEN = ".wb-token[role=option]"
NUMBER = "number input for max new tokens"


def holds_soon(page, condition: str, value=None, soon: int = 10_000) -> bool:
    """Whether a condition comes to hold in a while (ms); where not, something is done again."""
    try:
        page.wait_for_function(condition, arg=value, timeout=soon)
    except TimeoutError:
        return False
    return True


def says(page, text: str, place: str = "#status") -> None:
    holds = "([place, text]) => document.querySelector(place)?.innerText.includes(text)"
    page.wait_for_function(holds, arg=[place, text], timeout=PATIENCE)


def tokens(page, count: int) -> None:
    there = f"count => document.querySelectorAll('{TOKEN}').length >= count"
    page.wait_for_function(there, arg=count, timeout=PATIENCE)


def cursor(page) -> int:
    return int(page.locator(f"{TOKEN}[aria-selected=true]").get_attribute("data-index"))


def open_group(page, group: str) -> None:
    """Open the drawer at a group, by its chip."""
    page.click(f".wb-setting[aria-label^='{group}:']")
    page.wait_for_selector(f"#of-{group.lower()} button.label-wrap.open")


def close_drawer(page) -> None:
    page.keyboard.press("Escape")
    page.wait_for_selector("body:not(.wb-drawn)")


def fill(page, group: str, field, text: str, chip: str) -> None:
    """Open the drawer and fill a field until the chip of its group says so: what is typed while the page is still
    unfolding a panel is not taken."""
    open_group(page, group)
    said = "([group, text]) => document.querySelector(`.wb-setting[aria-label^='${group}:']`).innerText.includes(text)"
    for _ in range(12):
        field.fill(text)
        field.press("Tab")
        if holds_soon(page, said, [group, chip]):
            return
    raise AssertionError(f"{group} never said {chip}")


def settle(page, tokens: int | None = None, prompt: str | None = None) -> None:
    """Set the number of new tokens and the prompt."""
    if prompt is not None:
        fill(page, "Prompt", page.locator("#prompt textarea"), prompt, prompt.split()[0][:20])
        close_drawer(page)
    if tokens is not None:
        fill(page, "Limits", page.get_by_label(NUMBER), str(tokens), f"{tokens} tokens")
        close_drawer(page)


def start(page, tokens: int | None = None, prompt: str | None = None, button: str = ".wb-go") -> None:
    """Open a further run, decoded at once, or with the button `.wb-start` not yet."""
    settle(page, tokens, prompt)
    before = page.locator(".wb-chip").count()
    page.click(button)
    page.wait_for_function("n => document.querySelectorAll('.wb-chip').length > n", arg=before, timeout=PATIENCE)


def run(page, tokens: int | None = None, prompt: str | None = None) -> None:
    """Open a run and decode it to its end."""
    start(page, tokens, prompt)
    says(page, "Ended: length")

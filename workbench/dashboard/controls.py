"""Controls made from declarations: a dropdown per family, and one control per declared parameter of every member.

All members' controls are built once; choosing a member shows its group. A decoder, drafter, shape or verifier of
another package appears here with no edit.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import gradio as gr

from workbench import declare
from workbench.declare import Field

__all__ = ["MemberControls", "control", "show_group"]

Path = tuple[str, ...]  # ("decoder", "speculative", "drafter", "copyspec", "gram"): families and members in turn
WIDEST_SLIDER = 64


def control(entry: Field, **options: Any) -> gr.components.Component:
    """The control of one parameter; an empty number means "off" where the parameter is optional."""
    note = entry.help + (f" ({entry.unit})" if entry.unit else "")
    common = {"label": entry.name.replace("_", " "), "info": note, **options}
    if entry.kind == "bool":
        return gr.Checkbox(entry.default, **common)
    if entry.kind == "choice":
        return gr.Dropdown(list(entry.choices), value=entry.default, **common)
    if entry.kind == "list":
        return gr.Textbox(", ".join(map(str, entry.default or ())), **common)
    if entry.kind == "str":
        return gr.Textbox(entry.default or "", **common)
    whole = entry.kind == "int"
    low, high = (entry.ge if entry.ge is not None else entry.gt), (entry.le if entry.le is not None else entry.lt)
    if not entry.optional and low is not None and high is not None and high - low <= WIDEST_SLIDER:
        step = 1 if whole else 0.01 if high - low <= 1 else 0.1
        return gr.Slider(low, high, entry.default, step=step, **common)
    if entry.optional:
        common["placeholder"] = "off"
    return gr.Number(entry.default, precision=0 if whole else None, step=1 if whole else 0.1, **common)


class MemberControls:
    """The dropdown of a family and, below it, the controls of every member's parameters, nested members included.

    `components` are Gradio components in the order in which `read` expects their values.
    """

    def __init__(self, family: str, label: str, default: str, about: str = ""):
        self.family = family
        self.paths: list[Path] = []
        self.components: list[gr.components.Component] = []
        self.members: set[Path] = set()
        self._choose((family,), family, label, default, optional=False, about=about)

    def _choose(self, path: Path, family: str, label: str, default: str, optional: bool, about: str) -> None:
        known = declare.names(family)
        choices = [("default", ""), *((name, name) for name in known)] if optional else [(name, name) for name in known]
        chooser = gr.Dropdown(choices, value=default, label=label.replace("_", " "), info=about or None)
        self.members.add(path)
        self._add(path, chooser)
        groups = []
        for name in known:
            cls = declare.get(family, name)
            with gr.Column(visible=name == default, elem_classes="wb-nested", min_width=0) as group:
                if len(path) == 1:
                    gr.Markdown((cls.__doc__ or "").strip().split("\n")[0], elem_classes="wb-about")
                for entry in declare.describe(cls):
                    self._parameter((*path, name, entry.name), entry)
            groups.append(group)
        show = partial(show_group, known)
        chooser.change(show, chooser, groups, queue=False, show_progress="hidden", api_visibility="private")

    def _parameter(self, path: Path, entry: Field) -> None:
        if entry.kind == "member":
            default = "" if entry.default is None else entry.default.declared_name
            self._choose(path, entry.family, entry.name, default, entry.optional, entry.help)
        else:
            self._add(path, control(entry))

    def _add(self, path: Path, component: gr.components.Component) -> None:
        self.paths.append(path)
        self.components.append(component)

    def read(self, values: list[Any]) -> Any:
        """The declared object that the controls' values describe. Raises BadInput where a value does not fit."""
        named = dict(zip(self.paths, values, strict=True))
        return declare.build(self.family, named[(self.family,)], self._flat(named, (self.family,)))

    def _flat(self, named: Mapping[Path, Any], path: Path) -> dict[str, Any]:
        """Parameters of the member chosen at `path`, dots reaching into nested members."""
        flat: dict[str, Any] = {}
        for place, value in named.items():
            if place[:-1] != (*path, named[path]):
                continue
            if place not in self.members:
                flat[place[-1]] = value
            elif value:
                flat[place[-1]] = value
                flat |= {f"{place[-1]}.{name}": inner for name, inner in self._flat(named, place).items()}
        return flat


def show_group(names: list[str], chosen: str) -> Any:
    """Show the controls of the chosen member, hide the others'."""
    updates = [gr.update(visible=name == chosen) for name in names]
    return updates if len(updates) > 1 else updates[0]

"""Controls made from declarations: a dropdown per family, and one control per declared parameter of every member.

All members' controls are built once; choosing a member shows its group. A member made of others of its own family is
offered at the top, not within such a member. A decoder, drafter, policy or quantizer of
another package appears here with no edit.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import gradio as gr

from workbench import declare
from workbench.declare import Declared, Field
from workbench.errors import BadInput

__all__ = ["MemberControls", "control", "show_group"]

Path = tuple[str, ...]  # ("decoder", "speculative", "drafter", "copyspec", "ngram"): families and members in turn
WIDEST_SLIDER = 64


def shown_value(entry: Field, value: Any) -> Any:
    """A parameter's value as its control holds it."""
    if entry.kind in ("list", "texts"):
        return ", ".join(map(str, value or ()))
    return "" if value is None and _text(entry) else value


def _text(entry: Field) -> bool:
    return entry.kind in ("str", "list", "texts")


def control(
    entry: Field, models: Sequence[str] = (), anything: bool = True, widest: float = WIDEST_SLIDER, **options: Any
) -> gr.components.Component:
    """The control of one parameter; an empty number means "off" where the parameter is optional.

    models: names offered where the parameter is a model's; `anything`: the owner sits there, who may set everything.
    widest: the widest range that is a slider.
    """
    note = entry.help + (f" ({entry.unit})" if entry.unit else "")
    common = {"label": entry.name.replace("_", " "), "info": note, **options}
    if entry.trust == "owner" and not entry.model and not anything:
        common["interactive"] = False
    value = shown_value(entry, entry.default)
    if entry.kind == "bool":
        return gr.Checkbox(value, **common)
    if entry.kind == "choice":
        return gr.Dropdown(list(entry.choices), value=value, **common)
    if entry.model:
        return gr.Dropdown(list(dict.fromkeys([value, *models])), value=value, allow_custom_value=anything, **common)
    if _text(entry):
        return gr.Textbox(value, max_lines=1, **common)
    whole = entry.kind == "int"
    low, high = (entry.ge if entry.ge is not None else entry.gt), (entry.le if entry.le is not None else entry.lt)
    if not entry.optional and low is not None and high is not None and high - low <= widest:
        step = 1 if whole else 0.01 if high - low <= 1 else 0.1
        return gr.Slider(low, high, value, step=step, **common)
    if entry.optional:
        common["placeholder"] = "off"
    return gr.Number(value, precision=0 if whole else None, step=1 if whole else 0.1, **common)


class MemberControls:
    """The dropdown of a family and, below it, the controls of every member's parameters, nested members included.

    `components` are Gradio components in the order in which `read` expects, and `values` gives, their values.
    default: the member chosen at first; None offers, and chooses, no member, under the name `nothing`.
    """

    def __init__(
        self,
        family: str,
        label: str,
        default: str | None,
        about: str = "",
        models: Sequence[str] = (),
        anything: bool = True,
        nothing: str = "default",
    ):
        self.family = family
        self.nothing = nothing
        self.models, self.anything = models, anything
        self.default = default
        self.paths: list[Path] = []
        self.components: list[gr.components.Component] = []
        self.members: set[Path] = set()
        self._choose((family,), family, label, default or "", optional=default is None, about=about, above=())

    def _choose(
        self, path: Path, family: str, label: str, default: str, optional: bool, about: str, above: tuple[str, ...]
    ) -> None:
        """A choice of a member, and the controls of each; `above`: the families of the choices it lies within."""
        known = [name for name in declare.names(family) if family not in above or not _nests(family, name)]
        choices = (
            [(self.nothing, ""), *((name, name) for name in known)] if optional else [(name, name) for name in known]
        )
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
                    self._parameter((*path, name, entry.name), entry, (*above, family))
            groups.append(group)
        show = partial(show_group, known)
        chooser.change(show, chooser, groups, queue=False, show_progress="hidden", api_visibility="private")

    def _parameter(self, path: Path, entry: Field, above: tuple[str, ...]) -> None:
        if entry.kind == "member":
            default = "" if entry.default is None else entry.default.declared_name
            self._choose(path, entry.family, entry.name, default, entry.optional, entry.help, above)
        else:
            self._add(path, control(entry, self.models, self.anything))

    def _add(self, path: Path, component: gr.components.Component) -> None:
        self.paths.append(path)
        self.components.append(component)

    def read(self, values: Sequence[Any]) -> Any:
        """The declared object that the controls' values describe, None where there is none.

        Raises BadInput where a value does not fit, and, before anything is made, where only the owner may set it.
        """
        named = dict(zip(self.paths, values, strict=True))
        if not (name := named[(self.family,)]):
            return None
        flat = self._flat(named, (self.family,))
        if not self.anything and (kept := declare.owner_only(self.family, name, flat, self.models)):
            raise BadInput(f"{', '.join(kept)}: only the owner of this app may set that; run your own: workbench app")
        return declare.build(self.family, name, flat)

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

    def values(self, member: Declared | None) -> list[Any]:
        """The controls' values that describe a declared object; those of members not chosen are the defaults."""
        known = dict(zip(self.paths, (component.value for component in self.components), strict=True))
        known[(self.family,)] = member.declared_name if member is not None else ""
        return list({**known, **dict(_written((self.family,), member))}.values())


def _nests(family: str, name: str) -> bool:
    """Whether a member takes another of its own family: offered once, not within itself."""
    return any(
        entry.kind == "member" and entry.family == family for entry in declare.describe(declare.get(family, name))
    )


def _written(path: Path, member: Declared | None) -> Iterator[tuple[Path, Any]]:
    yield path, member.declared_name if member is not None else ""
    for entry in declare.describe(type(member)) if member is not None else ():
        place, value = (*path, member.declared_name, entry.name), getattr(member, entry.name)
        if entry.kind == "member":
            yield from _written(place, value)
        else:
            yield place, shown_value(entry, value)


def show_group(names: list[str], chosen: str) -> Any:
    """Show the controls of the chosen member, hide the others'."""
    updates = [gr.update(visible=name == chosen) for name in names]
    return updates if len(updates) > 1 else updates[0]

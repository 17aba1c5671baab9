"""Controls made from declarations: a dropdown per family, and one control per declared parameter of every member.

All members' controls are built once; choosing a member shows its group. A member made of others of its own family is
offered at the top, not within such a member. A member of another package appears here with no edit.
"""

from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import gradio as gr

from workbench import declare
from workbench.declare import Declared, Field
from workbench.errors import BadInput

Path = tuple[str, ...]  # ("decoder", "speculative", "drafter", "copyspec", "ngram"): families and members in turn
WIDEST_SLIDER = 64


def shown_value(entry: Field, value: Any) -> Any:
    """A parameter's value as its control holds it."""
    if entry.kind in ("list", "texts"):
        return ", ".join(map(str, value or ()))
    if _optional_number(entry):
        return "" if value is None else str(value)
    return "" if value is None and _text(entry) else value


def meant(entry: Field, value: Any) -> Any:
    """The parameter's value that a control's value stands for; a number that cannot be read is left to be refused."""
    if not _optional_number(entry) or not isinstance(value, str):
        return value
    try:
        return (int if entry.kind == "int" else float)(value) if value.strip() else None
    except ValueError:
        return value


def _text(entry: Field) -> bool:
    return entry.kind in ("str", "list", "texts") or _optional_number(entry)


def _optional_number(entry: Field) -> bool:
    """A field for numbers takes an empty one for 0 once it is drawn, so these are texts."""
    return entry.optional and entry.kind in ("int", "float") and not entry.choices


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
    if entry.kind == "choice" or entry.model:
        offered = list(entry.choices) or list(dict.fromkeys([value, *models]))
        return gr.Dropdown(offered, value=value, allow_custom_value=bool(entry.model) and anything, **common)
    if _text(entry):
        lines = 8 if entry.kind == "str" and entry.trust == "visitor" else 1
        return gr.Textbox(value, max_lines=lines, placeholder="off" if _optional_number(entry) else None, **common)
    whole = entry.kind == "int"
    low, high = (entry.ge if entry.ge is not None else entry.gt), (entry.le if entry.le is not None else entry.lt)
    if low is not None and high is not None and high - low <= widest:
        step = 1 if whole else 0.01 if high - low <= 1 else 0.1
        return gr.Slider(low, high, value, step=step, **common)
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
        self.family, self.nothing, self.models, self.anything = family, nothing, models, anything
        self.paths: dict[Path, Field | None] = {}  # the parameter there; None where a member is chosen
        self.choices: dict[Path, tuple[str, list[str]]] = {}  # where a member is chosen: the family, what is offered
        self.components: list[gr.components.Component] = []
        self.groups: list[tuple[gr.Dropdown, list[str], list[gr.Column]]] = []
        self._choose((family,), family, label, default or "", default is None, about)

    def _choose(
        self, path: Path, family: str, label: str, default: str, optional: bool, about: str, above: tuple[str, ...] = ()
    ) -> None:
        """A choice of a member, and the controls of each; `above`: the families of the choices it lies within."""
        known = [name for name in declare.names(family) if family not in above or not _nests(family, name)]
        choices = [(self.nothing, "")] * optional + [(name, name) for name in known]
        named = {"label": label.replace("_", " "), "info": about or None, "elem_id": _element(path)}
        chooser = gr.Dropdown(choices, value=default, **named)
        self._add(path, None, chooser)
        self.choices[path] = (family, known)
        groups = []
        self.groups.append((chooser, known, groups))
        for name in known:
            cls = declare.get(family, name)
            with gr.Column(visible=name == default, elem_classes="wb-nested", min_width=0) as group:
                if len(path) == 1:
                    gr.Markdown((cls.__doc__ or "").strip().split("\n")[0], elem_classes="wb-about")
                for entry in (one for one in declare.describe(cls) if one.kind != "object"):  # Python's alone
                    place = (*path, name, entry.name)
                    if entry.kind == "member":
                        first = "" if entry.default is None else entry.default.declared_name
                        within = (*above, family)
                        self._choose(place, entry.family, entry.name, first, entry.optional, entry.help, within)
                    else:
                        self._add(place, entry, control(entry, self.models, self.anything))
            groups.append(group)
        show = partial(show_group, known)
        chooser.change(show, chooser, groups, queue=False, show_progress="hidden", api_visibility="private")

    def _add(self, path: Path, entry: Field | None, component: gr.components.Component) -> None:
        self.paths[path] = entry
        self.components.append(component)

    def read(self, values: Sequence[Any]) -> Any:
        """The declared object that the controls' values describe, None where there is none.

        Raises BadInput where a value does not fit, and, before anything is made, where only the owner may set it.
        """
        named = dict(zip(self.paths, values, strict=True))
        if not (name := named[(self.family,)]):
            return None
        flat = {}
        for path, value in named.items():
            if _chosen(named, path) and len(path) > 1 and (value or self.paths[path] is not None):
                entry = self.paths[path]
                flat[_key(path)] = value if entry is None else meant(entry, value)
        if not self.anything and (kept := declare.owner_only(self.family, name, flat, self.models)):
            raise BadInput(f"{', '.join(kept)}: only the owner of this app may set that; run your own: workbench app")
        return declare.build(self.family, name, flat)

    def refused(self, values: Sequence[Any]) -> dict[str, dict[str, str]]:
        """What cannot be chosen beside the rest: element id of a choice -> name -> why. Nothing where the rest itself
        does not fit."""
        found: dict[str, dict[str, str]] = {}
        named = dict(zip(self.paths, values, strict=True))
        if self._why_not(values):
            return found
        for place, path in enumerate(self.paths):
            family, offered = self.choices.get(path, ("", ())) if _chosen(named, path) else ("", ())
            for name in offered:
                why = self._why_not([*values[:place], name, *values[place + 1 :]])
                if why and _complete(family, name):
                    found.setdefault(_element(path), {})[name] = why
        return found

    def _why_not(self, values: Sequence[Any]) -> str:
        try:
            self.read(values)
        except BadInput as why:
            return str(why)
        return ""

    def values(self, member: Declared | None, defaults: Mapping[int, Any]) -> list[Any]:
        """The controls' values that describe a declared object; those of members not chosen are the defaults, which are
        given by the `id` of the control."""
        flat = {} if member is None else {"": member.declared_name, **declare.flatten(member)}
        found = []
        for (path, entry), component in zip(self.paths.items(), self.components, strict=True):
            if len(path) > 1 and any(flat.get(_key(path[:place])) != path[place] for place in range(1, len(path), 2)):
                found.append(defaults[id(component)])
            else:
                value = flat.get(_key(path))
                found.append(value or "" if entry is None else shown_value(entry, value))
        return found


def _key(path: Path) -> str:
    """A parameter's name among flat values: dots reach into nested members."""
    return ".".join(path[2::2])


def _element(path: Path) -> str:
    """The element id of a choice of a member."""
    return "-".join(("choose", *path))


def _chosen(named: Mapping[Path, Any], path: Path) -> bool:
    """Whether the members that a path leads through are those chosen."""
    return all(named[path[:place]] == path[place] for place in range(1, len(path), 2))


@cache
def _complete(family: str, name: str) -> bool:
    """Whether a member needs nothing more to be chosen."""
    try:
        declare.build(family, name)
    except BadInput:
        return False
    return True


def _nests(family: str, name: str) -> bool:
    """Whether a member takes another of its own family: offered once, not within itself."""
    return any(entry.family == family for entry in declare.describe(declare.get(family, name)))


def show_group(names: list[str], chosen: str) -> Any:
    """Show the controls of the chosen member, hide the others'."""
    updates = [gr.update(visible=name == chosen) for name in names]
    return updates if len(updates) > 1 else updates[0]

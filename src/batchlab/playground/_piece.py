"""A piece: its name and settings, the ES module that draws it, and how Jupyter and the book's pages show it."""

import base64
import html
import json
import re
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from batchlab._check import count, fail, number, one_of

PAGE = Path(__file__).with_name("page")
MIME = "application/vnd.batchlab.playground+json"  # of a stored output: which piece a page is to show
BOUNDS = ("above", "at_least", "below", "at_most")


@cache
def pieces():
    """What there is: {name: {"title", "settings", "presets"}}, the file that JavaScript reads too."""
    return json.loads((PAGE / "pieces.json").read_text(encoding="utf-8"))


def settled(name, given):
    """Return every setting of a piece: those given, checked, then those of the preset, then the defaults."""
    specs, presets = pieces()[one_of("piece", name, tuple(pieces()))]["settings"], pieces()[name].get("presets", {})
    for key, value in given.items():
        if key not in specs:
            fail("settings", key, "one of " + ", ".join(specs))
        _checked(key, value, specs[key], presets)
    found = {key: spec["default"] for key, spec in specs.items()} | given
    if presets:
        measured = [key for key in next(iter(presets.values())) if key in specs]
        if "preset" not in given and set(measured) & set(given):
            found["preset"] = "own"
        elif found["preset"] != "own":
            found |= {key: presets[found["preset"]][key] for key in measured if key not in given}
            if any(found[key] != presets[found["preset"]][key] for key in measured):
                fail("preset", found["preset"], "'own' with numbers that are not the preset's")
    return found


def _checked(name, value, spec, presets):
    bounds = {bound: spec[bound] for bound in BOUNDS if bound in spec}
    if "choices" in spec:
        one_of(name, value, [*spec["choices"], *(presets if name == "preset" else ())])
    elif spec.get("whole"):
        count(name, value, **bounds)
    elif not (value is None and spec.get("optional")):
        number(name, value, **bounds)


@cache
def source(name):
    """Return the ES module of a piece, whole: what the pieces share, what there is to set, then the piece itself.

    It imports nothing, so that a page opened from a disk, a notebook and a test can all hold it. Its default export
    is anywidget's: {render({model, el})}.
    """
    shared, own = ((PAGE / f"{part}.js").read_text(encoding="utf-8") for part in ("shared", name))
    told = json.dumps(pieces()[name], ensure_ascii=False, separators=(",", ":"))
    return f"{shared}\nconst PIECE = {told};\n\n" + re.sub(r'^import .* from "./shared.js";\n', "", own, flags=re.M)


@cache
def style():
    """Return the style sheet of all pieces."""
    return (PAGE / "playground.css").read_text(encoding="utf-8")


def embedded(name, settings):
    """Return the HTML of the place in a page where ``script`` will show the piece."""
    told = html.escape(json.dumps(settled(name, settings), ensure_ascii=False))
    return f'<div class="playground" data-piece="{name}" data-settings="{told}"></div>'


def script(name):
    """Return the HTML of the script that shows every piece of this name in a page."""
    places = f"document.querySelectorAll('.playground[data-piece=\"{name}\"]')"
    start = f"for (const el of {places}) render({{ el, model: addressed(el) }});"
    return f'<script type="module">\n{source(name)}\n{start}\n</script>'


@dataclass(eq=False)
class Piece:
    """A piece of the playground, shown at the end of a cell; ``settings`` holds every setting by name.

    Where it moves, ``settings`` follows the reader: read them in the next cell.
    """

    name: str
    given: dict

    def __post_init__(self):
        self._settings, self._widget = settled(self.name, self.given), None

    @property
    def settings(self):
        return dict(self._widget.settings if self._widget else self._settings)

    def __repr__(self):
        made = {"target": "time_to_target", "change": "change_batch"}.get(self.name, self.name)
        return f"{made}({', '.join(f'{key}={value!r}' for key, value in self.settings.items())})"

    def _repr_mimebundle_(self, include=None, exclude=None):
        from batchlab.playground import _figures

        picture = base64.b64encode(_figures.png(self.name, self.settings)).decode()
        bundle = {"text/plain": repr(self), "image/png": picture, MIME: {"piece": self.name, "settings": self.settings}}
        if find_spec("anywidget"):
            self._widget = self._widget or _widget(self.name, self._settings)
            shown = self._widget._repr_mimebundle_()
            bundle |= {kind: what for kind, what in (shown[0] if isinstance(shown, tuple) else shown).items()
                       if kind != "text/plain"}  # fmt: skip
        return bundle


def _widget(name, settings):
    import anywidget
    import traitlets

    class Playground(anywidget.AnyWidget):
        _esm = source(name)
        _css = style()
        settings = traitlets.Dict().tag(sync=True)

    return Playground(settings=settings)

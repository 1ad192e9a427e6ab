"""The layers of a PDF (optional content): which of them are on. Loaded in render children only.

A sheet shows what a viewer shows when it opens the document: the default configuration, for viewing. PDFium differs from the specification
in these points, tried with 159.0.8149:

1. It obeys the view state in a layer's usage dictionary, though no entry of ``/AS`` asks for it.
2. It takes the first alternate configuration with the intent View instead of the default one.
3. It draws each layer that has no intent View, though the configuration may be for all intents.
4. It does not read the policy of a membership dictionary that names one layer without an array; ``survey`` finds these.

So a document whose layers PDFium would take otherwise, or whose layers the upload switches, is written anew into memory with a
configuration without such entries. All other documents are left alone.

The numbers of sections are those of ISO 32000-1:
https://opensource.adobe.com/dc-acrobat-sdk-docs/standards/pdfstandards/pdf/PDF32000_2008.pdf
"""

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pikepdf
from pikepdf import Array, Dictionary, Name, Stream

from activities.bucket.records import LAYER_CHARACTERS, Layer, Note
from activities.render.titles import clean_title

MOST_LAYERS = 10_000
"""Layers of a document that are looked at; a document with more counts as one without layers."""

MOST_NESTED_EXPRESSIONS = 32
"""Visibility expressions within one another; PDFium reads as many."""

MOST_NAMES = 5
"""Layers that a note names."""

STATES = {"/View": "/ViewState", "/Print": "/PrintState", "/Export": "/ExportState"}
"""The categories of usage that give a state, and its entry. Zoom, language and user depend on who looks, so they are left alone."""

VIEW = {"/View", "/All"}
"""The intents of a layer or a configuration that is for viewing."""

Identity = tuple[int, int]
"""Object number and generation."""


@dataclass(frozen=True)
class Layers:
    """The layers of an open document.

    Args:
        layers: By identity, in the order of the document's list.
        unknown: The names of the upload's option that no layer has.
        is_changed: Whether PDFium would draw other layers than these.
    """

    layers: Mapping[Identity, Layer]
    unknown: tuple[str, ...] = ()
    is_changed: bool = False

    @property
    def notes(self) -> tuple[Note, ...]:
        """Notes on names that no layer has."""
        if not self.unknown:
            return ()
        names = ", ".join(self.unknown[:MOST_NAMES]) + (f" and {len(self.unknown) - MOST_NAMES:,} more" * (len(self.unknown) > MOST_NAMES))
        has = f"the PDF has {len(self.layers):,} others" if self.layers else "the PDF has no layers that could be read"
        return (Note("LayerUnknown", f"No layer has this name, so it was not switched; {has}: {names}."),)

    def shows(self, content: Any, depth: int = 0) -> bool:
        """Whether content with this entry ``/OC``, a layer or a membership dictionary, is drawn (section 8.11.2.2)."""
        if not isinstance(content, Dictionary):
            return True
        if content.objgen in self.layers:
            return self.layers[content.objgen].on
        if content.get("/Type") != Name.OCMD:
            return True
        expression = content.get("/VE")
        if isinstance(expression, Array):
            return self._evaluate(expression, depth)
        groups = content.get("/OCGs")
        members = list(groups) if isinstance(groups, Array) else [groups]
        states = [self.layers[member.objgen].on for member in members if isinstance(member, Dictionary) and member.objgen in self.layers]
        policies: dict[str, Callable[[], bool]] = {
            "/AllOn": lambda: all(states),
            "/AnyOff": lambda: not all(states),
            "/AllOff": lambda: not any(states),
        }
        return not states or policies.get(str(content.get("/P")), lambda: any(states))()

    def _evaluate(self, expression: Any, depth: int) -> bool:
        if not isinstance(expression, Array):
            return self.shows(expression)
        if depth > MOST_NESTED_EXPRESSIONS or not len(expression):
            return False
        operator, *operands = expression
        values = (self._evaluate(operand, depth + 1) for operand in operands)
        if operator == Name.Not:
            return not next(values, False)
        return all(values) if operator == Name.And else any(values)


def read_layers(pdf: pikepdf.Pdf | None, choices: Mapping[str, bool]) -> Layers:
    """The layers as a viewer shows them, and as the upload switches them.

    Args:
        pdf: The document, if pikepdf can read it.
        choices: Name to on or off.
    """
    try:
        groups = _groups(pdf) if pdf is not None else {}
        if pdf is None or not groups:
            return Layers({}, tuple(choices))
        properties = pdf.Root.OCProperties
        config = properties.get("/D", Dictionary())
        names = {identity: _name(group) for identity, group in groups.items()}
        states = _states_of_viewers(config, groups)
        wanted = {_clean(name): on for name, on in choices.items()}
        chosen = {identity: wanted[name] for identity, name in names.items() if name in wanted}
        for radio in _arrays(config.get("/RBGroups")):
            # At most one of these layers is on (section 8.11.4.3, table 101).
            members = {member.objgen for member in radio if isinstance(member, Dictionary)}
            if any(chosen.get(member) for member in members):
                states.update(dict.fromkeys(members & states.keys(), False))
        states |= chosen
        unknown = tuple(name for name in wanted if name not in names.values())
        layers = {identity: Layer(name, states[identity]) for identity, name in names.items()}
        return Layers(layers, unknown, states != _states_of_pdfium(properties, config, groups))
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
        return Layers({}, tuple(choices))


def written_with(pdf: pikepdf.Pdf, layers: Layers) -> bytes:
    """The document with a configuration that gives these layers in PDFium, too. It changes the open document likewise.

    Raises:
        MemoryError: There is not enough memory.
        Exception: The document cannot be written.
    """
    properties = pdf.Root.OCProperties
    groups = _groups(pdf)
    for group in groups.values():
        for entry in ("/Usage", "/Intent"):
            if entry in group:
                del group[entry]
    off = [group for identity, group in groups.items() if not layers.layers[identity].on]
    properties["/D"] = Dictionary(OFF=Array(off))
    if "/Configs" in properties:
        del properties["/Configs"]
    for item in pdf.objects:
        for content in _owners(item):
            if isinstance(content, Dictionary) and content.get("/Type") == Name.OCMD and isinstance(content.get("/OCGs"), Dictionary):
                content["/OCGs"] = Array([content["/OCGs"]])
    file = io.BytesIO()
    pdf.save(
        file,
        static_id=True,
        fix_metadata_version=False,
        compress_streams=False,
        stream_decode_level=pikepdf.StreamDecodeLevel.none,
        encryption=False,
    )
    return file.getvalue()


def _owners(item: Any) -> Iterator[Any]:
    """What may be a membership dictionary: an object, or what stands in a form, in an image, or in resources."""
    if not isinstance(item, Dictionary | Stream):
        return
    yield item
    yield item.get("/OC")
    for resources in (item, item.get("/Resources")):
        properties = resources.get("/Properties") if isinstance(resources, Dictionary) else None
        if isinstance(properties, Dictionary):
            yield from (content for _, content in properties.items())


def _groups(pdf: pikepdf.Pdf) -> dict[Identity, pikepdf.Dictionary]:
    """The layers' dictionaries by identity."""
    properties = pdf.Root.get("/OCProperties")
    listed = properties.get("/OCGs") if isinstance(properties, Dictionary) else None
    if not isinstance(listed, Array) or len(listed) > MOST_LAYERS:
        return {}
    return {group.objgen: group for group in listed if isinstance(group, Dictionary) and group.is_indirect}


def _name(group: pikepdf.Dictionary) -> str:
    return _clean(str(group.get("/Name", "")))


def _clean(name: str) -> str:
    return clean_title(name, LAYER_CHARACTERS) or ""


def _configured_states(config: Any, groups: Mapping[Identity, pikepdf.Dictionary]) -> dict[Identity, bool]:
    """The states of the layers that a configuration lists (section 8.11.4.3)."""
    states = dict.fromkeys(groups, config.get("/BaseState") != Name.OFF)
    for entry, on in (("/ON", True), ("/OFF", False)):
        states.update((group.objgen, on) for group in _dictionaries(config.get(entry)) if group.objgen in states)
    return states


def _states_of_viewers(config: Any, groups: Mapping[Identity, pikepdf.Dictionary]) -> dict[Identity, bool]:
    """The states of the layers when a viewer opens the document (sections 8.11.2.3, and 8.11.4.3 to 8.11.4.5)."""
    states = _configured_states(config, groups)
    for usage in _dictionaries(config.get("/AS")):
        if usage.get("/Event") != Name.View:
            continue
        categories = [category for category in map(str, usage.get("/Category", [])) if category in STATES]
        for group in _dictionaries(usage.get("/OCGs")):
            told = [_usage(group, category) for category in categories]
            if group.objgen in states and any(state is not None for state in told):
                states[group.objgen] = Name.OFF not in told
    intents = _intents(config) | VIEW
    for identity, group in groups.items():
        if "/All" not in _intents(config) and not intents & _intents(group):
            states[identity] = True  # a layer of another intent has no effect
    return states


def _states_of_pdfium(properties: Any, config: Any, groups: Mapping[Identity, pikepdf.Dictionary]) -> dict[Identity, bool]:
    """The states that PDFium gives the layers.

    https://pdfium.googlesource.com/pdfium/+/refs/heads/chromium/8149/core/fpdfapi/page/cpdf_occontext.cpp
    """
    others = _dictionaries(properties.get("/Configs"))
    states = _configured_states(next((other for other in others if "/Intent" in other and _intents(other) & VIEW), config), groups)
    for identity, group in groups.items():
        state = _usage(group, "/View")
        if state is not None:
            states[identity] = bool(state != Name.OFF)
        if not _intents(group) & VIEW:
            states[identity] = True
    return states


def _usage(group: pikepdf.Dictionary, category: str) -> Any:
    """The state that a layer's usage dictionary names for a category; None without."""
    usage = group.get("/Usage", Dictionary()).get(category, Dictionary())
    return usage.get(STATES[category])


def _intents(dictionary: pikepdf.Dictionary) -> set[str]:
    intent = dictionary.get("/Intent", Name.View)
    return {str(name) for name in intent} if isinstance(intent, Array) else {str(intent)}


def _dictionaries(items: Any) -> Iterator[pikepdf.Dictionary]:
    return (item for item in items if isinstance(item, Dictionary)) if isinstance(items, Array) else iter(())


def _arrays(items: Any) -> Iterator[pikepdf.Array]:
    return (item for item in items if isinstance(item, Array)) if isinstance(items, Array) else iter(())

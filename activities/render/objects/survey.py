"""Looks through what a page is drawn from: its resources, forms and patterns, and its annotations. Loaded in render children only.

It finds the layers that the page uses, and what PDFium cannot draw right; tried with 159.0.8149:

1. It draws a knockout group (``/K``) as an ordinary group: where objects of such a group lie over one another, their colours mix.
2. It does not read the default colour spaces. A default that only says that colours are sRGB changes nothing, so it is not noted.
3. It draws content of a tiling pattern whose layer is off.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pikepdf
from pikepdf import Array, Dictionary, Name, Stream

from activities.bucket.records import Layer, Note, bounded_layers
from activities.render.objects.layers import Identity, Layers

MOST_OBJECTS = 5_000
"""Objects of a page that are looked at."""

MOST_MEMBERS = 1_000
"""Layers of one membership dictionary that are looked at."""

MOST_PROFILE_BYTES = 16 << 10
"""Size in the file of the largest colour profile that is read. One for sRGB has about 3 KB."""

_DEFAULTS = ("/DefaultGray", "/DefaultRGB", "/DefaultCMYK")


@dataclass
class Survey:
    """What was found.

    Args:
        content: What marked content, forms, images and annotations belong to: layers and membership dictionaries.
        patterns: The same, of content in tiling patterns.
        has_knockout: Whether there is a knockout group.
        has_default_colours: Whether a default colour space changes colours.
        is_cut: Whether there were more objects than are looked at.
    """

    content: list[pikepdf.Dictionary] = field(default_factory=list)
    patterns: list[pikepdf.Dictionary] = field(default_factory=list)
    has_knockout: bool = False
    has_default_colours: bool = False
    is_cut: bool = False

    def layers(self, all_layers: Layers) -> tuple[Layer, ...]:
        """The layers that the page uses; all layers of the document where the page has too many objects."""
        if self.is_cut:
            return bounded_layers(all_layers.layers.values())
        used: set[Identity] = set().union(*map(_members, (*self.content, *self.patterns)))
        return bounded_layers(layer for identity, layer in all_layers.layers.items() if identity in used)

    def needs_rewriting(self) -> bool:
        """Whether PDFium would not read the policy of a membership dictionary, which names one layer without an array."""
        return any(
            content.get("/P") in (Name.AnyOff, Name.AllOff) and "/VE" not in content and isinstance(content.get("/OCGs"), Dictionary)
            for content in self.content
        )

    def notes(self, all_layers: Layers) -> tuple[Note, ...]:
        """What PDFium does not draw right."""
        notes = []
        if self.has_knockout:
            notes.append(Note("KnockoutNotDrawn", "The page has a knockout group: where its objects overlap, their colours mix."))
        if self.has_default_colours:
            notes.append(Note("ColoursUncertain", "The page names default colour spaces, which are not applied: colours may differ."))
        if not all(map(all_layers.shows, self.patterns)):
            notes.append(Note("LayerUncertain", "A pattern on the page has content of a layer that is off; it is drawn all the same."))
        return tuple(notes)


def survey(pdf: pikepdf.Pdf | None, index: int) -> Survey:
    """Looks through a page.

    Args:
        pdf: The document, if pikepdf can read it.
        index: 0-based.
    """
    found = Survey()
    try:
        found.is_cut = pdf is None or not _look(pdf.pages[index].obj, found)
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
        found.is_cut = True
    return found


def _look(page: Any, found: Survey) -> bool:
    """Looks through a page; returns whether this was all."""
    _add_group(page, found)
    waiting: deque[tuple[Any, list[pikepdf.Dictionary]]] = deque([(pikepdf.Page(page).resources, found.content)])
    seen: set[Identity] = set()
    objects = 0
    for annotation in _values(page.get("/Annots")):
        objects += 1
        if objects > MOST_OBJECTS:
            return False
        if isinstance(annotation, Dictionary):
            _add(annotation.get("/OC"), found.content)
            waiting += ((form.get("/Resources"), found.content) for form in _appearances(annotation))
    while waiting:
        resources, owners = waiting.popleft()
        if not isinstance(resources, Dictionary) or (resources.is_indirect and resources.objgen in seen):
            continue
        seen.add(resources.objgen)
        spaces = resources.get("/ColorSpace")
        if isinstance(spaces, Dictionary):
            found.has_default_colours |= any(_changes_colours(spaces.get(name)) for name in _DEFAULTS if name in spaces)
        for kind, look in _LOOKS.items():
            for item in _values(resources.get(kind)):
                objects += 1
                if objects > MOST_OBJECTS:
                    return False
                if isinstance(item, Dictionary | Stream) and not (item.is_indirect and item.objgen in seen):
                    seen.add(item.objgen)
                    waiting += look(item, owners, found)
    return True


Waiting = Iterator[tuple[Any, list[pikepdf.Dictionary]]]


def _look_at_properties(item: Any, owners: list[pikepdf.Dictionary], _found: Survey) -> Waiting:
    _add(item, owners)
    return iter(())


def _look_at_form_or_image(item: Any, owners: list[pikepdf.Dictionary], found: Survey) -> Waiting:
    _add(item.get("/OC"), owners)
    if item.get("/Subtype") == Name.Form:
        _add_group(item, found)
        yield item.get("/Resources"), owners


def _look_at_pattern(item: Any, _owners: list[pikepdf.Dictionary], found: Survey) -> Waiting:
    yield item.get("/Resources"), found.patterns


def _look_at_state(item: Any, owners: list[pikepdf.Dictionary], found: Survey) -> Waiting:
    """The soft mask of a graphics state."""
    mask = item.get("/SMask")
    group = mask.get("/G") if isinstance(mask, Dictionary) else None
    if isinstance(group, Stream):
        _add_group(group, found)
        yield group.get("/Resources"), owners


_LOOKS: dict[str, Callable[[Any, list[pikepdf.Dictionary], Survey], Waiting]] = {
    "/Properties": _look_at_properties,
    "/ExtGState": _look_at_state,
    "/XObject": _look_at_form_or_image,
    "/Pattern": _look_at_pattern,
}


def _appearances(annotation: pikepdf.Dictionary) -> Iterator[pikepdf.Stream]:
    """An annotation's normal appearances."""
    appearances = annotation.get("/AP")
    normal = appearances.get("/N") if isinstance(appearances, Dictionary) else None
    return (form for form in ([normal] if isinstance(normal, Stream) else _values(normal)) if isinstance(form, Stream))


def _add(content: Any, owners: list[pikepdf.Dictionary]) -> None:
    if isinstance(content, Dictionary) and content.get("/Type") in (Name.OCG, Name.OCMD):
        owners.append(content)


def _add_group(page_or_form: Any, found: Survey) -> None:
    group = page_or_form.get("/Group")
    found.has_knockout |= isinstance(group, Dictionary) and bool(group.get("/K", False))


def _changes_colours(space: Any) -> bool:
    """Whether colours look otherwise in this colour space than in the device's."""
    if not isinstance(space, Array) or len(space) < 2:
        return False
    kind, parameters = space[0], space[1]
    if kind == Name.ICCBased:
        if not isinstance(parameters, Stream) or parameters.get("/N") == 1:
            return False
        is_small = int(parameters.get("/Length", 0)) <= MOST_PROFILE_BYTES
        return not (parameters.get("/N") == 3 and is_small and b"sRGB" in parameters.read_bytes().replace(b"\0", b""))
    if kind in (Name.CalRGB, Name.CalGray):
        gamma = parameters.get("/Gamma", 1)
        return not all(math.isclose(float(value), 2.2, abs_tol=0.05) for value in (gamma if isinstance(gamma, Array) else [gamma]))
    return True


def _members(content: Any, depth: int = 0) -> set[Identity]:
    """The layers that decide whether content is drawn."""
    if depth > 32:
        return set()
    if isinstance(content, Array):
        return set().union(*(_members(item, depth + 1) for item in list(content)[:MOST_MEMBERS]))
    if not isinstance(content, Dictionary):
        return set()
    if content.get("/Type") != Name.OCMD:
        return {content.objgen}
    return _members(content.get("/VE"), depth + 1) or _members(content.get("/OCGs"), depth + 1)


def _values(items: Any) -> Iterator[Any]:
    """The items of an array or the values of a dictionary."""
    if isinstance(items, Array):
        yield from items
    elif isinstance(items, Dictionary) and not isinstance(items, Stream):
        for key in items.keys():  # noqa: SIM118 (pikepdf's dictionaries are no mappings)
            yield items[key]

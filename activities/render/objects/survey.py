"""Looks through what a page is drawn from: its resources, forms and patterns, and its annotations. Loaded in render children only."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pikepdf
from pikepdf import Array, Dictionary, Name, Stream

from activities.bucket.records import Layer, bounded_layers
from activities.render.objects.layers import Identity, Layers

MOST_OBJECTS = 2_000
"""Objects of a page that are looked at."""


@dataclass
class Survey:
    """What was found.

    Args:
        content: The entries ``/OC``, and what marked content names: layers and membership dictionaries, by identity.
        is_cut: Whether there were more objects than are looked at.
    """

    content: dict[Identity, pikepdf.Object] = field(default_factory=dict)
    is_cut: bool = False

    def layers(self, all_layers: Layers) -> tuple[Layer, ...]:
        """The layers that the page uses; all layers of the document where the page has too many objects."""
        if self.is_cut:
            return bounded_layers(all_layers.layers.values())
        used: set[Identity] = set()
        for content in self.content.values():
            used |= _members(content)
        return bounded_layers(layer for identity, layer in all_layers.layers.items() if identity in used)


def survey(pdf: pikepdf.Pdf | None, index: int) -> Survey:
    """Looks through a page.

    Args:
        pdf: The document, if pikepdf can read it.
        index: 0-based.
    """
    found = Survey()
    if pdf is None:
        found.is_cut = True
        return found
    try:
        _look(pdf.pages[index], found)
    except (MemoryError, OSError):
        raise
    except Exception:  # noqa: BLE001 (any nonsense may stand in a dictionary, and pikepdf's errors have no common base)
        found.is_cut = True
    return found


def _look(page: pikepdf.Page, found: Survey) -> None:
    waiting: deque[Any] = deque([page.resources])
    waiting += (form for annotation in _values(page.obj.get("/Annots")) for form in _appearances(annotation, found))
    seen: set[Identity] = set()
    objects = 0
    while waiting:
        resources = waiting.popleft()
        if not isinstance(resources, Dictionary):
            continue
        for kind in ("/Properties", "/XObject", "/Pattern", "/ExtGState"):
            for item in _values(resources.get(kind)):
                objects += 1
                if objects > MOST_OBJECTS:
                    found.is_cut = True
                    return
                if item.objgen[0] and item.objgen in seen:
                    continue
                seen.add(item.objgen)
                if kind == "/Properties":
                    _add(item, found)
                elif kind == "/ExtGState":
                    mask = item.get("/SMask")
                    group = mask.get("/G") if isinstance(mask, Dictionary) else None
                    waiting += [group.get("/Resources")] if isinstance(group, Stream) else []
                elif isinstance(item, Stream):
                    _add(item.get("/OC"), found)
                    waiting.append(item.get("/Resources"))


def _appearances(annotation: Any, found: Survey) -> Iterator[Any]:
    """The resources of an annotation's normal appearances."""
    if not isinstance(annotation, Dictionary):
        return
    _add(annotation.get("/OC"), found)
    appearances = annotation.get("/AP")
    normal = appearances.get("/N") if isinstance(appearances, Dictionary) else None
    for form in [normal] if isinstance(normal, Stream) else _values(normal):
        if isinstance(form, Stream):
            yield form.get("/Resources")


def _add(content: Any, found: Survey) -> None:
    if isinstance(content, Dictionary) and content.get("/Type") in (Name.OCG, Name.OCMD):
        # A membership dictionary may stand in the resources themselves: then it has no number of its own.
        found.content[content.objgen if content.is_indirect else (0, -len(found.content))] = content


def _members(content: Any, depth: int = 0) -> set[Identity]:
    """The layers that decide whether content is drawn."""
    if depth > 32:
        return set()
    if isinstance(content, Array):
        return set().union(*(_members(item, depth + 1) for item in list(content)[:MOST_OBJECTS]))
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

"""From the categories of a file of boxes to the classes of a model."""

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data.catalog import Metadata

from point_rend.data.datasets.class_names import plain_name, summarize
from point_rend.utils.errors import did_you_mean, shorten
from point_rend.utils.json_files import read_json, shown

OPTION = "--class-map"
MAX_LISTED = 10

Category = tuple[int, str | None]  # its id and, if known, its name


def read_class_map(text: str) -> dict[str, str]:
    """Read `--class-map`.

    Args:
        text: A JSON file with an object, or `CATEGORY=CLASS,…`; a category is given by its name or
            its id.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another form.
    """
    if text.endswith(".json") or os.path.isfile(text):
        content = read_json(text, what=OPTION)
        if not isinstance(content, dict) or not all(isinstance(x, str) for x in content.values()):
            raise ValueError(
                f"{OPTION} {text}: expected an object of names of the model's classes by the names "
                f"or ids of categories, got {shown(content)}"
            )
        return content
    pairs = [part.partition("=") for part in text.split(",") if part.strip()]
    wrong = [name for name, equals, target in pairs if not (name and equals and target)]
    if wrong or not pairs:
        raise ValueError(
            f"{OPTION}: expected CATEGORY=CLASS,… or a JSON file, got {shorten(text, 80)!r}"
        )
    names = [name.strip() for name, _, _ in pairs]
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice:
        raise ValueError(f"{OPTION} gives {shorten(twice[0])!r} twice")
    return {name: target.strip() for name, (_, _, target) in zip(names, pairs, strict=True)}


class ClassMap:
    """The class of a model for each category.

    The first of these that exists counts: the entry of the given map for the name, that for the id,
    the class of the same name, the class of the same name but for case, spaces, hyphens and
    underscores; for a category without a name, the class with its id in the model's data set.

    Args:
        metadata: The model's classes.
        given: As of :func:`read_class_map`.
        agnostic: Whether the masks of the model are the same for all classes: then a category
            without a counterpart has class 0.

    Raises:
        ValueError: If the map names a class that the model does not have.
    """

    def __init__(
        self, metadata: Metadata, given: Mapping[str, str] | None = None, *, agnostic: bool = False
    ) -> None:
        self.names: Sequence[str] = metadata.thing_classes
        self._ids = metadata.thing_dataset_id_to_contiguous_id
        self._agnostic = agnostic
        self._by_plain: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(self.names):
            self._by_plain[plain_name(name)].append(index)
        self._given = {}
        for category, name in (given or {}).items():
            target = self._of_name(name)
            if target is None:
                raise ValueError(
                    f"{OPTION}: {shorten(category)} is mapped to {shorten(name)!r}, but the "
                    f"model's classes are {summarize(self.names)}{did_you_mean(name, self.names)}"
                )
            self._given[category] = target

    def _of_name(self, name: str) -> int | None:
        if name in self.names:
            return list(self.names).index(name)
        fitting = self._by_plain.get(plain_name(name), [])
        return fitting[0] if len(fitting) == 1 else None

    def find(self, category: Category) -> int | None:
        """Return the index of the class of a category; None if it has no counterpart."""
        identity, name = category
        for key in (name, str(identity)):
            if key is not None and key in self._given:
                return self._given[key]
        index = self._ids.get(identity) if name is None else self._of_name(name)
        return 0 if index is None and self._agnostic else index


def describe(categories: Mapping[Category, int], names: Sequence[str]) -> str:
    """Return the categories whose classes have other names, for a message; empty if none has.

    Args:
        categories: Categories with the indices of their classes.
        names: The model's classes.
    """
    other = {x: names[k] for x, k in categories.items() if x[1] != names[k]}
    pairs = [f"{name_of(x)} -> {shorten(name)}" for x, name in list(other.items())[:MAX_LISTED]]
    return ", ".join(pairs) + (", ..." if len(other) > MAX_LISTED else "")


def name_of(category: Category) -> str:
    """Return the name of a category for a message, or else its id."""
    identity, name = category
    return f"category {identity}" if name is None else shorten(name)


def refuse_unmapped(path: Any, lost: Mapping[Category, int], names: Sequence[str]) -> None:
    """Refuse categories without a counterpart.

    Args:
        path: The file of boxes.
        lost: The categories, with the numbers of their boxes.
        names: The model's classes.

    Raises:
        ValueError: If there are any.
    """
    if not lost:
        return
    listed = [f"{name_of(x)} ({count})" for x, count in list(lost.items())[:MAX_LISTED]]
    more = ", ..." if len(lost) > MAX_LISTED else ""
    raise ValueError(
        f"{path}: {len(lost)} categories have no class in the model, with the numbers of their "
        f"boxes {', '.join(listed)}{more}; the model's classes are {summarize(names)}: map them "
        f"with {OPTION} CATEGORY=CLASS,..., or leave their boxes as they are with --unmapped keep"
    )


def categories_of(
    records: Sequence[Mapping[str, Any]], known: Sequence[Mapping[str, Any]]
) -> list[Category]:
    """Return the category of each record.

    Args:
        records: Results or annotations. A "category_name" of theirs counts first.
        known: Categories in COCO's form, with id and name; empty if they are unknown.
    """
    names = {category["id"]: category["name"] for category in known}
    return [
        (
            x["category_id"],
            own if isinstance(own := x.get("category_name"), str) else names.get(x["category_id"]),
        )
        for x in records
    ]

"""Pairing of results with a data set by the names of files and classes.

Programs number images and classes in their own ways; names are what two files have in common. Two
file names are of the same image if they are equal, or if one is the end of the other, in whole
folders: `val/a.jpg` and `a.jpg`. A name that fits several images is an error.

In a list of results, an image may also have the name of its file without folders and suffix in
place of an id, as a number if it has only digits: Ultralytics writes 139 for 000000000139.jpg.
"""

import logging
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from point_rend.utils.json_files import shown

logger = logging.getLogger(__name__)
NUM_SHOWN = 5
EXPECTED = (
    "a list of results, each with image_id, category_id, score and segmentation or bbox, or the "
    "instances.json of `pointrend predict`"
)

Record = dict[str, Any]
Ids = dict[str, Any]  # by name


class Kind(NamedTuple):
    """A kind of records that have names.

    Attributes:
        word: Its name for messages.
        plural: The same for several.
        key: Key of its list in a data set.
        name: Field with the name of a record.
        reference: Field of a result that refers to a record.
        own_name: Field of a result that repeats the name.
        find: Finds the ids of a data set for names.
    """

    word: str
    plural: str
    key: str
    name: str
    reference: str
    own_name: str
    find: Callable[..., Ids]


def paired_dataset(
    dataset: Mapping[str, Any], content: Mapping[str, Any], file: Path
) -> list[Record]:
    """Return the results of a file that names its images and classes itself.

    Results of images and classes that the data set does not have are left out, with a warning.

    Args:
        dataset: The file's content, such as that of `instances.json` of `pointrend predict`.
        content: The annotations of the data set, as `read_coco` returns them.
        file: The file, for messages.

    Returns:
        The results, with the ids of the data set.

    Raises:
        ValueError: If the file is not of this form, or if names do not fit or are ambiguous.
    """
    lists = [*(kind.key for kind in KINDS), "annotations"]
    if not all(isinstance(dataset.get(key), list) for key in lists):
        keys = shown(sorted(dataset)) if dataset else "no keys"
        raise ValueError(f"{file}: expected {EXPECTED}; got an object with {keys}")
    results = dataset["annotations"]
    for position, result in enumerate(results):
        if not isinstance(result, dict):
            raise ValueError(f"{file}: result {position} is not an object: {shown(result)}")
    if results and not any("score" in result for result in results):
        raise ValueError(
            f"{file}: expected {EXPECTED}; none of its {len(results)} annotations has a score: is "
            "it the ground truth?"
        )
    for kind in KINDS:
        names = _names_by_id(dataset[kind.key], kind, file)
        if kind is IMAGES:
            check_sizes(dataset[kind.key], content, file)
        ids = _ids_or_error(kind, names.values(), content, file)
        own = {id_: ids.get(name) for id_, name in names.items()}
        results = _replaced(results, kind, own, file)
    return results


def paired_list(results: Sequence[Any], content: Mapping[str, Any], file: Path) -> list[Any]:
    """Return results with the ids of a data set, by the names that each of them has, if any.

    Args:
        results: A list of results, which need not be valid.
        content: The annotations of the data set, as `read_coco` returns them.
        file: The file, for messages.

    Raises:
        ValueError: If names are ambiguous, or if neither names nor ids fit.
    """
    for kind in KINDS:
        found = _ids_by_name(results, kind, content, file)
        if found is not None:
            field, ids = found
            results = _replaced(
                [result | {kind.reference: result[field]} for result in results], kind, ids, file
            )
    return list(results)


def images_of_list(
    results: Sequence[Record],
    content: Mapping[str, Any],
    file: Path,
    source: str = "the annotations",
) -> list[Any | None]:
    """Return the image of each result in a data set, by its name if it has one; None if unknown.

    Args:
        results: A list of results, each with an image_id.
        content: Images with ids and file names, as in annotations that `read_coco` returns.
        file: The file of the results, for messages.
        source: Place of the images, for messages.

    Raises:
        ValueError: If a name fits several images.
    """
    field, ids = _ids_by_name(results, IMAGES, content, file, source) or (
        IMAGES.reference,
        {record["id"]: record["id"] for record in content[IMAGES.key]},
    )
    return [ids.get(result[field]) for result in results]


def find_images(
    names: Iterable[str],
    known: Mapping[str, list[Any]],
    where: str,
    source: str = "the annotations",
) -> Ids:
    """Find the ids of images by their file names.

    Args:
        names: File names.
        known: Ids of the data set by file name.
        where: Place of the names, for messages.
        source: Place of the known names, for messages.

    Returns:
        The ids of the names that are found.

    Raises:
        ValueError: If a name fits several images, or several names fit one.
    """
    by_end: dict[tuple[str, ...], list[str]] = defaultdict(list)
    whole: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name in known:
        parts = _parts(name)
        whole[parts].append(name)
        for start in range(len(parts)):
            by_end[parts[start:]].append(name)
    found: dict[str, str] = {}
    for name in names:
        parts = _parts(name)
        fitting = whole.get(parts) or dict.fromkeys(
            [
                *by_end.get(parts, ()),
                *(x for start in range(1, len(parts)) for x in whole.get(parts[start:], ())),
            ]
        )
        ids = [(x, id_) for x in fitting for id_ in known[x]]
        if len(ids) > 1:
            raise ValueError(
                f"{where}: the image {shown(name)} fits {len(ids)} images of {source}, "
                f"{_few([x for x, _ in ids])}: expected one"
            )
        for x, _ in ids:
            found[name] = x
    for x, number in Counter(found.values()).items():
        if number > 1:
            both = [name for name, fitting in found.items() if fitting == x]
            raise ValueError(
                f"{where}: the image {shown(x)} of {source} fits {number} images, "
                f"{_few(both)}: expected one"
            )
    return {name: known[x][0] for name, x in found.items()}


def find_classes(
    names: Iterable[str],
    known: Mapping[str, list[Any]],
    where: str,
    source: str = "the annotations",
) -> Ids:
    """Find the ids of classes by their names.

    Args:
        names: Names.
        known: Ids of the data set by name.
        where: Place of the names, for messages.
        source: Place of the known names, for messages.

    Returns:
        The ids of the names that are found.

    Raises:
        ValueError: If the data set has several classes of one name.
    """
    for name in names:
        if len(known.get(name, ())) > 1:
            raise ValueError(
                f"{where}: the class {shown(name)} has several ids in {source}, "
                f"{_few(map(str, known[name]))}: expected one"
            )
    return {name: known[name][0] for name in names if name in known}


IMAGES = Kind("image", "images", "images", "file_name", "image_id", "file_name", find_images)
CLASSES = Kind(
    "class", "classes", "categories", "name", "category_id", "category_name", find_classes
)
KINDS = (IMAGES, CLASSES)


def _ids_by_name(
    results: Sequence[Any],
    kind: Kind,
    content: Mapping[str, Any],
    file: Path,
    source: str = "the annotations",
) -> tuple[str, Mapping[Any, Any]] | None:
    """Find the field of results that names their images or classes.

    Returns:
        The field, and for each of its values the id in the data set or None; None if the references
        of the results are ids.
    """
    if results and all(
        isinstance(x, dict) and isinstance(x.get(kind.own_name), str) for x in results
    ):
        names = dict.fromkeys(result[kind.own_name] for result in results)
        known = ids_by_name(content, kind)
        ids = kind.find(names, known, str(file), source)
        if ids:
            return kind.own_name, {name: ids.get(name) for name in names}
        logger.warning(
            "%s: its %s (%s) is unknown to %s (%s): %s counts instead",
            file,
            kind.own_name,
            _few(names),
            source,
            _few(known),
            kind.reference,
        )
    stems = _ids_of_stems(results, content, file, source) if kind is IMAGES else None
    return None if stems is None else (kind.reference, stems)


def _ids_of_stems(
    results: Sequence[Any], content: Mapping[str, Any], file: Path, source: str
) -> dict[Any, Any] | None:
    """Find the images of results whose image_id is a file name without folders and suffix.

    Returns:
        For each image_id, the id in the data set or None; no mapping at all unless more of them are
        such names than ids.

    Raises:
        ValueError: If a name fits several images.
    """
    values = [result.get("image_id") if isinstance(result, dict) else None for result in results]
    references = list(dict.fromkeys(x for x in values if type(x) in (int, str)))
    known = {record["id"] for record in content[IMAGES.key]}
    are_ids = sum(x in known for x in references)
    if are_ids == len(references):
        return None
    all_text = all(isinstance(x, str) for x in references)
    by_stem: dict[Any, list[tuple[str, Any]]] = defaultdict(list)
    for name, ids in ids_by_name(content, IMAGES).items():
        stem = (_parts(name) or ("",))[-1].rpartition(".")[0]
        key = int(stem) if stem.isdecimal() and not all_text else stem
        by_stem[key] += [(name, id_) for id_ in ids]
    for reference in references:
        if len(fitting := by_stem.get(reference, ())) > 1:
            raise ValueError(
                f"{file}: the image {shown(reference)} fits {len(fitting)} images of {source}, "
                f"{_few([name for name, _ in fitting])}: expected one"
            )
    if sum(x in by_stem for x in references) <= are_ids:
        return None
    return {x: by_stem[x][0][1] if x in by_stem else None for x in references}


def _names_by_id(records: Sequence[Any], kind: Kind, file: Path) -> dict[Any, str]:
    """Return the names of images or classes by their ids."""
    names: dict[Any, str] = {}
    for position, record in enumerate(records):
        fields = record if isinstance(record, dict) else {}
        identity, name = fields.get("id"), fields.get(kind.name)
        if not isinstance(identity, int | str) or not isinstance(name, str):
            raise ValueError(
                f"{file}: {kind.word} at position {position} needs an 'id' and a {kind.name!r}, "
                f"got {shown(record)}"
            )
        if identity in names:
            raise ValueError(f"{file}: {kind.word} id {shown(identity)} is given twice")
        names[identity] = name
    twice = [name for name, number in Counter(names.values()).items() if number > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} {kind.plural} have a name twice, {_few(twice)}")
    return names


def ids_by_name(content: Mapping[str, Any], kind: Kind) -> dict[str, list[Any]]:
    """Return the ids of a data set by name; LVIS has addresses in place of file names."""
    known: dict[str, list[Any]] = defaultdict(list)
    for record in content[kind.key]:
        known[record.get(kind.name) or record.get("coco_url", "")].append(record["id"])
    return known


def _ids_or_error(kind: Kind, names: Iterable[str], content: Mapping[str, Any], file: Path) -> Ids:
    """Find the ids for names; warn of those without, on either side."""
    names, known = list(names), ids_by_name(content, kind)
    ids = kind.find(names, known, str(file))
    if names and not ids:
        raise ValueError(
            f"{file}: none of its {len(names)} {kind.plural} ({_few(names)}) is in the "
            f"annotations ({_few(known)})"
        )
    used = set(ids.values())
    missing = [name for name, own in known.items() if not used.intersection(own)]
    if missing:
        logger.warning(
            "%s: %d of the %d %s of the annotations are not in it and have no results: %s",
            file,
            len(missing),
            len(known),
            kind.plural,
            _few(missing),
        )
    return ids


def check_sizes(images: Sequence[Record], content: Mapping[str, Any], file: Path) -> None:
    """Refuse images whose sizes differ from those of the data set.

    Raises:
        ValueError: If there are any.
    """
    names = [image["file_name"] for image in images]
    ids = find_images(names, ids_by_name(content, IMAGES), str(file))
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for image in images:
        size, name = (image.get("height"), image.get("width")), image["file_name"]
        if name in ids and None not in size and size != sizes[ids[name]]:
            raise ValueError(
                f"{file}: the image {shown(name)} is of (height, width) {shown(size)}, in the "
                f"annotations of {sizes[ids[name]]}: expected the same image"
            )


def _replaced(
    results: Sequence[Record], kind: Kind, own: Mapping[Any, Any], file: Path
) -> list[Record]:
    """Replace the references of results by ids of the data set; leave out those without one.

    Args:
        results: The results.
        kind: The kind of reference.
        own: For each reference that is possible, the id in the data set or None.
        file: The file, for messages.
    """
    kept, lost = [], []
    for position, result in enumerate(results):
        reference = result.get(kind.reference)
        if not isinstance(reference, int | str) or reference not in own:
            raise ValueError(
                f"{file}: result {position} has the {kind.reference} {shown(reference)}, which "
                f"its {kind.plural} do not have"
            )
        identity = own[reference]
        if identity is None:
            lost.append(reference)
        else:
            kept.append(result | {kind.reference: identity})
    if lost:
        logger.warning(
            "%s: %d of %d results are of %s that the annotations do not have, and are left out",
            file,
            len(lost),
            len(results),
            kind.plural,
        )
    return kept


def _parts(name: str) -> tuple[str, ...]:
    """Split a file name of any operating system into folders and name."""
    plain = unicodedata.normalize("NFC", name).replace("\\", "/")
    return tuple(part for part in plain.split("/") if part not in ("", "."))


def _few(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return (", ".join(map(shown, names[:NUM_SHOWN])) or "none") + more

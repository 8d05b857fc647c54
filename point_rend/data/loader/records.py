"""Records of a training in compact form, shared by all data workers."""

from array import array
from collections.abc import Iterable
from typing import Any

from torch.utils.data import Dataset

from point_rend.data.datasets.packed import LazyList, Lists, Packed

ANNOTATIONS = "annotations"


class PackedRecords(Dataset[dict[str, Any]]):
    """Records in Detectron2's format by index; each access creates a new one.

    Annotations that are a :class:`LazyList` stay where they are; all else is packed.

    Args:
        records: The records.
    """

    def __init__(self, records: Iterable[dict[str, Any]]) -> None:
        self._records = Packed()
        self._sources: list[Lists] = []
        self._source_of, self._index_of = array("i"), array("q")
        numbers: dict[int, int] = {}
        for record in records:
            annotations = record.get(ANNOTATIONS)
            source, index = -1, -1
            if isinstance(annotations, LazyList):
                source = numbers.setdefault(id(annotations.lists), len(numbers))
                if source == len(self._sources):
                    self._sources.append(annotations.lists)
                index = annotations.number
                record = record | {ANNOTATIONS: None}
            self._records.append(record)
            self._source_of.append(source)
            self._index_of.append(index)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record: dict[str, Any] = self._records[index]
        if (source := self._source_of[index]) >= 0:
            record[ANNOTATIONS] = [*self._sources[source][self._index_of[index]]]
        return record

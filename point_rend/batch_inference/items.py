"""The images of a run, as they are sent to other processes; PyTorch is not imported."""

from typing import NamedTuple


class Item(NamedTuple):
    """An image of a manifest.

    Attributes:
        id: Its number, from 1 in the order of the manifest, or its id in a COCO file.
        name: Unique name: relative to the folder of the images where it lies below it, else its
            absolute path or URL.
        uri: Absolute path, or URL of http or https.
    """

    id: int
    name: str
    uri: str

"""Published models by name: `zoo://pointrend_rcnn_R_50_FPN_3x_coco`.

Detectron2's path manager resolves the names as soon as this module has been imported. A file is
downloaded once (:mod:`point_rend.utils.downloads`).
"""

from pathlib import PurePosixPath

from detectron2.utils.file_io import PathManager

from point_rend.utils.downloads import UrlHandler, add_names
from point_rend.utils.errors import did_you_mean

PREFIX = "zoo://"
FOLDER = "https://dl.fbaipublicfiles.com/detectron2/PointRend/"
PUBLISHED = {
    PurePosixPath(path).parts[1]: FOLDER + path
    for path in (
        "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_coco/164254221/model_final_736f5a.pkl",
        "InstanceSegmentation/pointrend_rcnn_R_50_FPN_3x_coco/164955410/model_final_edd263.pkl",
        "InstanceSegmentation/pointrend_rcnn_R_101_FPN_3x_coco/28119983/model_final_3f4d2a.pkl",
        "InstanceSegmentation/pointrend_rcnn_X_101_32x8d_FPN_3x_coco/28119989/"
        "model_final_ba17b9.pkl",
        "InstanceSegmentation/pointrend_rcnn_R_50_FPN_1x_cityscapes/164255101/"
        "model_final_115bfb.pkl",
        "SemanticSegmentation/pointrend_semantic_R_101_FPN_1x_cityscapes/202576688/"
        "model_final_cf6ac1.pkl",
    )
}


def published_url(path: str) -> str:
    """Return the URL of a published model.

    Args:
        path: `zoo://` and the name of its config; folder and `.yaml` are ignored.

    Raises:
        FileNotFoundError: If no model of this name is published; the message lists the nearest.
    """
    name = PurePosixPath(path.removeprefix(PREFIX)).name.removesuffix(".yaml")
    if name not in PUBLISHED:
        hint = did_you_mean(name, PUBLISHED) or f"; there are {', '.join(PUBLISHED)}"
        raise FileNotFoundError(f"{path}: no model of this name is published{hint}")
    return PUBLISHED[name]


def published_name(path: str) -> str:
    """Return the name of a published model by its `zoo://` name or URL; empty for other weights."""
    if path.startswith(PREFIX):
        path = published_url(path)
    return next((name for name, url in PUBLISHED.items() if url == path), "")


add_names(PREFIX, published_url)
PathManager.register_handler(UrlHandler((PREFIX,)))

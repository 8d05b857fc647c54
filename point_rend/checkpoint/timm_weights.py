"""Pretrained weights of timm by name: `timm://resnet18.a1_in1k`.

timm knows which repository of the Hugging Face Hub has the weights of a name; the file is
downloaded once (:mod:`point_rend.utils.downloads`) and read without executing code in it. Where
there is no network, pass the path of the same file, `model.safetensors`, instead.
"""

import os

from detectron2.utils.file_io import PathManager

from point_rend.utils.downloads import UrlHandler, add_names
from point_rend.utils.imports import not_installed

PREFIX = "timm://"
HUB = "HF_ENDPOINT"  # environment variable: address of the Hub or of a mirror
FILE = "model.safetensors"


def pretrained_url(path: str) -> str:
    """Return the URL of pretrained weights.

    Args:
        path: `timm://` and a name of timm, with the tag of its weights or without.

    Raises:
        FileNotFoundError: If timm has no weights of this name.
        ValueError: If timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise not_installed("timm", "timm") from error
    name = path.removeprefix(PREFIX)
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # another tag than those of the model
        found = None
    if found is None or not (found.hf_hub_id or found.url):
        tags = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        hint = f": expected timm://{' or timm://'.join(tags)}" if tags else ""
        raise FileNotFoundError(f"{path}: timm has no weights of this name{hint}")
    if not found.hf_hub_id:
        return str(found.url)
    repository, _, revision = found.hf_hub_id.partition("@")
    hub = os.environ.get(HUB) or "https://huggingface.co"
    file = found.hf_hub_filename or FILE
    return f"{hub.rstrip('/')}/{repository}/resolve/{revision or 'main'}/{file}"


add_names(PREFIX, pretrained_url)
PathManager.register_handler(UrlHandler((PREFIX,)))

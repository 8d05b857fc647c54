"""Weights of other projects, recognized by their parameter names."""

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

# Patterns of which every one must be found among the names; the first project that fits is taken.
_PROJECTS = (
    ("Ultralytics YOLO", (r"^(model\.)*model\.\d+\.(conv|cv\d|m|bn)\.",)),
    ("Segment Anything (SAM)", (r"^(image_encoder|vision_encoder)\.", r"^mask_decoder\.")),
    ("Segment Anything 2 (SAM 2)", (r"sam_mask_decoder\.",)),
    ("Segment Anything 3 (SAM 3)", (r"^(detector|tracker)\.",)),
    ("Mask DINO", (r"^sem_seg_head\.predictor\.(label_enc|enc_output)",)),
    ("Mask2Former", (r"^sem_seg_head\.predictor\.(query_feat|transformer_cross)",)),
    ("MaskFormer", (r"^sem_seg_head\.predictor\.(transformer|query_embed)",)),
    ("AdelaiDet", (r"^(proposal_generator\.fcos_head|mask_branch|basis_module)\.",)),
    (
        "maskrcnn-benchmark",
        (r"^(module\.)?roi_heads\.(box|mask)\.(feature_extractor|predictor)\.",),
    ),
    ("torchvision's Mask R-CNN", (r"^backbone\.body\.", r"^roi_heads\.box_head\.fc6")),
    ("torchvision's RetinaNet or FCOS", (r"^backbone\.body\.", r"^head\.")),
    ("mmdetection", (r"^(rpn_head|roi_head|bbox_head|mask_head|panoptic_head)\.(?!point_head)",)),
    ("mmsegmentation", (r"^(decode_head|auxiliary_head)\.",)),
    ("segmentation_models_pytorch", (r"^encoder\.", r"^segmentation_head\.")),
    ("torchvision's segmentation models", (r"^backbone\.layer1\.0\.", r"^classifier\.")),
    ("DETR or a relative of it", (r"(^|\.)(transformer|decoder)\.", r"(class_embed|class_labels)")),
    (
        "Hugging Face Transformers",
        (r"\.(attention\.attention|patch_embeddings|layernorm_before)\.",),
    ),
    ("Hugging Face Transformers", (r"^(model\.)?pixel_level_module\.|conv_encoder\.model\.",)),
    ("a vision transformer (DINO, timm)", (r"(^|\.)blocks\.\d+\.attn\.qkv\.", r"patch_embed")),
    ("a Swin transformer", (r"relative_position_bias_table$",)),
    ("a ConvNeXt", (r"(^|\.)stages\.\d+\.(blocks\.)?\d+\.(dwconv|conv_dw)\.",)),
    ("torchvision's ResNet", (r"(^|\.)layer1\.0\.conv1\.", r"(^|\.)layer4\.")),
    ("torchvision's VGG or AlexNet", (r"^features\.\d+\.weight$", r"^classifier\.\d+\.")),
    (
        "Detectron2's Mask R-CNN with its own mask head",
        (r"^roi_heads\.mask_head\.(mask_fcn|deconv)",),
    ),
    ("an instance model of PointRend", (r"^roi_heads\.mask_head\.(coarse_head|point_head)\.",)),
    ("a semantic model of PointRend", (r"^sem_seg_head\.coarse_sem_seg_head\.",)),
    ("a detector of Detectron2", (r"^roi_heads\.|^proposal_generator\.",)),
    ("a semantic model of Detectron2", (r"^sem_seg_head\.",)),
    ("a ResNet of Detectron2 without any head", (r"^(res2|stem)\.",)),
)
# First parts of the names of modules whose objects other projects pickle into their files.
_MODULES = {
    "ultralytics": "Ultralytics YOLO",
    "models": "YOLOv5 or a relative of it",
    "mmengine": "OpenMMLab (mmdetection, mmsegmentation)",
    "mmdet": "mmdetection",
    "mmcv": "OpenMMLab (mmdetection, mmsegmentation)",
    "torchvision": "torchvision, as a whole model",
    "transformers": "Hugging Face Transformers",
    "pytorch_lightning": "PyTorch Lightning",
    "lightning": "PyTorch Lightning",
    "segmentation_models_pytorch": "segmentation_models_pytorch",
    "fastai": "fastai",
}
# First bytes of files that are often saved under the name of a checkpoint.
_STARTS = (
    (rb"\s*<(!doctype|html|\?xml|head|body)", "a web page in place of the file itself"),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS in place of the file itself: fetch it with `git lfs pull`",
    ),
    (rb"\x1f\x8b", "a gzip archive: unpack it"),
    (rb"BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd", "a compressed file: unpack it"),
    (rb"\x89HDF", "an HDF5 file, as of Keras"),
    (rb"GGUF", "a GGUF file"),
    (rb"\x93NUMPY", "an array of NumPy"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF|BM|II\*\0|MM\0\*", "a picture"),
    (rb"\s*[{\[]", "a text in JSON"),
)
_CONTAINERS = ("state_dict", "model_state_dict", "model", "ema", "model_ema", "teacher", "student")


def project_of(keys: Iterable[str]) -> str:
    """Return the project whose parameters have such names; empty if none is known."""
    keys = list(keys)
    for project, patterns in _PROJECTS:
        if all(any(re.search(pattern, key) for key in keys) for pattern in patterns):
            return project
    return ""


def project_of_global(name: str) -> str:
    """Return the project to which a dotted name in a pickle belongs; empty if none is known."""
    return _MODULES.get(name.split(".")[0], "")


def looks_like(project: str) -> str:
    """Return a part of a message, or nothing if no project is named."""
    return f"; these look like the weights of {project}" if project else ""


def find_parameters(content: Mapping[Any, Any]) -> tuple[str, Collection[str]]:
    """Find the parameters that the file of another project holds under a name of its own.

    Returns:
        The name and the keys of the parameters; both empty if there are none.
    """
    for name in (*_CONTAINERS, *(key for key in content if isinstance(key, str))):
        nested = content.get(name)
        if isinstance(nested, Mapping) and any("." in str(key) for key in nested):
            return name, [str(key) for key in nested]
    return "", ()


def kind_of_file(head: bytes, suffix: str = "") -> str:
    """Return the kind of a file that is no checkpoint.

    Args:
        head: Its first bytes.
        suffix: That of its name.

    Returns:
        The kind; empty if it is unknown or the one of the suffix.
    """
    if not head:
        return "an empty file"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        is_named_so = suffix == ".safetensors"
        return "" if is_named_so else "a file of Hugging Face's safetensors: name it .safetensors"
    for pattern, kind in _STARTS:
        if re.match(pattern, head, re.IGNORECASE):
            return kind
    if head[257:262] == b"ustar":
        return "a tar archive; PyTorch 0.1 wrote such files, which PyTorch 1 can save again"
    if head[:1] == b"\x08" and (b"onnx" in head or b"pytorch" in head):
        return "an ONNX model"
    return ""

"""Settings of a benchmark: the device, the cases' parameters and the sizes of their inputs."""

from dataclasses import dataclass, field

OVERVIEW = "overview"  # name of a choice of cases of all kinds
AMP_TYPES = ("none", "bfloat16", "float16")
# Exported files: the runtime of each, and the precision of backbone and box head.
FILES = {
    "onnxruntime": ("onnxruntime", "float32"),
    "openvino": ("openvino", "float32"),
    "float16": ("onnxruntime", "float16"),
    "int8": ("onnxruntime", "int8"),
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the inputs; images are (height, width) in pixels.

    Attributes:
        instance_image: Padded image of the mask heads and the instance model.
        pasted_image: Image into which masks are pasted.
        semantic_image: Image of the semantic head and model, a multiple of the coarse strides.
        training_image: Each image of the training cases.
        training_images: Images per training batch.
        objects: Objects per training image.
        proposals: Proposals per training image, from which the ROI heads sample.
        tiled_image: Image that is segmented in tiles.
        whole_image: Image that is segmented in tiles and as a whole.
        model_image: The same for a trained model.
        tile: Side of a tile.
        overlap: Share of a tile that it has in common with the next one.
        pyramid_channels: Channels of each feature level, where no backbone computes it.
    """

    instance_image: tuple[int, int] = (800, 1216)
    pasted_image: tuple[int, int] = (1080, 1920)
    semantic_image: tuple[int, int] = (1024, 2048)
    training_image: tuple[int, int] = (800, 1333)
    training_images: int = 2
    objects: int = 20
    proposals: int = 1000
    tiled_image: tuple[int, int] = (10_000, 10_000)
    whole_image: tuple[int, int] = (2000, 2000)
    model_image: tuple[int, int] = (1152, 1152)
    tile: int = 1024
    overlap: float = 0.2
    pyramid_channels: int = 256


@dataclass(frozen=True)
class Settings:
    """Settings that all cases of a benchmark share.

    Attributes:
        device: Torch device.
        repeat: Number of timed rounds.
        seed: Seed of weights and inputs.
        boxes: Numbers of boxes, in place of each case's own.
        classes: Numbers of classes, in place of each case's own.
        amp: One of ``AMP_TYPES``; both sides run under this autocast.
        opts: Keys and values of the config, for our side only.
        shared_opts: Keys and values of the config, for both sides.
        busy_processes: Processes that compute something else meanwhile.
        files: Keys of ``FILES`` that end-to-end also measures.
        sizes: Sizes of the inputs.
    """

    device: str = "cpu"
    repeat: int = 5
    seed: int = 0
    boxes: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()
    amp: str = "none"
    opts: tuple[str, ...] = ()
    shared_opts: tuple[str, ...] = ()
    busy_processes: int = 0
    files: tuple[str, ...] = ()
    sizes: Sizes = field(default_factory=Sizes)

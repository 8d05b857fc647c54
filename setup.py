"""Package description; constraints.txt lists the exact versions that `make` installs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent


def version() -> str:
    """Read the version in point_rend/utils/version.py without importing the package."""
    source = (ROOT / "point_rend" / "utils" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', source, flags=re.MULTILINE)
    if match is None:
        raise ValueError('point_rend/utils/version.py has no line `__version__ = "..."`')
    return match[1]


def long_description() -> str:
    """Return the README, or nothing in a source tree without one."""
    readme = ROOT / "README.md"
    return readme.read_text(encoding="utf-8") if readme.exists() else ""


cityscapes = ["cityscapesscripts>=2.2"]
completion = ["argcomplete>=3"]
lvis = ["lvis>=0.5.3"]
onnx = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]
openvino = ["openvino>=2025.1"]
hub = ["huggingface_hub>=0.30"]
# For `pointrend predict` on many images or huge ones, and on the boxes of other detectors.
geotiff = ["rasterio>=1.4"]
parquet = ["pyarrow>=17"]
ray = ["ray[data]>=2.44", *parquet]
supervision = ["supervision>=0.26"]
page = ["gradio>=6.31"]
# For trainings: backbones, and services that keep the metrics of runs.
timm = ["timm>=1.0.9"]
wandb = ["wandb>=0.19"]
mlflow = ["mlflow-skinny>=2.14", "alembic>=1.13", "sqlalchemy>=2"]  # and its default store
serving = ["fastapi>=0.115", "onnxruntime>=1.20", "uvicorn>=0.32"]

setup(
    name="point_rend",
    version=version(),
    description="PointRend: image segmentation as rendering, for Detectron2",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13, 14)),
    ],
    # The configs are at the top level of the repository, and inside the installed package.
    packages=[*find_packages(include=["point_rend", "point_rend.*"]), "point_rend.configs"],
    package_dir={"point_rend.configs": "configs"},
    package_data={
        "point_rend.configs": ["**/*.yaml"],
        "point_rend.evaluation.report": ["static/*"],
    },
    entry_points={"console_scripts": ["pointrend = point_rend.cli:main"]},
    # Detectron2 is missing here, because no package index has it under its own name:
    # `pointrend install-detectron2` installs it.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.26",
        "opencv-python>=4.8",
        "pillow>=10",
        "fvcore>=0.1.5.post20221221",
        "faster-coco-eval>=1.6",  # without it pycocotools evaluates, more slowly
        "iopath>=0.1.9",
        "pycocotools>=2.0.7",
        "pyyaml>=6",
        "shapely>=2",  # cuts the polygons of cropped images
    ],
    extras_require={
        "cityscapes": cityscapes,
        "completion": completion,
        "lvis": lvis,
        "onnx": onnx,
        "openvino": openvino,
        "hub": hub,
        "serving": serving,
        "geotiff": geotiff,
        "parquet": parquet,
        "ray": ray,
        "supervision": supervision,
        "page": page,
        "timm": timm,
        "wandb": wandb,
        "mlflow": mlflow,
        "dev": [
            *cityscapes,
            *completion,
            *lvis,
            *onnx,
            *openvino,
            *hub,
            *serving,
            *geotiff,
            *parquet,
            *ray,
            *supervision,
            *page,
            *timm,
            *wandb,
            *mlflow,
            "codespell>=2.4",
            "hypothesis>=6.130",
            "ipykernel>=6.29",
            "mypy>=1.15",
            "nbclient>=0.10",  # executes the notebook, with ipykernel and nbformat
            "nbformat>=5.10",
            "pytest>=8.3",
            "pytest-xdist>=3.6",
            "ruff>=0.9",
            "safetensors>=0.5",  # the oracle of point_rend/checkpoint/safetensors_file.py
            "setuptools>=68",
            "wheel",
        ],
    },
)

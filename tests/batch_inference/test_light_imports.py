"""Processes that only decode images do without PyTorch: there may be dozens on a machine."""

import subprocess
import sys


def test_what_decodes_images_imports_neither_pytorch_nor_detectron2():
    code = (
        "import sys, point_rend.batch_inference.ray_actors, point_rend.batch_inference.decoding;"
        "print({'torch', 'detectron2'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"

#!/usr/bin/env python
"""`pointrend install-detectron2`, started from a clone before anything is installed."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    code = Path(__file__).resolve().parents[1] / "point_rend" / "cli" / "install_detectron2.py"
    runpy.run_path(str(code), run_name="__main__")

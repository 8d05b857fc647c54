#!/usr/bin/env python
"""`pointrend prepare-panoptic`, started from a clone."""

from point_rend.cli import run_command

if __name__ == "__main__":
    run_command("prepare-panoptic")

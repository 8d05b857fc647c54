#!/usr/bin/env python
"""`pointrend inspect`, started from a clone."""

from point_rend.cli import run_command

if __name__ == "__main__":
    run_command("inspect")

#!/usr/bin/env python
"""`pointrend prepare-ade20k` for people with a checkout."""

from point_rend.cli.prepare_ade20k import main

if __name__ == "__main__":
    main()

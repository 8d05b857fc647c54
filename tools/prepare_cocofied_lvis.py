#!/usr/bin/env python
"""`pointrend prepare-cocofied-lvis` for people with a checkout."""

from point_rend.cli.prepare_cocofied_lvis import main

if __name__ == "__main__":
    main()

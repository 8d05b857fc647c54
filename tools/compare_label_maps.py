#!/usr/bin/env python
"""`pointrend compare-semantic` for people with a checkout."""

from point_rend.cli.compare_semantic import main

if __name__ == "__main__":
    main()

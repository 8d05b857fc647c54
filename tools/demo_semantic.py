#!/usr/bin/env python
"""`pointrend demo-semantic` for people with a checkout."""

from point_rend.cli.demo_semantic import main

if __name__ == "__main__":
    main()

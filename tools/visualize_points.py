#!/usr/bin/env python
"""`pointrend visualize` for people with a checkout."""

from point_rend.cli.visualize import main

if __name__ == "__main__":
    main()

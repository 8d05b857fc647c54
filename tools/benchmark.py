#!/usr/bin/env python
"""`pointrend benchmark` for people with a checkout."""

from point_rend.cli.benchmark import main

if __name__ == "__main__":
    main()

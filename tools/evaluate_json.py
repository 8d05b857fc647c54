#!/usr/bin/env python
"""`pointrend score` for people with a checkout."""

from point_rend.cli.score import main

if __name__ == "__main__":
    main()

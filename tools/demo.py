#!/usr/bin/env python
"""`pointrend demo` for people with a checkout."""

from point_rend.cli.demo import main

if __name__ == "__main__":
    main()

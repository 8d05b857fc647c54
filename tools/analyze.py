#!/usr/bin/env python
"""`pointrend analyze` for people with a checkout."""

from point_rend.cli.analyze import main

if __name__ == "__main__":
    main()

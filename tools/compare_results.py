#!/usr/bin/env python
"""`pointrend compare` for people with a checkout."""

from point_rend.cli.compare import main

if __name__ == "__main__":
    main()

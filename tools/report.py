#!/usr/bin/env python
"""`pointrend report` for people with a checkout."""

from point_rend.cli.report import main

if __name__ == "__main__":
    main()

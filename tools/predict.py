#!/usr/bin/env python
"""`pointrend predict` for people with a checkout."""

from point_rend.cli.predict import main

if __name__ == "__main__":
    main()

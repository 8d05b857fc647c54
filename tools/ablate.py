#!/usr/bin/env python
"""`pointrend ablate` for people with a checkout."""

from point_rend.cli.ablate import main

if __name__ == "__main__":
    main()

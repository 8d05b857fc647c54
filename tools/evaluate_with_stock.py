#!/usr/bin/env python
"""`pointrend evaluate-with-stock` for people with a checkout."""

from point_rend.cli.evaluate_with_stock import main

if __name__ == "__main__":
    main()

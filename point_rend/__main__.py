"""`python -m point_rend` is the `pointrend` command."""

from point_rend.cli import main

if __name__ == "__main__":
    main()

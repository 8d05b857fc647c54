"""The `pointrend` command: one module per sub-command."""

"""The table of bad inputs and bad days: each row ends in one line and an exit code.

Every row runs a command in a process of its own, with limits on its time and memory. No row may end
in a traceback, a signal, a hang or without memory. `pytest --collect-only -q tests/robustness`
counts the rows.
"""

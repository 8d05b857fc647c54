"""Fuzz targets: what is read from a user's file gives a result or one error, for any bytes.

Each module is one target. The default run tries the committed examples and a few generated inputs,
always the same; `tools/dev/fuzz.py TARGET` goes on with new ones. An input that it finds becomes an
example here.
"""

"""Profiles of hypothesis: the short deterministic run, and the long one of tools/dev/fuzz.py."""

import os

from hypothesis import HealthCheck, settings

settings.register_profile(
    "short",
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long",
    parent=settings.get_profile("short"),
    max_examples=5000,
    derandomize=False,
    deadline=5000,  # milliseconds for one input
    print_blob=True,
)
settings.load_profile(os.environ.get("FUZZING_PROFILE", "short"))

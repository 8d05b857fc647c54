"""A pytest plugin: torch sees a device besides the CPU, as on a machine with a GPU.

The first backward pass of a process then starts a thread for the device, and a fork of the process
cannot run another one. `python -m pytest -p tests.one_device` runs all tests under this condition.
"""

from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("one_device")

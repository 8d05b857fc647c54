"""A pytest plugin: torch sees a device besides the CPU, as on a machine with a GPU.

The first backward pass of a process then starts a thread for the device, and a fork of the process
cannot run another one. `python -m pytest -p tests.one_device` runs all tests under this condition.
"""

import torch
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "one_device"

_setup_privateuseone_for_python_backend(NAME)
device = getattr(torch, NAME)
device.get_rng_state = lambda _=0: torch.ByteTensor()
device.set_rng_state = lambda _state, _device=0: None

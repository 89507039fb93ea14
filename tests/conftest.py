"""One thread a process: the tests' tensors are small, and several processes may run at once."""

import torch

torch.set_num_threads(1)

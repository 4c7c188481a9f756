"""One thread: the suite's networks are tiny, and threads only wait for one another."""

import torch

torch.set_num_threads(1)

"""One torch thread a worker: the suite runs in two workers, and small matrices gain nothing from more."""

import torch

torch.set_num_threads(1)

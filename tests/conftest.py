"""One thread a worker, in what a test starts as well: the suite runs in two workers, and small matrices gain nothing
from more."""

import os

os.environ |= {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL")}  # read when torch is loaded

import torch

torch.set_num_threads(1)


def pytest_runtest_setup():
    torch.set_num_threads(1)  # LightGBM at its defaults leaves more behind

"""`gradients`: learning wherever it is called from."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def gradients() -> Iterator[None]:
    """Gradients inside, though whoever calls may have turned them off, as notebooks do for models that only answer."""
    with torch.inference_mode(False), torch.enable_grad():
        yield

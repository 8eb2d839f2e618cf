"""shapiq's ProxySPEX and the proxy of its ProxySHAP on the masks and values given to ours, run by another interpreter.

Masks and values go there as npz; what the peer predicts of fresh masks comes back. Nothing of the peer is copied: its
own objects are made with its own defaults, and fitted to the given masks instead of ones that it draws itself.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
METHODS = ("proxyspex", "proxyspex, one fit", "proxyshap")

# Runs where spex_mech and torch need not be installed. "proxyspex" is the default search over eight settings with five
# folds; "one fit" is its LightGBM with its default settings; of ProxySHAP the tree model is asked itself, which
# predicts no worse than the interactions of limited order that are read from it.
_PROGRAM = """
import resource, sys, time, warnings
import numpy as np
from importlib.metadata import version
from shapiq.approximator import ProxySHAP, ProxySPEX
from shapiq.approximator.proxy._routes import tree_to_fourier
warnings.filterwarnings("ignore")
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
given = np.load(sys.argv[1])

def polynomial(terms, masks):
    ablated = 1.0 - 2.0 * masks
    total = np.zeros(len(masks))
    for members, coefficient in terms.items():
        total += coefficient * ablated[:, list(members)].prod(1)
    return total

def proxyspex(keep, values, fresh, hpo):
    peer = ProxySPEX(n=keep.shape[1], max_order=2, index="FBII", hpo=hpo, random_state=0)
    peer.proxy_model.fit(keep, values)
    model = peer.proxy_model.best_estimator_ if hpo else peer.proxy_model
    return polynomial(peer._refine(tree_to_fourier(model, peer.n), keep, values), fresh)

def proxyshap(keep, values, fresh):
    peer = ProxySHAP(n=keep.shape[1], proxy_model="lightgbm", random_state=0)
    peer.proxy_model.fit(keep, values)
    return peer.proxy_model.predict(fresh)

calls = {"proxyspex": lambda *a: proxyspex(*a, True), "proxyspex, one fit": lambda *a: proxyspex(*a, False),
         "proxyshap": proxyshap}
keep, values, fresh = given["keep"].astype(float), given["values"], given["fresh"].astype(float)
started, wall = time.process_time(), time.perf_counter()
predicted = calls[sys.argv[4]](keep, values, fresh)
np.savez(sys.argv[2], predicted=predicted, seconds=time.process_time() - started,
         wall=time.perf_counter() - wall)
"""
_MEMORY = 8 << 30  # bytes the peer may take: reading some trees as a polynomial took it more than 18 GiB


@dataclass(frozen=True, eq=False)
class PeerAnswer:
    """What a peer predicts of the fresh masks, its CPU seconds, and those that went by."""

    predicted: Float[NDArray[np.float64], " fresh"]
    seconds: float
    wall: float


def has_shapiq(python: str | None) -> bool:
    """Whether an interpreter has shapiq's proxies (1.8, where ProxySHAP and the default search came)."""
    python = python or sys.executable
    asked = [python, "-c", "from shapiq.approximator.proxy._routes import tree_to_fourier; import lightgbm"]
    return shutil.which(python) is not None and not subprocess.run(asked, capture_output=True, check=False).returncode


def shapiq_proxy(
    keep: Bool[NDArray[np.bool_], "mask component"],
    values: Float[NDArray[np.float64], " mask"],
    fresh: Bool[NDArray[np.bool_], "fresh component"],
    method: str,
    python: str | None = None,
    threads: int = 1,
    timeout: float = 3600,
) -> PeerAnswer | None:
    """What one of shapiq's proxies (`METHODS`), fitted to some masks, predicts of fresh ones.

    None where it fails (ProxySPEX does from 1,000 components on), takes too long, or runs out of `_MEMORY`.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(given, keep=keep, values=values, fresh=fresh)
        environment = os.environ | dict.fromkeys(THREADS, str(threads))
        asked = [python or sys.executable, "-c", _PROGRAM, str(given), str(out), str(_MEMORY), method]
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                asked, check=False, timeout=timeout,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment,
            )  # fmt: skip
        if not out.exists():
            return None
        with np.load(out) as found:
            return PeerAnswer(found["predicted"], float(found["seconds"]), float(found["wall"]))

"""shapiq's decoders on what is given to ours, run by another interpreter, which need not have spex_mech or torch.

Functions, or masks and values, go there as npz, and what was found or predicted comes back. Nothing of the peer is
copied: its own objects are made with its own defaults; its proxies are fitted to the given masks instead of ones that
they draw themselves.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from spex_mech.bench.functions import Planted

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
METHODS = ("proxyspex", "proxyspex, one fit", "proxyshap")

# The first decoding of a process compiles the peer's field
# arithmetic; it is reported by itself, and the others are timed warm.
_SPEX = """
import json, sys, time
import numpy as np
from importlib.metadata import version
from shapiq.approximator import SPEX
from sparse_transform.qsft.qsft import transform
from sparse_transform.qsft.signals.input_signal_subsampled import SubsampledSignal

given, out = np.load(sys.argv[1]), sys.argv[2]
n, degree, budget, noise = (given[k].item() for k in ("n", "degree", "budget", "noise"))
order, answers = int(given["order"]), []

def decode(decoder, which, seed):
    members, coefficients = given[f"members{which}"], given[f"coefficients{which}"]
    sets = [row[row >= 0] for row in members]
    rng = np.random.default_rng(seed)
    def values(masks):
        ablated = np.asarray(masks).astype(np.int64)
        clean = sum(c * (1 - 2 * (ablated[:, s].sum(1) % 2)) for s, c in zip(sets, coefficients))
        return clean + noise * rng.standard_normal(len(ablated))
    np.random.seed(seed)
    clock = time.process_time(), time.perf_counter()
    spex = SPEX(n=n, max_order=2, index="FBII", decoder_type=decoder, degree_parameter=degree)
    used = spex._set_transform_budget(budget)
    signal = SubsampledSignal(func=values, n=n, q=2, query_args=spex.query_args)
    ready = time.process_time(), time.perf_counter()
    found = transform(signal, **spex.decoder_args)
    done = time.process_time(), time.perf_counter()
    return {"decoder": decoder, "function": which, "masks": int(used),
            "sets": [[int(i) for i in np.nonzero(k)[0]] for k in found], "prepare_cpu_s": ready[0] - clock[0],
            "cpu_s": done[0] - ready[0], "wall_s": done[1] - ready[1]}

first = {d: decode(d, 0, 12345) for d in ("soft", "hard")}
for which in range(order):
    for decoder in ("soft", "hard"):
        answers.append(decode(decoder, which, which))
report = {"first": {d: a["prepare_cpu_s"] + a["cpu_s"] for d, a in first.items()}, "answers": answers,
          "versions": {p: version(p) for p in ("shapiq", "sparse-transform", "galois")}}
np.savez(out, report=np.array(json.dumps(report)))
"""

# "proxyspex" is the default search over eight settings with five
# folds; "one fit" is its LightGBM with its default settings; of ProxySHAP the tree model is asked itself, which
# predicts no worse than the interactions of limited order that are read from it.
_PROXIES = """
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


def shapiq_spex(
    functions: list[Planted], degree: int, budget: int, noise: float, python: str | None = None, timeout: float = 3000
) -> dict[str, Any] | None:
    """What shapiq's SPEX, soft and hard, makes of planted functions: found sets and seconds; None where it is absent.

    The dictionary has ``answers`` (decoder, function, masks, sets, cpu_s, wall_s), ``first`` (CPU seconds of the first
    call of a process, compilation included) and ``versions``. One thread, so that CPU seconds are seconds of work.
    """
    if not _imports(python, "import shapiq.approximator, sparse_transform, galois"):
        return None
    given: dict[str, Any] = {
        "n": functions[0].spectrum.n, "degree": degree, "budget": budget, "noise": noise, "order": len(functions),
    }  # fmt: skip
    for number, function in enumerate(functions):
        given[f"members{number}"] = function.spectrum.members.numpy()
        given[f"coefficients{number}"] = function.spectrum.coefficients.numpy()
    found = _asked(python, _SPEX, given, (), timeout)
    if found is None:
        raise RuntimeError("shapiq's SPEX gave no answer")
    report: dict[str, Any] = json.loads(str(found["report"]))
    return report


def has_shapiq(python: str | None) -> bool:
    """Whether an interpreter has shapiq's proxies (1.8, where ProxySHAP and the default search came)."""
    return _imports(python, "from shapiq.approximator.proxy._routes import tree_to_fourier; import lightgbm")


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
    given = {"keep": keep, "values": values, "fresh": fresh}
    found = _asked(python, _PROXIES, given, (str(_MEMORY), method), timeout, threads)
    if found is None:
        return None
    return PeerAnswer(found["predicted"], float(found["seconds"]), float(found["wall"]))


def _imports(python: str | None, program: str) -> bool:
    python = python or sys.executable
    return (
        shutil.which(python) is not None
        and not subprocess.run([python, "-c", program], capture_output=True, check=False).returncode
    )


def _asked(
    python: str | None, program: str, given: Mapping[str, Any], more: tuple[str, ...], timeout: float, threads: int = 1
) -> dict[str, Any] | None:
    """What a program writes to the second file, of the arrays in the first; None where it writes none in time."""
    with tempfile.TemporaryDirectory() as folder:
        there, back = Path(folder, "given.npz"), Path(folder, "found.npz")
        np.savez(there, **given)
        with suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [python or sys.executable, "-c", program, str(there), str(back), *more], check=False, timeout=timeout,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env=os.environ | dict.fromkeys(_THREADS, str(threads)),
            )  # fmt: skip
        if not back.exists():
            return None
        with np.load(back) as found:
            return dict(found)

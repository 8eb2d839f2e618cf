"""shapiq's SPEX on a planted function, run by another interpreter: the function goes there and what it found comes back
as npz. Nothing of the peer is copied; its own settings are used as its own code sets them.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from spex_mech.bench.functions import Planted

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")

# Runs where spex_mech and torch need not be installed. The first decoding of a process compiles the peer's field
# arithmetic; it is reported by itself, and the others are timed warm.
_PROGRAM = """
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


def shapiq_spex(
    functions: list[Planted], degree: int, budget: int, noise: float, python: str | None = None, timeout: float = 3000
) -> dict[str, Any] | None:
    """What shapiq's SPEX, soft and hard, makes of planted functions: found sets and seconds; None where it is absent.

    The dictionary has ``answers`` (decoder, function, masks, sets, cpu_s, wall_s), ``first`` (CPU seconds of the first
    call of a process, compilation included) and ``versions``. One thread, so that CPU seconds are seconds of work.
    """
    python = python or sys.executable
    asked = [python, "-c", "import shapiq.approximator, sparse_transform, galois"]
    if shutil.which(python) is None or subprocess.run(asked, capture_output=True, check=False).returncode:
        return None
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "given.npz"), Path(folder, "found.npz")
        arrays: dict[str, Any] = {
            "n": functions[0].spectrum.n, "degree": degree, "budget": budget, "noise": noise, "order": len(functions),
        }  # fmt: skip
        for number, function in enumerate(functions):
            arrays[f"members{number}"] = function.spectrum.members.numpy()
            arrays[f"coefficients{number}"] = function.spectrum.coefficients.numpy()
        np.savez(given, **arrays)
        subprocess.run(
            [python, "-c", _PROGRAM, str(given), str(out)], check=True, timeout=timeout, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=os.environ | dict.fromkeys(_THREADS, "1"),
        )  # fmt: skip
        with np.load(out) as found:
            report: dict[str, Any] = json.loads(str(found["report"]))
    return report

"""Cost and accuracy of decoding coded masks: planted functions of 64 to 36,864 components, beside shapiq's SPEX."""

import resource
import subprocess
import sys
import time
from statistics import median
from typing import Any

import torch
from torch import Tensor

from spex_mech.bench.functions import Kind, Planted, narrowed, planted_function, support_f1
from spex_mech.bench.peers import shapiq_spex
from spex_mech.bench.timing import interleaved, machine, median_ratio
from spex_mech.measuring.threads import threads
from spex_mech.walsh.decoding import Decoded, Samples, r_squared
from spex_mech.walsh.masks.coded import parity_rows
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum
from spex_mech.walsh.spex.spex import Spex, decode_function
from spex_mech.walsh.transform import walsh_hadamard

Row = dict[str, Any]
PUBLISHED = {"n": 64, "degree": 5, "noise": 0.2}  # what the neighbours were measured at
BUDGETS = (1728, 3456)  # of masks; the summary is of the first
_SETS: dict[Kind, int] = {"random": 40, "hierarchical": 5}
_FIRST = (
    "import sys; from spex_mech.bench.decoding_cost import first_call; print(first_call(sys.argv[1], int(sys.argv[2])))"
)
_FRESH = 2000  # masks that R² is taken on, noise-free


def run(device: str = "cpu", quick: bool = False, peer_python: str | None = None) -> dict[str, Any]:
    """Decode planted functions and time it; `quick` keeps to the smallest, for tests.

    Rows (``kind``): ``decode`` by n, function, noise; ``peer`` and ``ours`` on the same functions at n = 64 in 1,728
    and 3,456 masks; ``first call``; ``outputs``, many at once against one; ``transform``, against a copy of the same
    bytes. The summary, of 1,728 masks and random functions where nothing else is said:

    - speedup_vs_shapiq_soft: CPU seconds of shapiq's soft decoding, warm / ours with the check on held-out masks,
      medians; speedup_vs_shapiq_soft_call: of a whole call each, codes and masks made, functions asked;
      speedup_vs_shapiq_soft_first_call: of the first call in a process, which is what a script pays, with all that is
      compiled in it, the smallest ratio over both kinds of functions and both budgets. None where shapiq and
      sparse-transform are not installed for `peer_python`.
    - f1_min: our smallest support F1 at n = 64; f1_min_shapiq_soft: theirs.
    - f1_largest: the smaller of random functions without and with noise at the largest n; seconds_largest: the longest
      decoding there; peak_gib: memory of the whole run.
    - outputs_cost: 64 outputs at once / one; transform_share_of_copy: bandwidth of the 2^20-point transform.
    """
    rows, summary = _against_shapiq(1 if quick else 10, device, peer_python)
    large = _by_size(quick, device)
    outputs, transform = _outputs(device, 8 if quick else 64), _transform(device, 12 if quick else 20)
    largest = [row for row in large if row["n"] == max(r["n"] for r in large)]
    summary |= {
        "f1_largest": min(row["f1"] for row in largest if row["function"] == "random"),
        "seconds_largest": max(row["seconds"] for row in largest),
        "peak_gib": _peak_gib(device),
        "outputs_cost": outputs["cost"],
        "transform_share_of_copy": transform["share_of_copy"],
    }
    return {"machine": machine(device), "rows": [*rows, *large, outputs, transform], "summary": summary}


def _against_shapiq(functions: int, device: str, python: str | None) -> tuple[list[Row], Row]:
    """Both on one thread: work of this size does not need more, and threads that wait for each other are not work."""
    with threads(1):
        return _on_one_thread(functions, device, python)


def _on_one_thread(functions: int, device: str, python: str | None) -> tuple[list[Row], Row]:
    ratios = ("speedup_vs_shapiq_soft", "speedup_vs_shapiq_soft_call", "speedup_vs_shapiq_soft_first_call")
    rows, summary = [], Row(dict.fromkeys(ratios))
    for kind, sets in _SETS.items():
        planted = [planted_function(kind, 64, sets=sets, seed=seed) for seed in range(functions)]
        for budget in BUDGETS if functions > 1 else BUDGETS[:1]:
            ours = [published(function, seed, device, budget) for seed, function in enumerate(planted)]
            report = shapiq_spex(planted, PUBLISHED["degree"], budget, PUBLISHED["noise"], python)  # type: ignore[arg-type]
            theirs = [] if report is None else [_theirs(answer, planted, budget) for answer in report["answers"]]
            first = [] if report is None else [_first_calls(kind, budget, report["first"])]
            rows += [row | {"function": kind} for row in (*ours, *theirs, *first)]
            if (kind, budget) == ("random", BUDGETS[0]):
                summary["f1_min"] = min(row["f1"] for row in ours)
                summary |= {} if report is None else _beside(ours, theirs, ratios) | {"peers": report["versions"]}
    calls = [row["speedup"] for row in rows if row["kind"] == "first call"]
    return rows, summary | ({ratios[2]: min(calls)} if calls else {})


def _beside(ours: list[Row], theirs: list[Row], names: tuple[str, ...]) -> Row:
    """Ratios of the medians of soft decoding and ours, and its smallest F1."""
    soft = [row for row in theirs if row["decoder"] == "shapiq soft"]
    parts = zip(names, ("cpu_s", "call_cpu_s"), strict=False)
    ratios = {name: median(row[part] for row in soft) / median(row[part] for row in ours) for name, part in parts}
    return ratios | {"f1_min_shapiq_soft": min(row["f1"] for row in soft)}


def _first_calls(kind: Kind, budget: int, theirs: Row) -> Row:
    """CPU seconds of the first whole call of a fresh process, theirs and ours."""
    call = [sys.executable, "-c", _FIRST, kind, str(budget)]
    ours = float(subprocess.run(call, check=True, capture_output=True, text=True).stdout)
    return {
        "kind": "first call", "budget": budget, "cpu_s": ours, "speedup": theirs["soft"] / ours,
        **{f"shapiq {decoder} cpu_s": spent for decoder, spent in theirs.items()},
    }  # fmt: skip


def first_call(kind: Kind, budget: int) -> float:
    """CPU seconds of a whole call of ours on one planted function: of the first one, in a process made for it."""
    torch.set_num_threads(1)
    cost: float = published(planted_function(kind, 64, sets=_SETS[kind], seed=99), 99, "cpu", budget)["call_cpu_s"]
    return cost


def published(function: Planted, seed: int, device: str, budget: int = BUDGETS[0]) -> Row:
    """Our decoding of one function in the neighbours' setting."""
    degree, noise = int(PUBLISHED["degree"]), PUBLISHED["noise"]
    called = time.process_time()
    design = MaskDesign.coded(64, degree, budget, seed)
    keep = design.keep(device=device)
    samples = Samples(keep, function.noisy(keep, noise, seed)[:, None].float(), design)
    cpu, wall = time.process_time(), time.perf_counter()
    decoded = Spex().decode(samples, seed=0)
    done = time.process_time()
    row = {"cpu_s": done - cpu, "call_cpu_s": done - called, "wall_s": time.perf_counter() - wall, "budget": budget}
    return {"kind": "ours", "decoder": "spex", "seed": seed, **PUBLISHED, **row, **_accuracy(function, decoded)}


def _theirs(answer: Row, functions: list[Planted], budget: int) -> Row:
    function = functions[answer["function"]]
    f1 = support_f1(function.sets, {tuple(members) for members in answer["sets"]})
    times = {
        "cpu_s": answer["cpu_s"],
        "call_cpu_s": answer["prepare_cpu_s"] + answer["cpu_s"],
        "wall_s": answer["wall_s"],
    }
    return {
        "kind": "peer", "decoder": f"shapiq {answer['decoder']}", "budget": budget, "seed": answer["function"],
        **PUBLISHED, "f1": f1, "sets": len(answer["sets"]), **times,
    }  # fmt: skip


def _accuracy(function: Planted, decoded: Decoded) -> Row:
    truth, found = narrowed(function.spectrum, decoded.spectrum)
    fresh = MaskDesign.bernoulli(truth.n, _FRESH, seed=7).keep()
    return {
        "f1": support_f1(function.sets, set(decoded.spectrum.sets)),
        "r2": r_squared(Planted(truth, function.link)(fresh), found.evaluate(fresh)),
        "sets": decoded.stats["sets"],
        "outcome": decoded.outcome.name,
    }


def _by_size(quick: bool, device: str) -> list[Row]:
    """Growth with n: 200 random sets in 3 × 256 bins, 5 ANDs in 3 × 16, and hierarchical tails behind a tanh."""
    sizes = (64, 256) if quick else (64, 256, 1024, 4096, 36_864)
    rows = []
    for n in sizes:
        for kind, sets, bits, noise in (
            ("random", 200, 8, 0.0), ("random", 200, 8, 0.1), ("hierarchical", 5, 4, 0.2), ("tanh", 25, 6, 0.05),
        ):  # fmt: skip
            rows.append(_one_size(kind, n, sets, bits, noise, device))  # type: ignore[arg-type]
    return rows


def _one_size(kind: Kind, n: int, sets: int, bits: int, noise: float, device: str) -> Row:
    function = planted_function(kind, n, sets=sets, seed=n)
    budget = int(1.05 * 3 * (1 + parity_rows(n, 4)) * 2**bits)
    asked: list[float] = []  # when the function had answered, in CPU seconds: what comes after the last is decoding

    def ask(keep: Tensor) -> Tensor:
        values = function.noisy(keep, noise, len(asked))
        asked.append(time.process_time())
        return values

    spent = time.perf_counter()
    decoded = decode_function(ask, n, 4, budget, seed=1, device=device)
    cpu, spent = time.process_time() - asked[-1], time.perf_counter() - spent
    return {
        "kind": "decode", "function": kind, "n": n, "planted": len(function.sets), "noise": noise, "masks": budget,
        "cpu_s": cpu, "seconds": decoded.stats["seconds"], "seconds_with_masks": spent, "peak_gib": _peak_gib(device),
        **_accuracy(function, decoded),
    }  # fmt: skip


def _outputs(device: str, outputs: int) -> Row:
    """Many outputs that share 40 sets, each with its own coefficients, at once and one alone."""
    base = planted_function("random", 64, seed=0).spectrum
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(len(base), outputs, generator=generator, dtype=torch.float64)
    design = MaskDesign.coded(64, 5, 1920)
    keep = design.keep()
    values = Spectrum(64, base.members, weights / weights.norm(dim=0)).evaluate(keep)
    noisy = (values + 0.2 * torch.randn(values.shape, generator=generator, dtype=torch.float64)).float()
    jobs = {
        name: Samples(keep.to(device), chosen.to(device), design)
        for name, chosen in (("one", noisy[:, :1]), ("all", noisy))
    }
    times = interleaved(
        {name: lambda samples=samples: Spex(per_output=True).decode(samples, seed=0) for name, samples in jobs.items()},
        3,
        device,
    )
    return {"kind": "outputs", "outputs": outputs, "cost": median_ratio(times["all"], times["one"]), "seconds": times}


def _transform(device: str, bits: int) -> Row:
    """The transform of a batch of 2^bits points beside a copy of the same bytes."""
    values = torch.randn(8, 1 << bits, device=device)
    times = interleaved({"copy": values.clone, "transform": lambda: walsh_hadamard(values)}, 10, device)
    share = median_ratio(times["copy"], times["transform"])
    return {"kind": "transform", "points": 1 << bits, "batch": 8, "share_of_copy": share, "seconds": times}


def _peak_gib(device: str) -> float:
    """Most memory held so far: by the process, or on the GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30

"""A million masks: through the journal and a decoder in bounded memory, with progress that is never wrong."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.measuring.ask import Ask
from spex_mech.measuring.decode import choose_decoder
from spex_mech.measuring.measure import describe_experiment, measure_in
from spex_mech.walsh.decoding import Samples

masks, folder, name = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
subject = planted.random(20, 3, 0, layout=planted.PlantedLayout(n_layers=2, n_heads=12), spread=0.3)
task, components = planted.task(n_prompts=2, seed=0), sm.select(subject, "a*.h*")
reference = fit_replacement(subject, task, components)
engine = Engine(subject, task, components, reference)
make = {"spex": lambda n: sm.MaskDesign.coded(24, budget=n), "linear": lambda n: sm.MaskDesign.bernoulli(24, n)}[name]

def run(n, folder):
    design, ticks = make(n), []
    record = describe_experiment(engine, design)
    tick = lambda finished: ticks.append((time.perf_counter(), finished))
    responses, _ = measure_in(folder, engine, record, design.keep(), cut=design.chunks, tick=tick)
    measured = peak()
    solver = choose_decoder(Ask(decoder=name, link="identity"), design, n)
    decoded = solver.decode(Samples(responses.keep, responses.values, design), seed=0)
    return responses, decoded, ticks, measured

run(2000, folder / "first")  # so that all is imported
before = peak()
responses, decoded, ticks, measured = run(masks, folder / "run")
fresh = sm.MaskDesign.bernoulli(24, 500, 0.5, 9).keep()
expected = planted.truth(subject, components).evaluate(fresh)
error = float((decoded.predict(fresh).double() - expected).square().mean() / expected.var())
began, ended, done, etas = ticks[0][0], ticks[-1][0], 0, []
for when, n in ticks:
    done += n
    if 0.1 * masks < done < 0.9 * masks:  # the time left as a bar tells it, against what it then was
        etas.append((when - began) / done * (masks - done) / (ended - when))
sizes = {path.name: path.stat().st_size / 2**20 for path in (folder / "run").iterdir()}
print(json.dumps({
    "before": before, "measuring": measured - before, "decoding": peak() - before, "masks": len(responses),
    "ticked": done, "error": error, "eta": [min(etas), max(etas)], "seconds": ended - began,
    "disk": sum(sizes.values()),
}))
"""


def soak(masks, folder, decoder, timeout):
    """Peak memory in MiB above the imports, and what was told on the way."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(masks), str(folder), decoder], capture_output=True, text=True,
        timeout=timeout, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_many_masks_hold_little_memory(tmp_path):
    told = soak(40_000, tmp_path, "spex", 250)
    assert told["masks"] == told["ticked"] == 40_000
    assert told["error"] < 0.01
    assert told["decoding"] < 150


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("decoder", ["spex", "linear"])
def test_a_million_masks(tmp_path, decoder):
    told = soak(1_000_000, tmp_path, decoder, 3500)
    print(told)
    assert told["masks"] == told["ticked"] == 1_000_000
    assert told["measuring"] < 512
    assert told["decoding"] < 1536
    assert 0.5 < told["eta"][0] <= told["eta"][1] < 2
    assert (told["error"] < 0.01) == (decoder == "spex")

"""Thousands of components: the decoder in bounded time and memory, in a process of its own."""

import json
import subprocess
import sys

import pytest

_PROGRAM = """
import json, resource, time, torch
torch.set_num_threads(1)
from spex_mech.bench.cases import planted_case
from spex_mech.walsh.decoding import Samples, r_squared
from spex_mech.walsh.joint.joint import Joint
case = planted_case(("hierarchical", 4096, 5, 0.2), 8192, 0)
started = time.process_time()
decoded = Joint().decode(Samples(case.keep, case.values), seed=0)
seconds = time.process_time() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps([seconds, peak, r_squared(case.truth, decoded.spectrum.evaluate(case.fresh))]))
"""


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_thousands_of_components_take_minutes_and_gibibytes(capsys):
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    seconds, peak, r2 = json.loads(done.stdout)
    with capsys.disabled():
        print(f"4,096 components, 8,192 masks: {seconds:.0f} CPU seconds, {peak:.1f} GiB, R² {r2:.5f}")
    assert seconds < 600
    assert peak < 8
    assert r2 > 0.999

"""`hash_function`: equal for what does the same, different for what does not, whatever it is called."""

import functools
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch

from spex_mech.store.fingerprints import hash_function

SCALE = 2.0
SELF = {"times": 3}


def scaled(logits, scored):
    return logits[:, 0] * SCALE + sum(helper(i) for i in range(SELF["times"]))


def helper(i):
    return i + 1


def closing_over(value):
    def metric(logits, scored):
        return logits[:, 0] + (value if isinstance(value, float) else 0)

    return metric


@dataclass
class Judge:
    weight: float

    def __call__(self, logits, scored):
        return logits[:, 0] * self.weight


def probe(value):
    made = torch.nn.Linear(2, 1, dtype=torch.bfloat16)
    torch.nn.init.constant_(made.weight, value)
    torch.nn.init.zeros_(made.bias)
    return made


@pytest.mark.parametrize(
    "make",
    [
        closing_over,
        Judge,
        probe,
        lambda v: closing_over([v]),
        lambda v: closing_over({"a": (v, None)}),
        lambda v: closing_over(torch.tensor([v])),
        lambda v: closing_over(torch.tensor([v]).numpy()),
        lambda v: closing_over(probe(v)),
        lambda v: closing_over(Judge(v)),
        lambda v: functools.partial(helper, i=v),
        lambda v: Judge(v).__call__,
        lambda v: eval(f"lambda logits, scored: logits * {v}"),
        lambda v: eval(f"lambda logits, scored, w={v}: logits * w"),
        lambda v: eval(f"lambda logits, scored, *, w={v}: logits * w"),
        lambda v: eval(f"lambda logits, scored: [x * {v} for x in logits]"),
    ],
)
def test_the_same_is_the_same_and_other_content_is_not(make):
    assert hash_function(make(1.5)) == hash_function(make(1.5)) != hash_function(make(2.5))


@pytest.mark.parametrize(("name", "value"), [("SCALE", 3.0), ("SELF", {"times": 4}), ("helper", lambda i: i)])
def test_what_it_uses_of_its_own_module_counts(monkeypatch, name, value):
    before = hash_function(scaled)
    monkeypatch.setattr(sys.modules[__name__], name, value)
    assert hash_function(scaled) != before


def test_a_function_that_calls_itself_ends():
    def again(n):
        return again(n - 1) if n else 0

    assert hash_function(again) == hash_function(again)


def test_another_process_gives_the_same():
    code = (
        "from spex_mech.store.fingerprints import hash_function\n"
        "def metric(logits, scored): return logits if logits in {'a', 'b', 'c'} else {'d': 1}\n"
        "print(hash_function(metric))"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": s},
        ).stdout
        for s in ("1", "2", "3")
    }
    assert len(said) == 1

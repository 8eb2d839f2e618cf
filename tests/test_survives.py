"""What may happen beside a run: memory that runs out anywhere, state of the process that is not ours, odd texts."""

import json
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.respond import Engine
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.nodes import Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.errors import ResponseError
from spex_mech.formats.interchange import EXPORTERS, export


class Small:
    """A subject with memory for few rows."""

    def __init__(self, inner, rows):
        self.inner, self.rows, self.full = inner, rows, 0

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def forward(self, tokens, edits, positions, *more):
        if len(tokens) > self.rows:
            self.full += 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner.forward(tokens, edits, positions, *more)


@pytest.mark.parametrize("kind", ["mean", "resample"])
@pytest.mark.parametrize("ragged", [False, True])
def test_memory_that_runs_out_while_replacement_values_are_taken(kind, ragged):
    from spex_mech.ablation.replacement import fit_replacement

    subject, task = sm.bind(tiny("gpt2")), tokens_task(n_prompts=7, ragged=ragged)
    small, names = Small(subject, 2), sm.heads(subject)
    whole = fit_replacement(subject, task, names, kind, None, 0)
    found = fit_replacement(small, task, names, kind, None, 0)
    assert small.full
    for site, values in whole.references.items():
        torch.testing.assert_close(found.references[site], values, rtol=1e-5, atol=1e-6)
    with pytest.raises(ResponseError, match="does not fit into memory"):
        fit_replacement(Small(subject, 0), task, names, kind, None, 0)


def test_memory_that_runs_out_while_the_intact_model_is_asked():
    from spex_mech.ablation.replacement import fit_replacement

    subject, task = sm.bind(tiny("gpt2")), tokens_task(n_prompts=7).with_metric("kl")
    names = sm.heads(subject)
    reference, keep = fit_replacement(subject, task, names, "zero", None, 0), torch.ones(2, 8, dtype=torch.bool)
    keep[1, 3] = False
    small = Small(subject, 3)
    values = [Engine(s, task, names, reference, batch_rows=2).values(keep) for s in (subject, small)]
    assert small.full
    torch.testing.assert_close(*values, rtol=1e-5, atol=1e-6)


def test_an_error_that_is_not_of_memory_is_told_as_it_is():
    from spex_mech.ablation.replacement import fit_replacement

    subject = Small(sm.bind(tiny("gpt2")), 9)
    subject.forward = lambda *_: (_ for _ in ()).throw(RuntimeError("a slip"))
    with pytest.raises(RuntimeError, match="a slip"):
        fit_replacement(subject, tokens_task(), sm.heads(subject), "mean", None, 0)


def test_nothing_of_the_process_moves_with_the_first_decoding():
    """In a process of its own, where every library is loaded for the first time."""
    code = (
        "import json, os, random, torch, numpy\n"
        "random.seed(1)\n"
        "def state(): return [random.getstate()[1][:9], numpy.random.get_state()[1].tolist()[:9],"
        " torch.get_rng_state().tolist()[:99], {k: v for k, v in os.environ.items() if 'KMP' in k or 'OMP' in k},"
        " torch.get_num_threads(), torch.is_grad_enabled(), str(torch.get_default_dtype()), os.getcwd()]\n"
        "before = state()\n"
        "import spex_mech as sm\n"
        "from spex_mech.ablation.backends import planted\n"
        "s = planted.conjunction(('a0.h1', 'a1.h0'), layout=planted.PlantedLayout(n_layers=2, n_heads=4))\n"
        "sm.discover(s, planted.task(n_prompts=2), components='a*.h*', budget=100, decoder='joint', link='auto', "
        "progress=True)\n"
        "after = state()\n"
        "print(json.dumps([i for i, (a, b) in enumerate(zip(before, after)) if a != b]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []


@given(st.text(max_size=20), st.text(max_size=20))
@settings(max_examples=60, deadline=None)
def test_graph_files_are_well_formed_whatever_roles_and_units_say(tmp_path_factory, role, unit):
    names = ComponentSet.of(["a0.h0", "a0.h1"])
    role, unit = (text.encode(errors="ignore").decode() for text in (role, unit))
    nodes = tuple(replace(Node(component, 1.0), role=role) for component in names)
    circuit = Circuit(names, nodes, (Interaction(("a0.h0", "a0.h1"), 0.5, "synergy"),), unit or "logits")
    for to in ("graphml", "gexf"):
        path = tmp_path_factory.getbasetemp() / f"c.{to}"
        export(circuit, path, to=to)
        assert ET.parse(path).getroot() is not None
    assert {"graphml", "gexf"} <= set(EXPORTERS)


def test_random_numbers_are_those_of_the_user():
    random.seed(7)
    expected = [random.random() for _ in range(3)]
    random.seed(7)
    sm.discover(sm.bind(tiny("gpt2")), tokens_task(), components="a*.h*", budget=60, decoder="linear")
    assert [random.random() for _ in range(3)] == expected

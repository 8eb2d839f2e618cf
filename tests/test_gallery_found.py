"""What the gallery says it found: every card's saved responses are its model's, and decode to its found.json."""

import json
import shlex

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.api.discover import decode
from spex_mech.gallery import cards, open_card
from spex_mech.store.responses import Responses

OWN = [name for name in cards() if not open_card(name).on_hub]
DEAR = {"brackets-2l", "names-3l", "years-2l"}  # seconds to minutes each to decode


def saved(name):
    folder = open_card(name).folder
    return json.loads((folder / "found.json").read_text()), Responses.load(folder / "responses.safetensors")


@pytest.mark.parametrize("name", OWN)
def test_saved_responses_are_those_of_the_model(name):
    study, (_, responses) = sm.open_study(name, device="cpu"), saved(name)
    assert responses.components.names == study.components.names
    assert responses.values.shape == (len(responses.keep), len(study.task))
    rows = torch.randperm(len(responses.keep), generator=torch.Generator().manual_seed(5))[:8]
    replacement = fit_replacement(study.subject, study.task, study.components, study.replacement, study.per)
    values = respond(study.subject, study.task, study.components, [responses.keep[rows]], replacement)
    torch.testing.assert_close(values, responses.values[rows], rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in OWN])
def test_saved_responses_decode_to_what_was_found(name):
    record, responses = saved(name)
    found = decode(responses, decoder=record["decoder"], seed=record["seed"])
    assert found.decoded.outcome.name == record["outcome"]
    assert found.heldout_r2 == pytest.approx(record["heldout_r2"], abs=1e-3)
    assert (found.circuit.unit, found.spectrum.basis.kind) == (record["unit"], record["basis"])
    mean = found.spectrum.mean_output()
    coefficients = {frozenset(found.components.names[i] for i in s): c for s, c in mean.terms()}
    largest = max(abs(term["coefficient"]) for term in record["terms"])
    for term in record["terms"]:
        got = coefficients[frozenset(term["set"])]
        assert got == pytest.approx(term["coefficient"], abs=5e-3 * largest), term


@pytest.mark.parametrize("name", OWN)
def test_the_command_of_a_finding_is_one(name):
    """Its name, budget, keep-probability and seed are those of the responses beside it."""
    record, responses = saved(name)
    program, verb, card, *options = shlex.split(record["command"])
    told = dict(zip(options[::2], options[1::2], strict=True))
    design = responses.provenance["design"]
    assert (program, verb, card) == ("spex-mech", "discover", name)
    assert (int(told["--budget"]), int(told["--seed"])) == (len(responses.keep), record["seed"])
    assert float(told["--keep"]) == design.get("keep_prob", float(told["--keep"]))
    assert abs(float(responses.keep.float().mean()) - float(told["--keep"])) < 0.03

"""What a plain Python shell shows: a few lines that name the thing and say what it holds, however much that is."""

import pytest
import torch
from tiny_models import tiny

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.tasks.prompts import Prompts
from spex_mech.walsh.decoding import Samples
from spex_mech.walsh.spectrum import Spectrum


@pytest.fixture(scope="module")
def found():
    layout = planted.PlantedLayout(2, 4, 8)
    model = planted.polynomial({("a0.h1", "a1.h2"): 2.0, ("m1.n3",): -1.0, (): 3.0}, basis="walsh", layout=layout)
    return sm.discover(model, planted.task(2), "a*.h*, m*.n*", budget=256, decoder="proxyspex")


def shown(thing):
    assert str(thing) == repr(thing)
    lines = repr(thing).splitlines()
    assert len(lines) <= 8
    assert "tensor(" not in repr(thing)
    assert all(len(line) < 240 for line in lines)
    return repr(thing)


def test_a_run_says_how_good_it_is_and_its_strongest_interactions(found):
    text = shown(found)
    assert text.splitlines()[0] == str(found.circuit)
    assert "256 masks × 2 prompts" in text
    assert found.decoded.outcome.meaning in text
    assert text.index("a0.h1 × a1.h2") < text.index("m1.n3")
    assert "synergy" in text


def test_what_does_not_fit_is_counted(found):
    many = planted.polynomial(
        {(f"a{i // 4}.h{i % 4}",): 1.0 + i for i in range(8)}, layout=planted.PlantedLayout(2, 4, 0)
    )
    run = sm.discover(many, planted.task(2), "a*.h*", budget=256)
    assert shown(run).splitlines()[-1] == f"  … and {len(run.circuit.interactions) - 5} more in .interactions()"
    assert "… and" not in shown(found)


def test_a_decoding_and_its_polynomial(found):
    assert shown(found.decoded).startswith("Decoded: recovered, held-out R² 1.000\n  Spectrum of ")
    text = shown(found.spectrum)
    assert f"of {found.spectrum.n} components up to order 2, walsh basis" in text
    first = tuple(found.components.indices(["a0.h1", "a1.h2"]))
    assert f"strongest: {first} +" in text
    assert "biased basis at 0.9" in shown(found.spectrum.rewrite(sm.Basis("biased", 0.9)))
    assert "× 3 outputs" in shown(Spectrum(2, torch.tensor([[0]]), torch.ones(1, 3)))
    assert "of 0 sets" in shown(Spectrum(2, torch.zeros(0, 0, dtype=torch.long), torch.zeros(0)))


def test_a_link_is_told(found):
    saturating = planted.polynomial(
        {(f"a0.h{i}",): 1.5 for i in range(8)}, basis="walsh", layout=planted.PlantedLayout(1, 8, 0), link="sigmoid"
    )
    run = sm.discover(saturating, planted.task(2), "a*.h*", budget=200, decoder="linear", link="logistic")
    assert not run.link.is_identity
    assert "behind a link: " in shown(run)
    assert run.link.describe() in shown(run.decoded)


def test_responses_tell_their_range(found):
    text, mean = shown(found.responses), found.responses.mean
    assert text.startswith("Responses: 256 masks × 2 prompts of 24 components, 5")
    assert f"{float(mean.min()):+.3g} to {float(mean.max()):+.3g} logit" in text


def test_studies_subjects_tasks_and_prompts_have_short_ones():
    study = sm.open_study("induction-2l")
    assert shown(study).splitlines()[0] == study.title
    assert "12 components, each replaced by its mean" in shown(study)
    assert "judged by logit_diff" in shown(study.task)
    assert shown(study.subject).startswith("BridgeSubject of ")
    assert shown(sm.bind(tiny("gpt2"))).startswith("TorchSubject of ")
    assert shown(Prompts.from_rows([[1, 2], [3]])) == "Prompts(2 of 1 to 2 tokens)"
    assert "complete" not in shown(Samples(torch.ones(3, 2, dtype=torch.bool), torch.zeros(3, 1)))


def test_prompts_without_text_are_shown_by_their_tokens():
    task = sm.Task([[3, 1, 2], list(range(40))], answers=[1, 1], distractors=[[2], [2]])
    assert "  3 1 2\n" in shown(task)
    assert "  0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 …" in shown(task)
    assert "''" not in shown(sm.open_study("induction-2l").task)

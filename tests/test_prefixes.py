"""Work left out: shared prefixes are exact and are shared, replaced MLP rows are not computed, and nothing changes."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny, tokens_task

import spex_mech as sm
from spex_mech.ablation.binding import bind
from spex_mech.ablation.edits import RowEdit
from spex_mech.ablation.memory import peak_bytes
from spex_mech.ablation.prefixes import find_prefixes
from spex_mech.ablation.recipe import compile_recipe
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import Engine, respond
from spex_mech.ablation.subject import Shortcuts, Site
from spex_mech.components import ModelShape
from spex_mech.errors import DesignError
from spex_mech.walsh.decoding import Samples, split_masks

SITES = tuple(Site(layer, "heads", 3, 4) for layer in range(4))
LAYERS = st.sampled_from([(0, 1, 2, 3), (1, 3), (2,)])
SHAPE = ModelShape("m", (3,) * 4, (3,) * 4, mlps=(False,) * 4, neurons=(0,) * 4, d_vocab=9)


@pytest.fixture(scope="module")
def subject():
    return bind(tiny("gpt2"))


def recipe_of(layers):
    names = [f"a{layer}.h{head}" for layer in layers for head in range(3)]
    return compile_recipe(sm.ComponentSet.of(names), SITES, SHAPE)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 60), st.sampled_from([0.5, 0.9, 1.0]), LAYERS)
def test_prefixes_are_exactly_the_distinct_words(seed, masks, share, layers):
    keep = torch.rand(masks, 3 * len(layers), generator=torch.Generator().manual_seed(seed)) < share
    found = find_prefixes(recipe_of(layers), keep)
    for k, layer in enumerate(layers):
        words = {tuple(w) for w in keep[:, : 3 * (k + 1)].tolist()}
        assert len(found.masks[layer]) == len(words)  # one row a distinct prefix, no more and no fewer
        assert {tuple(keep[m, : 3 * (k + 1)].tolist()) for m in found.masks[layer].tolist()} == words
        parents = found.growth.get(layer)
        if k and parents is not None:
            above = found.masks[layers[k - 1]]
            assert torch.equal(keep[above[parents], : 3 * k], keep[found.masks[layer], : 3 * k])
    assert torch.equal(keep[found.masks[layers[-1]]][found.last], keep)
    assert sorted(found.order.tolist()) == list(range(masks))
    assert (found.last[found.order].diff() >= 0).all()
    ordered, sorted_keep = found.sorted(), keep[found.order]
    assert torch.equal(sorted_keep[ordered.masks[layers[-1]]][ordered.last], sorted_keep)
    for k, layer in enumerate(layers):
        words = [sorted_keep[ordered.masks[layer], : 3 * (k + 1)], keep[found.masks[layer], : 3 * (k + 1)]]
        assert torch.equal(*words)  # the same rows in the same order


def test_a_kept_row_is_what_it_was_and_another_its_reference():
    x, reference = torch.randn(4, 2, 3), torch.randn(4, 2, 3)
    kept = torch.tensor([True, False, True, False])
    edit = RowEdit(kept, reference)
    whole = edit(x)
    assert torch.equal(whole[kept], x[kept])
    assert torch.equal(whole[~kept], reference[~kept])
    assert torch.equal(edit(x[edit.inputs]), whole)
    none = RowEdit(torch.zeros(4, dtype=torch.bool), reference)
    assert torch.equal(none(x[none.inputs]), reference)
    x[1] = torch.inf  # what is replaced may be infinite
    assert edit(x).isfinite().all()


def note(seen, name, _module, args):
    seen[name] = len(args[0])


def rows_seen(subject, keep, expression):
    """Rows that pass each block and each MLP, and the values."""
    components = sm.select(subject, expression)
    task = tokens_task(n_prompts=1)
    reference = fit_replacement(subject, task, components)
    seen, handles = {}, []
    for layer, block in enumerate(subject.model.transformer.h):
        for name, module in ((f"m{layer}", block.mlp.c_fc), (f"b{layer}", block.ln_1)):
            handles.append(module.register_forward_pre_hook(partial(note, seen, name)))
    values = respond(subject, task, components, [keep], reference)
    for handle in handles:
        handle.remove()
    return seen, values


def test_masks_that_agree_on_the_first_layer_run_it_once(subject):
    generator = torch.Generator().manual_seed(0)
    keep = torch.rand(40, 8, generator=generator) < 0.5
    keep[:, :4] = keep[torch.arange(40) % 3, :4]  # three words in layer 0
    words = len({tuple(row) for row in keep[:, :4].tolist()})
    seen, values = rows_seen(subject, keep, "a*.h*")
    assert seen["m0"] == words <= 3
    assert seen["b1"] == len({tuple(row) for row in keep.tolist()})
    shortcuts, subject.shortcuts = subject.shortcuts, Shortcuts()
    plainly, same = rows_seen(subject, keep, "a*.h*")
    subject.shortcuts = shortcuts
    assert plainly["m0"] == 40
    assert (values - same).abs().max() <= 1e-5


def test_masks_that_repeat_run_once(subject):
    keep = (torch.arange(8) != 2).expand(30, 8)
    seen, values = rows_seen(subject, keep, "a*.h*")
    assert seen["b1"] == 1
    assert len(values.unique()) == 1


def test_an_mlp_runs_on_the_rows_that_keep_it(subject):
    keep = torch.ones(32, 3, dtype=torch.bool)  # a0.h0, m0, m1
    keep[:, 0] = torch.arange(32) % 2 == 0
    keep[:20, 1] = keep[:28, 2] = False
    keep = keep[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    distinct = keep.unique(dim=0)
    seen, _ = rows_seen(subject, distinct, "a0.h0, m0, m1")
    early = distinct[:, :2].unique(dim=0)
    assert seen["m0"] == int(early[:, 1].sum())
    assert seen["m1"] == int(distinct[:, 2].sum())
    none, values = rows_seen(subject, torch.zeros(2, 2, dtype=torch.bool), "m0, m1")
    assert none["m1"] == 1  # no module is given an empty batch
    assert values.isfinite().all()


def test_masks_in_runs_agree_on_the_shared_components_only():
    design = sm.MaskDesign.bernoulli(10, 40, 0.5, seed=3).sharing((0, 1, 2, 5), 4)
    keep = design.keep()
    runs = keep.reshape(10, 4, 10)
    assert (runs[:, :, [0, 1, 2, 5]] == runs[:, :1, [0, 1, 2, 5]]).all()
    assert (runs[:, 1:, [3, 4]] != runs[:, :1, [3, 4]]).any()
    assert torch.equal(torch.cat([k for _, k in design.chunks(7)]), keep)
    assert sm.MaskDesign.from_dict(design.to_dict()) == design
    assert len(runs[:, 0, :3].unique(dim=0)) > 3
    for shared, repeats in (((0,), 1), ((), 2), ((3, 1), 2), ((11,), 2)):
        with pytest.raises(DesignError, match="shar"):
            sm.MaskDesign.bernoulli(10, 40).sharing(shared, repeats)
    with pytest.raises(DesignError, match="only bernoulli and stratified"):
        sm.MaskDesign.complete(3).sharing((0,), 2)


@pytest.mark.parametrize("share", [2, 4])
def test_runs_stay_on_one_side_of_every_split(share):
    design = sm.MaskDesign.bernoulli(6, 200, 0.9, seed=1).sharing((0, 1, 2), share)
    keep = design.keep()
    groups = Samples(keep, torch.zeros(200, 1), design).groups
    fit, held = split_masks(groups, 0.2, 0)
    assert 0 < len(held) < len(fit)
    runs = torch.arange(200) // share
    assert not set(runs[fit].tolist()) & set(runs[held].tolist())
    assert not {tuple(k) for k in keep[fit].tolist()} & {tuple(k) for k in keep[held].tolist()}


def test_discover_shares_the_earlier_layers(subject, monkeypatch):
    task = tokens_task(n_prompts=2)
    found = sm.discover(subject, task, "a*.h*", budget=128, shared_layers=4, decoder="linear")
    design = found.record["design"]
    assert design["repeats"] == 4
    assert [found.components.names[i] for i in design["shared"]] == [f"a0.h{i}" for i in range(4)]
    with pytest.raises(DesignError, match="several layers"):
        sm.discover(subject, task, "a1.h*", budget=12, shared_layers=2, decoder="linear")
    with pytest.raises(DesignError, match="only bernoulli"):
        sm.discover(subject, task, "a*.h*", budget=256, shared_layers=2)


def test_all_neurons_of_a_large_model_fit_into_bounded_memory():
    """36,864 neurons, as GPT-2 small has: less held at once than 1.5 times what the un-hooked forward pass holds."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            n_layer=12, n_embd=48, n_head=12, n_inner=3072, vocab_size=500, bos_token_id=0, eos_token_id=0
        )
        model = GPT2LMHeadModel(config).eval()
    large, task = bind(model), tokens_task(n_prompts=1, length=16)
    components = sm.neurons(large)
    assert len(components) == 36_864
    reference = fit_replacement(large, task, components)
    keep = sm.MaskDesign.bernoulli(len(components), 8, 0.9, seed=0).keep()
    tokens = task.prompts.tokens.repeat(8, 1)

    def unhooked():
        with torch.inference_mode():
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)

    ours = peak_bytes(lambda: respond(large, task, components, [keep], reference, batch_rows=8))
    assert ours < 1.5 * peak_bytes(unhooked)


def test_batches_are_as_large_as_measured_memory_allows(subject, monkeypatch):
    from spex_mech.ablation import batching

    task, components = tokens_task(n_prompts=1), sm.select(subject, "a*.h*")
    engine = Engine(subject, task, components, fit_replacement(subject, task, components))
    (rows,) = engine._rows_that_fit.values()
    monkeypatch.setattr(batching, "CPU_BYTES", batching.CPU_BYTES // 256)
    smaller = Engine(subject, task, components, engine.replacement)
    (fewer,) = smaller._rows_that_fit.values()
    assert 1 <= fewer < rows <= batching.MAX_BATCH_ROWS
    keep = sm.MaskDesign.complete(8).keep()[::3]
    assert (engine.values(keep) - smaller.values(keep)).abs().max() <= 1e-5

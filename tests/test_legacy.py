"""HookedTransformer of TransformerLens 2.x and 3.x, by its form; and the bridge's compatibility mode."""

import pytest
from legacy_hooked import config, from_gpt2, legacy_hooked
from test_backends import values
from tiny_models import bridge_of, tiny, tokens_task

from spex_mech.ablation.binding import bind

EXPRESSION = "a*.h*, m0.n*, m1, a1@p-1"


@pytest.fixture(scope="module")
def gpt2():
    return tiny("gpt2")


@pytest.fixture(scope="module")
def legacy(gpt2):
    model = legacy_hooked()
    model.load_state_dict(from_gpt2(gpt2))
    return bind(model)


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
def test_legacy_objects_give_the_responses_of_the_plain_model(gpt2, legacy, kind):
    assert legacy.provenance["weight_processing"] == "as loaded by HookedTransformer"
    assert legacy.shortcuts.one_row
    assert legacy.shortcuts.grow
    assert legacy.shortcuts.last
    task = tokens_task(ragged=kind == "mean")
    plain = values(bind(gpt2), task, EXPRESSION, kind)
    assert (plain - values(legacy, task, EXPRESSION, kind)).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["mean", "zero", "resample"])
def test_the_stand_in_is_like_the_real_class(gpt2, legacy, kind):
    try:
        from transformer_lens import HookedTransformer, HookedTransformerConfig
    except ImportError:
        pytest.skip("this TransformerLens has no HookedTransformer; versions 2 and 3 have")
    real = HookedTransformer(HookedTransformerConfig(**config(), device="cpu"))
    real.load_state_dict(from_gpt2(gpt2), strict=False)
    task = tokens_task()
    subject = bind(real)
    assert (values(legacy, task, EXPRESSION, kind) - values(subject, task, EXPRESSION, kind)).abs().max() <= 1e-5
    assert {k for k in legacy.model.hook_dict if "blocks" in k} <= set(real.hook_dict)


def test_compatibility_mode_keeps_means_and_changes_zero(gpt2):
    """Folding value biases moves what "zero" means (and only that), so such responses are not merged."""
    bridge = bridge_of(gpt2)
    bridge.enable_compatibility_mode()
    plain, folded, task = bind(gpt2), bind(bridge), tokens_task()
    assert folded.provenance["weight_processing"] == "compatibility mode"
    for kind in ("mean", "resample"):
        assert (values(plain, task, "a*.h*, m1", kind) - values(folded, task, "a*.h*, m1", kind)).abs().max() <= 1e-5
    assert (values(plain, task, "a*.h*, m1", "zero") - values(folded, task, "a*.h*, m1", "zero")).abs().max() > 0.1

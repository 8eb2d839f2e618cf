"""`bind`: any supported model → a self-tested `Subject`."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from spex_mech.ablation.adapters import certify_adapters
from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.backends.nnsight import NNsightSubject, is_nnsight
from spex_mech.ablation.backends.torch import TorchSubject
from spex_mech.ablation.backends.transformer_lens import BridgeSubject, is_transformer_lens
from spex_mech.ablation.contract import certify
from spex_mech.ablation.mixture_contract import certify_mixtures
from spex_mech.ablation.own_contract import add_own_sites
from spex_mech.ablation.own_sites import Own
from spex_mech.ablation.self_test import self_test
from spex_mech.ablation.shortcuts import try_shortcuts
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.turns import turn
from spex_mech.ablation.weights import describe_hooks
from spex_mech.ablation.wrappers import refuse_absent_weights, single_precision, uncompiled
from spex_mech.errors import ModelError, warn_user


@single_precision()
def bind(model: Any, sites: Iterable[Own] = ()) -> Subject:
    """Bind a model: find where its heads, neurons and MLPs live, and test every site.

    Takes a TransformerLens `TransformerBridge` (or an object with the hooks of `HookedTransformer`), a Hugging Face
    causal language model, an nnsight wrapper of one, or anything that implements `Subject` already (which is returned
    as it is). `sites` are sites of your own beside these (`sm.site`, `sm.latents`). Costs a dozen tiny forward passes:
    hooks are compared with weights (`self_test`), and what every component adds to the residual stream is certified
    (`contract`). The model is put into eval mode; its weights are as before. Of a compiled model the original is bound;
    an nnsight wrapper whose weights wait for the first trace gets them now.

    Raises:
        ModelError: no known site, an unsupported kind of model, a failed self-test, or components or sites that cannot
            be certified, naming them.
    """
    sites = tuple(sites)
    if isinstance(model, ModelSubject) and sites:
        model = model.model
    if isinstance(model, ModelSubject | Subject):  # in this order: to ask for a Protocol hashes the weights
        if sites:
            raise ModelError(f"{type(model).__name__} is a subject of its own, on whose modules no sites can be put.")
        return model
    model = uncompiled(model)
    if is_transformer_lens(model):
        return _tested(BridgeSubject(model), sites)
    if is_nnsight(model):
        return _tested(NNsightSubject(model), sites)
    if isinstance(model, nn.Module):
        return _tested(TorchSubject(model), sites)
    raise ModelError(
        f"{type(model).__name__} is not a model spex_mech knows. Give a TransformerLens bridge, a Hugging Face causal "
        "language model, an nnsight wrapper of one, or an object that implements spex_mech.ablation.subject.Subject."
    )


def _tested(subject: ModelSubject, sites: tuple[Own, ...]) -> Subject:
    refuse_absent_weights(subject.module)
    with turn(subject.module):  # some tests change weights for a pass: no other thread's run may see that
        self_test(subject)
        subject.certificates = certify(subject)
        certify_mixtures(subject)
        certify_adapters(subject)
        add_own_sites(subject, sites)
        _warn_of_hooks(subject.module)
        _warn_of_mixers(subject)
        try_shortcuts(subject)
    return subject


def _warn_of_mixers(subject: ModelSubject) -> None:
    layers = {c.layer: c.uncovered for c in subject.certificates if c.uncovered}
    if layers:
        kinds = ", ".join(sorted({name for names in layers.values() for name in names}))
        warn_user(
            f"{subject.shape.name}: what {kinds} adds to the stream in {len(layers)} of its {subject.shape.n_layers} "
            "layers is no component: it stays in every pass and is never ablated."
        )


def _warn_of_hooks(module: nn.Module) -> None:
    names = describe_hooks(module).get("hooks", [])
    if names:
        told = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        warn_user(
            f"the model has hooks of yours on {told}: they act in every pass that is measured, and the record says so. "
            "Remove them unless you mean it."
        )

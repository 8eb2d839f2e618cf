"""`bind`: any supported model → a self-tested `Subject`."""

import warnings
from typing import Any

from torch import nn

from spex_mech.ablation.backends.nnsight import NNsightSubject, is_nnsight
from spex_mech.ablation.backends.torch import TorchSubject
from spex_mech.ablation.backends.transformer_lens import BridgeSubject, is_transformer_lens
from spex_mech.ablation.self_test import self_test
from spex_mech.ablation.shortcuts import try_shortcuts
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.weights import describe_hooks
from spex_mech.errors import ModelError


def bind(model: Any) -> Subject:
    """Bind a model: find where its heads, neurons and MLPs live, and test every site.

    Takes a TransformerLens `TransformerBridge` (or an object with the hooks of `HookedTransformer`), a Hugging Face
    causal language model, an nnsight wrapper of one, or anything that implements `Subject` already (which is returned
    as it is). Costs a dozen tiny forward passes. The model is put into eval mode; its weights are as before.

    Raises:
        ModelError: no known site, an unsupported kind of model, or a failed self-test, naming the site.
    """
    if isinstance(model, Subject):
        return model
    if is_transformer_lens(model):
        return _tested(BridgeSubject(model), model, getattr(model.cfg, "n_ctx", None))
    if is_nnsight(model):
        return _tested(
            NNsightSubject(model), model._module, getattr(model._module.config, "max_position_embeddings", None)
        )
    if isinstance(model, nn.Module):
        return _tested(TorchSubject(model), model, getattr(model.config, "max_position_embeddings", None))
    raise ModelError(
        f"{type(model).__name__} is not a model spex_mech knows. Give a TransformerLens bridge, a Hugging Face causal "
        "language model, an nnsight wrapper of one, or an object that implements spex_mech.ablation.subject.Subject."
    )


def _tested(subject: BridgeSubject | NNsightSubject | TorchSubject, module: nn.Module, n_ctx: int | None) -> Subject:
    self_test(subject, n_ctx)
    _warn_of_hooks(module)
    try_shortcuts(subject, n_ctx)
    return subject


def _warn_of_hooks(module: nn.Module) -> None:
    names = describe_hooks(module).get("hooks", [])
    if names:
        told = f"{', '.join(names[:5])}{' …' if len(names) > 5 else ''}"
        warnings.warn(
            f"the model has hooks of yours on {told}: they act in every pass that is measured, and the record says so. "
            "Remove them unless you mean it.",
            stacklevel=4,
        )

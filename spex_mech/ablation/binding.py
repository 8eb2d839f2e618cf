"""`bind`: any supported model → a self-tested `Subject`."""

from typing import Any

from torch import nn

from spex_mech.ablation.nnsight import NNsightSubject, is_nnsight
from spex_mech.ablation.self_test import self_test
from spex_mech.ablation.shortcuts import try_shortcuts
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.torch_hooks import TorchSubject
from spex_mech.ablation.transformer_lens import BridgeSubject, is_transformer_lens
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
        return _tested(BridgeSubject(model), getattr(model.cfg, "n_ctx", None))
    if is_nnsight(model):
        return _tested(NNsightSubject(model), getattr(model._module.config, "max_position_embeddings", None))
    if isinstance(model, nn.Module):
        return _tested(TorchSubject(model), getattr(model.config, "max_position_embeddings", None))
    raise ModelError(
        f"{type(model).__name__} is not a model spex_mech knows. Give a TransformerLens bridge, a Hugging Face causal "
        "language model, an nnsight wrapper of one, or an object that implements spex_mech.ablation.subject.Subject."
    )


def _tested(subject: BridgeSubject | NNsightSubject | TorchSubject, n_ctx: int | None) -> Subject:
    self_test(subject, n_ctx)
    try_shortcuts(subject, n_ctx)
    return subject

"""`bind`: any supported model → a self-tested `Subject`."""

from typing import Any

from torch import nn

from spex_mech.ablation.self_test import self_test
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.torch_hooks import TorchSubject
from spex_mech.ablation.transformer_lens import BridgeSubject, is_transformer_lens
from spex_mech.errors import ModelError


def bind(model: Any) -> Subject:
    """Bind a model: find where its heads, neurons and MLPs live, and test every site.

    Takes a TransformerLens `TransformerBridge` (or an object with the hooks of `HookedTransformer`), a Hugging Face
    causal
    language model, or anything that implements `Subject` already (returned as it is). Costs a dozen tiny forward
    passes.
    The model is put into eval mode; its weights are as before.

    Raises:
        ModelError: no known site, an unsupported kind of model, or a failed self-test, naming the site.
    """
    if isinstance(model, Subject):
        return model
    if is_transformer_lens(model):
        subject = BridgeSubject(model)
        self_test(subject, getattr(model.cfg, "n_ctx", None))
        return subject
    if isinstance(model, nn.Module):
        torch_subject = TorchSubject(model)
        self_test(torch_subject, getattr(getattr(model, "config", None), "max_position_embeddings", None))
        return torch_subject
    raise ModelError(
        f"{type(model).__name__} is not a model spex_mech knows. Give a TransformerLens bridge, a Hugging Face causal "
        "language model, or an object that implements spex_mech.ablation.subject.Subject."
    )

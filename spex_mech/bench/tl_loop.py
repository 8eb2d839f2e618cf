"""The loop that users write today with TransformerLens, for comparison: one mask, one forward pass."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spex_mech.ablation.backends.transformer_lens import hook_name
from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.components import heads, mlps
from spex_mech.tasks.task import Task


def bridge_of(model: nn.Module) -> Any:
    """A TransformerBridge around a Hugging Face model that is in memory (which it rewires in place)."""
    from transformer_lens.model_bridge.sources import build_bridge_from_module

    config: Any = model.config
    return build_bridge_from_module(model, architecture=type(model).__name__, hf_config=config, tokenizer=None)


def mean_hooks(bridge: Any, task: Task, keep: Tensor, device: str) -> list[tuple[str, Callable[..., Tensor]]]:
    """fwd_hooks that mean-ablate the heads and MLPs of one mask; sites that lose nothing get no hook."""
    subject = bind(bridge)
    components = heads(subject) + mlps(subject)
    reference = fit_replacement(subject, task, components)
    hooks = []
    for site in reference.recipe.sites:
        kept = reference.recipe.keep_parts(site, keep[None].to(device), LENGTH_IS_SHARED)[0, 0]
        if not kept.all():
            hooks.append((hook_name(site), _hook(kept, reference.references[site])))
    return hooks


LENGTH_IS_SHARED = 1  # no component is bound to a position, so parts are the same at all of them


def _hook(kept: Tensor, means: Tensor) -> Callable[..., Tensor]:
    ablated = (~kept).nonzero()[:, 0].tolist()

    def fn(tensor: Tensor, hook: Any) -> Tensor:
        if tensor.ndim == 3:
            return means.expand_as(tensor)
        values = means.reshape(1, means.shape[1], *tensor.shape[2:])
        for head in ablated:
            tensor[:, :, head] = values[:, :, head]
        return tensor

    return fn

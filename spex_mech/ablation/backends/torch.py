"""`TorchSubject`: Hugging Face style causal language models through plain torch hooks. The reference backend."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.place_hooks import hooked
from spex_mech.ablation.sites import find_architecture
from spex_mech.ablation.subject import Edit, Site
from spex_mech.ablation.turns import only_here
from spex_mech.errors import ModelError

# the same function written as eight passes over memory; torch has it as one
_SLOW_GELU = ("NewGELUActivation", "FastGELUActivation")


class TorchSubject(ModelSubject):
    """A causal language model in eval mode; keeps its attention implementation (SDPA, flash)."""

    backend = "torch"

    def __init__(self, model: nn.Module) -> None:
        """Find the sites of `model`; raises `ModelError` where there are none."""
        super().__init__(model, model, find_architecture(model))
        self._activations = [m for m in model.modules() if type(m).__name__ in _SLOW_GELU]

    def _logits(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        wanted: Int[Tensor, " position"] | None,
        cuts: AbstractContextManager[None],
    ) -> Float[Tensor, "row pos vocab"]:
        placed = [(self._places[site], edit) for site, edit in edits.items()]
        options = {} if wanted is None else {"logits_to_keep": wanted}
        with _fused(self._activations), hooked(placed, lambda: len(tokens)), cuts:
            output = self.model(input_ids=tokens, use_cache=False, **options)
        if not hasattr(output, "logits"):
            raise ModelError(
                f"{type(self.model).__name__} returns {type(output).__name__} without logits. Give the model with its "
                "head, such as AutoModelForCausalLM loads."
            )
        return output.logits


@contextmanager
def _fused(activations: list[nn.Module]) -> Iterator[None]:
    """torch's one-pass tanh GELU in place of the same formula written out, for the length of a with-block.

    A module whose `forward` somebody else has replaced (nnsight does) is left alone.
    """
    free = [module for module in activations if "forward" not in vars(module)]
    try:
        for module in free:
            module.forward = only_here(_gelu, module.forward)  # an instance attribute hides the class's method
        yield
    finally:
        for module in free:
            del module.forward


def _gelu(x: Tensor) -> Tensor:
    return nn.functional.gelu(x, approximate="tanh")

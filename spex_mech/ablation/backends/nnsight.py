"""`NNsightSubject`: models wrapped by nnsight, edited in one batched trace. The only import of nnsight.

Only what is read leaves the trace: the logits at the scored positions. `ablated` uses plain torch hooks on the module,
so a trace of the user's own may read and edit what it likes besides.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.place_hooks import edited, hooked
from spex_mech.ablation.sites import find_architecture
from spex_mech.ablation.subject import Edit, Site


def is_nnsight(model: Any) -> bool:
    """Whether a model is an nnsight wrapper around a torch module."""
    return hasattr(model, "trace") and isinstance(getattr(model, "_module", None), nn.Module)


class NNsightSubject(ModelSubject):
    """An `nnsight.NNsight` or `TransformersModel` around a causal language model that is in memory."""

    backend = "nnsight"

    def __init__(self, model: Any) -> None:
        """Find the sites of the wrapped module; raises `ModelError` where there are none."""
        if not getattr(model, "dispatched", True):  # its weights come with the first trace, or now
            model.dispatch()
        super().__init__(model, model._module, find_architecture(model._module))
        self._paths = {module: name for name, module in self.module.named_modules()}

    def _logits(
        self,
        tokens: Int[Tensor, "row pos"],
        edits: Mapping[Site, Edit],
        wanted: Int[Tensor, " position"] | None,
        cuts: AbstractContextManager[None],
    ) -> Float[Tensor, "row pos vocab"]:
        import nnsight

        # in forward order, as a trace demands
        places = [(self._places[site], edits[site]) for site in self.sites if site in edits]
        hung = places if any(place.form is not None for place, _ in places) else []  # not at one module's end
        shown = [] if hung else places
        placed = [(p.at, self.model.get(self._paths[p.module]), edit, len(tokens)) for p, edit in shown]
        options = {} if wanted is None else {"logits_to_keep": wanted}
        with hooked(hung, lambda: len(tokens)), cuts, self.model.trace(tokens, use_cache=False, **options):
            for at, envoy, edit, rows in placed:
                if at == "input":
                    envoy.input = edited(edit, envoy.input, rows)
                else:
                    envoy.output = edited(edit, envoy.output, rows)
            logits = nnsight.save(self.model.output.logits)
        return logits  # noqa: RET504 (a trace cannot return)

"""`Subject`: a model that runs with edits at its sites. The protocol every backend implements, and nothing else."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from spex_mech.components import ModelShape
from spex_mech.tasks.task import Task

SiteKind = Literal["heads", "neurons", "shared", "experts", "mlp", "adapters", "own", "inputs"]
Edit = Callable[[Float[Tensor, "row pos feature"]], Float[Tensor, "row pos feature"]]


@dataclass(frozen=True, order=True)
class Site:
    """A tensor ``[row, pos, feature]`` inside a model, where components of one kind and layer live side by side.

    - ``heads``: the input of the attention's output projection; `parts` query heads of `width` features each.
    - ``neurons``: the input of the MLP's down projection; `parts` = d_mlp neurons of one feature each.
    - ``experts``: what each expert adds to the MLP's output, its router's weight included; one part an expert.
    - ``shared``: what the MLP gives beside its experts; one part.
    - ``mlp``: what the MLP adds to the residual stream (bias and post-norm included); one part of d_model features.
    - ``adapters``: ones, where an adapter acts in a layer; one part of one feature each.
    - ``own``: a site of the user's own, by its `label`; see `own_sites`.
    - ``inputs``: the tokens themselves, as numbers, once for each part of the prompt (see `Prompted`).
    """

    layer: int
    kind: SiteKind
    parts: int
    width: int
    label: str = ""

    @property
    def name(self) -> str:
        """For messages: ``layer 3 heads``."""
        return f"site {self.label}" if self.kind == "own" else f"layer {self.layer} {self.kind}"


@dataclass(frozen=True)
class Shortcuts:
    """What a backend may leave out without changing a result; each is switched on only where binding saw it hold.

    - `one_row`: tokens of one row may meet edits of many rows. All that comes before the first edited site is then
      computed once for all masks, and the edit's broadcast makes the rows.
    - `grow`: rows may also be added at the entry of a later block, so that masks which agree on all earlier layers
      share them (see `prefixes`).
    - `skip`: MLPs run only on the rows in which they are kept.
    - `narrow`: the sites that see only the scored position when all rows are scored at the same one, since no other
      position of theirs can reach a logit that is read.
    - `last`: the unembedding sees only the scored positions.
    - `apart`: sites at which none of this holds: nothing is left out of passes that edit one of them.
    """

    one_row: bool = False
    grow: bool = False
    skip: bool = False
    narrow: frozenset[Site] = frozenset()
    last: bool = False
    apart: frozenset[Site] = frozenset()


@dataclass(frozen=True)
class Certificate:
    """What was verified of one layer: its block returns its input, a constant and ``scale`` times its MLP's site.

    Attributes:
        scale: c; None where the layer has no MLP site.
        uncovered: children of the block that add to the stream and are no components (mixers of hybrids).
        experts, shared: of its mixture, how many experts there are, and whether its MLP gives something beside them.
        router: what sends tokens to them, and how many each token goes to; it is no component.
        mixer: the child that has the layer's heads, where it is no softmax attention.
    """

    layer: int
    scale: float | None
    uncovered: tuple[str, ...] = ()
    experts: int = 0
    shared: bool = False
    router: str = ""
    mixer: str = ""


@dataclass(frozen=True)
class OwnCertificate:
    """What was verified of a site of the user's own.

    Attributes:
        module: its path.
        layer: of the block that it is in, or that ran before it.
        moves: by how much of the largest logit other values there move the logits of two made-up prompts.
        unexplained: the share of the tensor's variance there that latents do not rebuild; None without latents.
        spliced: by how much of the largest logit the intact model is not the model, where errors are not kept.
    """

    name: str
    module: str
    layer: int
    parts: int
    width: int
    moves: float
    unexplained: float | None = None
    spliced: float = 0.0


@runtime_checkable
class Subject(Protocol):
    """A bound model. Sites are listed in the order in which a forward pass meets them."""

    @property
    def shape(self) -> ModelShape: ...
    @property
    def sites(self) -> tuple[Site, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def provenance(self) -> Mapping[str, Any]:
        """What a reader must know to repeat the run: model, weights hash, backend and version, weight processing,
        dtype, attention implementation."""
        ...

    def forward(
        self, tokens: Int[Tensor, "row pos"], edits: Mapping[Site, Edit], positions: Int[Tensor, " row"] | None
    ) -> Float[Tensor, "row vocab"] | Float[Tensor, "row pos vocab"]:
        """Logits with every site's tensor replaced by its edit's result. A backend may offer `shortcuts`.

        Rows are independent: row b is one prompt under one mask. No row is padded (the caller groups prompts by
        length). With `positions`, only the logits at that position of each row come back; with None, all of them. Runs
        without gradients and leaves no hook behind, also when an edit raises.
        """
        ...


@runtime_checkable
class Prompted(Protocol):
    """A subject that also lets go of parts of its prompts: it has a site of the kind ``inputs``."""

    def fillers(self, task: Task | None) -> Float[Tensor, "prompt pos part"]:
        """The tokens that take the place of ablated parts, whatever else is replaced by."""
        ...


def shortcuts_of(subject: Subject, sites: Iterable[Site] = ()) -> Shortcuts:
    """The shortcuts a subject offers to passes that edit some sites; none where it does not say."""
    offered: Shortcuts = getattr(subject, "shortcuts", Shortcuts())
    return Shortcuts(apart=offered.apart) if not offered.apart.isdisjoint(sites) else offered


def common_position(positions: Int[Tensor, " row"] | None) -> int | None:
    """The scored position, where all rows share it.

    >>> common_position(torch.tensor([4, 4]))
    4
    """
    if positions is None or not len(positions) or bool((positions != positions[0]).any()):
        return None
    return int(positions[0])

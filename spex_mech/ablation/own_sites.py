"""Sites of the user's own choosing: any tensor of a module, cut along an axis, and latents of an autoencoder on it.

A site's parts are components (``resid.5``) like any others. On a site of d features an autoencoder or transcoder reads
latents, which then are the components; what it does not rebuild of the tensor is kept as it is (``error=True``), so
that the intact model is exactly the model.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from spex_mech.ablation.mixtures import on_first
from spex_mech.ablation.subject import Edit
from spex_mech.components.grammar import RESERVED, is_label
from spex_mech.errors import ComponentError, ModelError

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class OwnSite:
    """A tensor that a module takes or gives, whose slices along an axis are components; see `site`."""

    module: str | nn.Module
    axis: int
    size: int
    name: str
    at: Literal["input", "output"] = "output"
    pos: int | None = 1


@dataclass(frozen=True, eq=False)
class OwnLatents:
    """Latents that are read at a site and written back; see `latents`."""

    site: OwnSite
    encode: Map
    decode: Map
    error: bool = True
    reads: Literal["input", "output"] = "output"

    @property
    def name(self) -> str:
        return self.site.name


Own = OwnSite | OwnLatents


def site(
    module: str | nn.Module,
    axis: int = -1,
    size: int = 1,
    name: str = "site",
    *,
    at: Literal["input", "output"] = "output",
    pos: int | None = 1,
) -> OwnSite:
    """A site of your own for ``bind(model, sites=[…])``: its parts are the components ``name.0``, ``name.1`` …

    ```python
    resid = sm.site("model.layers.1", size=8, name="resid")  # the residual stream after layer 1, eight features a part
    subject = sm.bind(model, sites=[resid])
    found = sm.discover(subject, task, "a*.h*, resid.*")
    ```

    Args:
        module: the module, or its path in the model (``model.named_modules()``). Of several tensors that it takes or
            gives, the first is meant.
        axis: along which the tensor ``[row, …]`` is cut into parts; neither the rows' nor the positions'.
        size: slices of that axis in one part; its length must be a multiple.
        name: letters, digits, ``_`` and ``-``, two letters first.
        at: whether the tensor is what the module takes or what it gives.
        pos: the axis of positions; None: the tensor has none.

    Raises `ComponentError`: a name that is none, a size below 1, or an axis that is the rows' or the positions'.
    """
    problems = [] if is_label(name) else [f"name={name!r}: letters, digits, '_' and '-', two letters first"]
    problems += [f"{name!r} is taken; the reserved names are {', '.join(RESERVED)}"] if name in RESERVED else []
    if type(size) is not int or size < 1:
        problems.append(f"size={size!r}: a whole number of slices, at least 1")
    if type(axis) is not int or axis == 0 or axis == pos or pos == 0:
        problems.append(f"axis={axis!r}, pos={pos!r}: axis 0 is the rows', and the two are not the same")
    if at not in ("input", "output") or not isinstance(module, str | nn.Module):
        problems.append(f"at={at!r} of {type(module).__name__}: the input or output of a module, or of its path")
    if problems:
        raise ComponentError(f"this is no site: {'; '.join(problems)}.")
    return OwnSite(module, axis, size, name, at, pos)


def latents(
    site: OwnSite,
    encode: Map,
    decode: Map,
    error: bool = True,
    *,
    reads: Literal["site", "input"] = "site",
) -> OwnLatents:
    """Latents of a sparse autoencoder or transcoder at a site, for ``bind(model, sites=[…])``.

    With z = encode(x) and z′ its edited values, the tensor t of the site becomes ``t + decode(z′) − decode(z)``: what
    is not rebuilt stays (`error`). Without error it becomes decode(z′) in every pass, so that the model that is
    measured, intact too, is the one with the autoencoder spliced in; the certificate says how far that is from the
    model.

    Args:
        site: of the features, ``[row, pos, d]``; `size` of it are latents to a component.
        encode: ``[row, pos, d] → [row, pos, latent]``; decode: back to ``[row, pos, d]``. Functions or modules, which
            treat rows and positions alike and one by one.
        error: keep what the latents do not rebuild.
        reads: "site": x = t. "input": x is what the module takes, and t what it gives (transcoders).

    Raises `ComponentError`: a site along another axis than the last, or an unknown `reads`.
    """
    if not isinstance(site, OwnSite) or site.axis != -1 or site.pos != 1:
        raise ComponentError("latents are read from a site of features: sm.site(module, axis=-1), positions at axis 1.")
    if reads not in ("site", "input") or (reads == "input" and site.at != "output"):
        raise ComponentError(
            f"reads={reads!r} at the {site.at}: latents read their site, or a module's input for its output."
        )
    if not callable(encode) or not callable(decode):
        raise ComponentError("encode and decode are functions or modules: [row, pos, d] → [row, pos, latent] and back.")
    return OwnLatents(site, encode, decode, bool(error), "input" if reads == "input" else "output")


@dataclass(eq=False)
class SiteForm:
    """The site ``[row, pos, part · width]`` of a tensor cut along one of its axes."""

    module: nn.Module
    spec: OwnSite

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`."""
        if self.spec.at == "input":
            take = lambda _module, args, kwargs: _first_changed(args, kwargs, lambda t: self.edited(t, edit, rows()))  # noqa: E731
            return [self.module.register_forward_pre_hook(guard(take), with_kwargs=True)]
        give = lambda _module, _args, output: on_first(output, lambda t: self.edited(t, edit, rows()))  # noqa: E731
        return [self.module.register_forward_hook(guard(give))]

    def edited(self, tensor: Tensor, edit: Edit, rows: int) -> Tensor:
        """The tensor with its parts edited."""
        spec = self.spec
        flat = spec.pos == 1 and tensor.ndim == 2 and len(tensor) != rows  # rows and positions as one axis
        whole = tensor.unflatten(0, (rows, -1)) if flat else tensor
        pos = [] if spec.pos is None else [spec.pos % whole.ndim]
        axis = spec.axis % whole.ndim
        order = [0, *pos, axis, *(i for i in range(1, whole.ndim) if i not in (*pos, axis))]
        turned = whole.permute(order)
        turned = turned if pos else turned[:, None]
        back = [order.index(i) for i in range(whole.ndim)]
        found = edit(turned.flatten(2)).unflatten(2, turned.shape[2:])
        found = (found if pos else found[:, 0]).permute(back)
        found = found.flatten(0, 1) if flat else found
        if found.shape != tensor.shape or found.stride() == tensor.stride():
            return found
        return torch.empty_like(tensor).copy_(found)  # in the memory's order, on which the last bits depend


@dataclass(eq=False)
class LatentsForm:
    """The site ``[row, pos, latent]`` of what an autoencoder reads from a tensor."""

    module: nn.Module
    spec: OwnLatents
    _seen: threading.local = field(default_factory=threading.local, repr=False)

    def hang(self, edit: Edit, rows: Callable[[], int], guard: Callable[..., Any]) -> list[Any]:
        """See `sites.Form`."""
        form = SiteForm(self.module, self.spec.site)
        if self.spec.reads == "output":
            return form.hang(lambda t: self._written(t, t, edit), rows, guard)

        def act(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            x = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            x = x if x.ndim == 3 else x.unflatten(0, (rows(), -1))
            return on_first(output, lambda t: form.edited(t, lambda whole: self._written(x, whole, edit), rows()))

        return [self.module.register_forward_hook(guard(act), with_kwargs=True)]

    def _written(self, x: Tensor, tensor: Tensor, edit: Edit) -> Tensor:
        before = self.spec.encode(x)
        after = edit(before)
        written = self.spec.decode(after).to(tensor.dtype)
        if not self.spec.error:
            return written
        same = (after == before).all(-1, keepdim=True)  # where nothing is ablated, the tensor itself, to the bit
        return torch.where(same, tensor, tensor + (written - self.spec.decode(before).to(tensor.dtype)))


def _first_changed(args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Callable[[Tensor], Tensor]) -> Any:
    if args and isinstance(args[0], Tensor):
        return (change(args[0]), *args[1:]), dict(kwargs)
    name = next((name for name, value in kwargs.items() if isinstance(value, Tensor)), None)
    if name is None:
        raise ModelError("a site of your own is at the input of a module that takes no tensor.")
    return args, {**kwargs, name: change(kwargs[name])}


def form_of(module: nn.Module, spec: Own) -> SiteForm | LatentsForm:
    """How the tensor of a site is made and put back."""
    return SiteForm(module, spec) if isinstance(spec, OwnSite) else LatentsForm(module, spec)


def describe_own(spec: Own, path: str) -> dict[str, Any]:
    """For a record: where the site is, and what its autoencoder computes of a few fixed numbers."""
    own = spec if isinstance(spec, OwnSite) else spec.site
    told: dict[str, Any] = {"module": path, "at": own.at, "axis": own.axis, "size": own.size, "pos": own.pos}
    if isinstance(spec, OwnLatents):
        told |= {"error": spec.error, "reads": spec.reads}
    return told


def probe_latents(spec: OwnLatents, width: int, like: Tensor) -> Float[Tensor, " number"]:
    """What encode and decode compute of fixed random numbers, every latent among them."""
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(like)  # noqa: E731
    with torch.inference_mode():
        z = spec.encode(make(4, 2, width))
        mixed = (z.float() @ make(z.shape[-1], 2).float()).flatten()
        return torch.cat([mixed, spec.decode(make(2, 1, z.shape[-1])).float().flatten()]).cpu()

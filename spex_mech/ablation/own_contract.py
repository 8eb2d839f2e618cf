"""Sites of the user's own are put on a bound model and verified by behaviour, or refused by name with what was seen.

A site's module runs once a pass; the edit that changes nothing leaves the logits as they are, to the bit; other values
move them; in one row they move that row alone, and, in a model that reads from left to right, at the last position
nothing before it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.own_sites import LatentsForm, Own, OwnLatents, OwnSite, form_of
from spex_mech.ablation.sites import Place
from spex_mech.ablation.subject import Edit, OwnCertificate, Site
from spex_mech.ablation.turns import only_here
from spex_mech.errors import ModelError, all_problems

_SAME = 1e-5  # relative to the largest logit; rows and positions that must not move
_COARSE = 0.02


class _RefusedError(Exception):
    """Why a site is none."""


@dataclass
class _Seen:
    """What was seen of a site's module in one pass."""

    taken: list[Tensor] = field(default_factory=list)
    given: list[Tensor] = field(default_factory=list)
    after: int = 0  # blocks that had begun


def add_own_sites(subject: ModelSubject, specs: Iterable[Own]) -> None:
    """Put sites on a subject, with their certificates.

    Raises `ModelError`: all that cannot be certified, each with its name and the reason.
    """
    specs, problems = list(specs), list[str]()
    strange = [spec for spec in specs if not isinstance(spec, OwnSite | OwnLatents)]
    if strange:
        raise ModelError(f"sites={strange[0]!r:.80}: give what sm.site(…) and sm.latents(…) return.")
    names = [spec.name for spec in specs]
    problems += [f"{name}: named more than once" for name in sorted({n for n in names if names.count(n) > 1})]
    for spec in specs if not problems else ():
        try:
            _add(subject, spec)
        except _RefusedError as refused:
            problems.append(f"{spec.name}: {refused}")
    if problems:
        raise ModelError(
            all_problems(f"{subject.shape.describe()}: these sites of your own cannot be bound:", problems)
        )


@torch.inference_mode()
def _add(subject: ModelSubject, spec: Own) -> None:
    module, path = _module(subject.module, spec)
    tokens = made_up_tokens(subject)
    clean = subject.forward(tokens, {}, None)
    seen, short = (_look(subject, module, t) for t in (tokens, tokens[:, :-2]))
    tensor, other = (_tensor(spec, s) for s in (seen, short))
    inside = next((i for i, block in enumerate(subject.blocks) if any(module is m for m in block.modules())), None)
    layer = max(0, seen.after - 1) if inside is None else inside
    form, sizes = form_of(module, spec), []
    for t, x, rows in ((tensor, seen, len(tokens)), (other, short, len(tokens))):
        sizes.append(_size(form, t, x, rows))
    if sizes[0][1] != sizes[1][1]:
        raise _RefusedError(f"its parts have {sizes[0][1]} features in one prompt, {sizes[1][1]} in a shorter one")
    features, length = sizes[0][1], sizes[0][0]
    count = _count(spec, tensor, features)
    expected = 1 if isinstance(spec, OwnSite) and spec.pos is None else tokens.shape[1]
    if length != expected:
        raise _RefusedError(f"axis {_own(spec).pos} has {length} places for a prompt of {tokens.shape[1]} tokens")
    place = Place(Site(layer, "own", count, features // count, spec.name), module, _own(spec).at, form)
    subject.add_own(place, spec, path, seen.taken[0].shape[-1] if _reads_input(spec) else tensor.shape[-1])
    subject.own_certificates = (*subject.own_certificates, _certify(subject, spec, place, path, tokens, clean, seen))


def _reads_input(spec: Own) -> bool:
    return isinstance(spec, OwnLatents) and spec.reads == "input"


def _own(spec: Own) -> OwnSite:
    return spec if isinstance(spec, OwnSite) else spec.site


def _module(model: nn.Module, spec: Own) -> tuple[nn.Module, str]:
    wanted = _own(spec).module
    named = dict(model.named_modules())
    path = wanted if isinstance(wanted, str) else next((name for name, m in named.items() if m is wanted), None)
    if path is None or path not in named:
        near = [name for name in named if name.endswith(str(path).rsplit(".", 1)[-1])][:4] if path else []
        told = f"; there are {', '.join(near)}" if near else ""
        what = wanted if isinstance(wanted, str) else type(wanted).__name__
        raise _RefusedError(f"the model has no module {what!r}{told}")
    return named[path], path


def _look(subject: ModelSubject, module: nn.Module, tokens: Tensor) -> _Seen:
    seen = _Seen()
    with _watched(subject, module, seen):
        subject.forward(tokens, {}, None)
    if len(seen.given) != 1:
        raise _RefusedError(
            f"its module {type(module).__name__} ran {len(seen.given)} times in one forward pass, not once"
        )
    return seen


@contextmanager
def _watched(subject: ModelSubject, module: nn.Module, seen: _Seen) -> Iterator[None]:
    def note(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        taken = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        given = output[0] if isinstance(output, tuple | list) else output
        seen.taken += [taken] if taken is not None else []
        seen.given += [given] if isinstance(given, Tensor) else [torch.zeros(0)]

    def begin(*_: Any) -> None:
        seen.after += not seen.given

    handles = [block.register_forward_pre_hook(only_here(begin)) for block in subject.blocks]
    handles.append(module.register_forward_hook(only_here(note), with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensor(spec: Own, seen: _Seen) -> Tensor:
    found = seen.given if _own(spec).at == "output" else seen.taken
    if not found or not found[0].is_floating_point() or found[0].ndim < 2:
        what = f"{tuple(found[0].shape)} of {found[0].dtype}" if found and found[0].numel() else "no tensor"
        raise _RefusedError(f"the {_own(spec).at} of its module is {what}; a site is a tensor of numbers, [row, …]")
    return found[0]


def _size(form: Any, tensor: Tensor, seen: _Seen, rows: int) -> tuple[int, int]:
    """Positions and features of the site, by what its edit is given."""
    shapes = list[tuple[int, ...]]()

    def note(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return x

    try:
        if isinstance(form, LatentsForm):
            x = seen.taken[0] if _reads_input(form.spec) else tensor
            again = form.spec.decode(note(form.spec.encode(x if x.ndim == 3 else x.unflatten(0, (rows, -1)))))
        else:
            again = form.edited(tensor, note, rows)
    except (RuntimeError, ValueError, IndexError, TypeError, AttributeError) as error:
        raise _RefusedError(f"a tensor {tuple(tensor.shape)} cannot be taken apart and put back so: {error}") from error
    if again.numel() != tensor.numel() or len(shapes[0]) != 3:
        raise _RefusedError(
            f"decode gives {tuple(again.shape)} for a tensor {tuple(tensor.shape)}, by latents {shapes[0]}"
        )
    if shapes[0][0] != rows:
        raise _RefusedError(f"axis 0 has {shapes[0][0]} places for {rows} rows of tokens")
    return shapes[0][1], shapes[0][2]


def _count(spec: Own, tensor: Tensor, features: int) -> int:
    own = _own(spec)
    if isinstance(spec, OwnLatents):
        _refuse_mixing(spec, features, tensor)
    length = features if isinstance(spec, OwnLatents) else tensor.shape[own.axis]
    if length % own.size:
        what = f"{length} latents" if isinstance(spec, OwnLatents) else f"{length} slices along axis {own.axis}"
        raise _RefusedError(f"{what} cannot be cut into parts of {own.size}")
    return length // own.size


def _refuse_mixing(spec: OwnLatents, count: int, like: Tensor) -> None:
    """An autoencoder takes rows and positions one by one: alone they give what they give among others."""
    z = torch.randn(2, 3, count, generator=torch.Generator().manual_seed(0)).to(like)
    whole = spec.decode(z).float()
    alone = torch.cat([torch.cat([spec.decode(z[i : i + 1, j : j + 1]) for j in range(3)], 1) for i in range(2)])
    x = alone.to(like) if spec.reads == "output" else None
    pairs = [(whole, alone.float())]
    if x is not None:
        pairs.append((spec.encode(x)[1:, 2:].float(), spec.encode(x[1:, 2:]).float()))
    for one, other in pairs:
        if float((one - other).abs().max()) > _COARSE * float(one.abs().max()):
            raise _RefusedError("encode or decode mixes rows or positions: alone these give something else")


def _certify(
    subject: ModelSubject, spec: Own, place: Place, path: str, tokens: Tensor, clean: Tensor, seen: _Seen
) -> OwnCertificate:
    site, scale = place.site, float(clean.float().abs().max()) or 1.0
    fine = clean.dtype in (torch.float32, torch.float64)
    gap = lambda one, other: float((one - other).float().abs().max()) / scale  # noqa: E731
    intact = subject.forward(tokens, {}, None)  # with autoencoders spliced in, where errors are not kept
    same = subject.forward(tokens, {site: lambda x: x}, None)
    if not torch.equal(same, intact) or (not _spliced(spec) and not torch.equal(intact, clean)):
        raise _RefusedError(f"the edit that changes nothing moved the logits by {gap(same, clean):.2g} of the largest")
    moved = subject.forward(tokens, {site: _other}, None)
    moves = gap(moved, intact)
    if not moved.isfinite().all() or not moves > 0:
        raise _RefusedError("other values there leave the logits as they are, or make them infinite")
    tolerance = _SAME if fine else _COARSE
    second = subject.forward(tokens, {site: lambda x: torch.cat([x[:1], _other(x)[1:]])}, None)
    if gap(second[:1], intact[:1]) > tolerance:
        raise _RefusedError(
            "other values in one row move another row: axis 0 is not the rows', or the module mixes them"
        )
    if _own(spec).pos is not None and intact.ndim == 3 and _is_causal(subject, tokens, intact, tolerance * scale):
        last: Edit = lambda x: torch.cat([x[:, :-1], _other(x)[:, -1:]], 1)  # noqa: E731
        if gap(subject.forward(tokens, {site: last}, None)[:, :-1], intact[:, :-1]) > tolerance:
            raise _RefusedError(f"other values at the last place of axis {_own(spec).pos} move earlier positions")
    unexplained = _unexplained(spec, seen) if isinstance(spec, OwnLatents) else None
    return OwnCertificate(spec.name, path, site.layer, site.parts, site.width, moves, unexplained, gap(intact, clean))


def _spliced(spec: Own) -> bool:
    return isinstance(spec, OwnLatents) and not spec.error


def _other(x: Tensor) -> Tensor:
    """Other values of the same size, the same in every call."""
    noise = torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(0)).to(x)
    return x + noise * (x.float().abs().mean() + 1e-3).to(x.dtype)


def _is_causal(subject: ModelSubject, tokens: Tensor, intact: Tensor, tolerance: float) -> bool:
    changed = tokens.clone()
    changed[:, -1] = (changed[:, -1] + 1) % subject.shape.d_vocab
    logits = subject.forward(changed, {}, None)
    return float((logits[:, :-1] - intact[:, :-1]).float().abs().max()) <= tolerance


def _unexplained(spec: OwnLatents, seen: _Seen) -> float:
    """The share of the tensor's variance that the latents do not rebuild, on made-up tokens."""
    x, t = (y if y.ndim == 3 else y[None] for y in (seen.taken[0], seen.given[0]))
    t = t if spec.site.at == "output" else x
    rebuilt = spec.decode(spec.encode(x if spec.reads == "input" else t)).float()
    t = t.float()
    return float((t - rebuilt).square().sum() / (t - t.mean((0, 1))).square().sum().clamp(min=1e-12))


def own_line(told: OwnCertificate) -> str:
    """One site of the user's own, for people.

    >>> own_line(OwnCertificate("sae", "model.layers.1", 1, 64, 1, 0.25, 0.125, 0.0))
    'sae at model.layers.1: 64 parts certified; other values move the logits by 25%; 12% of variance not rebuilt, kept'
    """
    said = [f"{told.name} at {told.module}: {told.parts:,} parts certified"]
    said.append(f"other values move the logits by {told.moves:.0%}")
    if told.unexplained is not None:
        kept = f"left out, which moves the logits by {told.spliced:.0%}" if told.spliced else "kept"
        said.append(f"{told.unexplained:.0%} of variance not rebuilt, {kept}")
    return "; ".join(said)

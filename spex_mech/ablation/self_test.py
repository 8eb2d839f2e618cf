"""The self-test at binding: every hook is where it should be, before anything is measured with it."""

import torch
from jaxtyping import Int
from torch import Tensor

from spex_mech.ablation.backends.base import ModelSubject
from spex_mech.ablation.identity import made_up_tokens
from spex_mech.ablation.subject import Edit, Site
from spex_mech.errors import ModelError, all_problems

SELF_TEST_TOLERANCE = 1e-4  # relative, float32; a wrong site is off by orders of magnitude more


def self_test(subject: ModelSubject) -> None:
    """Check every site of a newly bound subject on two short made-up prompts.

    Each site fires exactly once a forward pass with the expected width; the identity edit leaves the logits bit-equal;
    zeroing everything changes them and stays finite; and for a head and a neuron of the first and the last layer,
    zeroing by edit equals zeroing the weights that read it (where weights are packed, the certificate alone speaks).

    Raises:
        ModelError: naming each site and the check it failed, with the figure.
    """
    tokens = made_up_tokens(subject)
    clean = _clean(subject, tokens)
    problems = _identity(subject, tokens, clean) or _all_zero(subject, tokens, clean) or _oracle(subject, tokens, clean)
    if problems:
        raise ModelError(all_problems(f"{subject.shape.describe()} failed the self-test of its sites:", problems))


def _clean(subject: ModelSubject, tokens: Int[Tensor, "row pos"]) -> Tensor:
    try:
        clean = subject.forward(tokens, {}, None)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(
            f"{subject.shape.describe()} does not run on two short rows of token ids without a mask: {error}"
        ) from error
    if not bool(clean.isfinite().all()):
        bad = [
            n for n, p in subject.module.named_parameters() if p.is_floating_point() and not bool(p.isfinite().all())
        ]
        told = f": its weights hold NaN or infinity ({', '.join(bad[:4])})" if bad else ""
        raise ModelError(
            f"{subject.shape.describe()} gives logits that are not finite{told}. Load it again, or in a precision that "
            "holds its values."
        )
    return clean


def _identity(subject: ModelSubject, tokens: Tensor, clean: Tensor) -> list[str]:
    fired: dict[Site, list[tuple[int, ...]]] = {site: [] for site in subject.sites}

    def watch(site: Site) -> Edit:
        def edit(x: Tensor) -> Tensor:
            fired[site].append(tuple(x.shape))
            return x

        return edit

    logits = subject.forward(tokens, {site: watch(site) for site in subject.sites}, None)
    problems = []
    for site, shapes in fired.items():
        expected = (*tokens.shape, site.parts * site.width)
        if len(shapes) != 1:
            problems.append(f"{site.name}: fired {len(shapes)} times in one forward pass, not once")
        elif shapes[0] != expected:
            problems.append(f"{site.name}: shape {shapes[0]}, expected {expected}")
    if not problems and not torch.equal(logits, clean):
        gap = float((logits - clean).abs().max())
        problems.append(f"the identity edit at all sites moved the logits by {gap:.2g}; they must be bit-equal")
    return problems


def _all_zero(subject: ModelSubject, tokens: Tensor, clean: Tensor) -> list[str]:
    logits = subject.forward(tokens, dict.fromkeys(subject.sites, torch.zeros_like), None)
    if not logits.isfinite().all():
        return ["ablating every site gives logits that are not finite"]
    if torch.equal(logits, clean):
        return ["ablating every site leaves the logits as they were: the edits do not reach the model"]
    return []


def _oracle(subject: ModelSubject, tokens: Tensor, clean: Tensor) -> list[str]:
    by_kind = [[site for site in subject.sites if site.kind == kind] for kind in ("heads", "neurons")]
    chosen = {site for sites in by_kind for site in sites[:1] + sites[-1:] if subject.reading_weights(site)}
    scale = float(clean.float().abs().max()) or 1.0
    problems = []
    for site in sorted(chosen):
        part = site.parts // 2
        features = slice(part * site.width, (part + 1) * site.width)
        by_edit = subject.forward(tokens, {site: _zero(features)}, None)
        gap = float((by_edit - _with_zeroed_weights(subject, site, features, tokens)).float().abs().max()) / scale
        tolerance = SELF_TEST_TOLERANCE if clean.dtype == torch.float32 else 0.05
        if not gap <= tolerance:
            problems.append(
                f"{site.name}: zeroing part {part} by hook and by weights differ by {gap:.2g} of the logits"
            )
    return problems


def _zero(features: slice) -> Edit:
    def edit(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., features] = 0
        return x

    return edit


def _with_zeroed_weights(subject: ModelSubject, site: Site, features: slice, tokens: Tensor) -> Tensor:
    made_there = subject.reading_weights(site)[0].is_inference()  # such weights are written to in that mode only
    with torch.inference_mode() if made_there else torch.no_grad():
        read = [weights[features] for weights in subject.reading_weights(site)]  # views
        saved = [weights.clone() for weights in read]
        try:
            for weights in read:
                weights.zero_()
            return subject.forward(tokens, {}, None)
        finally:
            for weights, before in zip(read, saved, strict=True):
                weights.copy_(before)

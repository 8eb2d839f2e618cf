"""What a report says in sentences: the answer, its cautions, how sure it is, and what it does not show."""

from collections.abc import Iterator, Mapping
from typing import Any

from spex_mech.auditing.findings import Verified
from spex_mech.auditing.run_audit import Audit
from spex_mech.auditing.verdicts import STABLE_FROM
from spex_mech.circuit.nodes import Interaction
from spex_mech.files.text import counted, number, percent, quoted_roles, sentence
from spex_mech.store.discovery import Discovery, lens_of
from spex_mech.store.set_losses import MOST_IN_A_SET, losses_of
from spex_mech.walsh.decoding import Outcome

_INSTEAD = {
    "mean": "their mean over reference prompts",
    "zero": "zero",
    "resample": "what they give on another prompt",
}
_LISTED = 8  # names in a sentence


def answer_sentences(found: Discovery, audit: Audit | None) -> tuple[str, ...]:
    """The answer, a sentence each."""
    if found.decoded.outcome is Outcome.NOTHING_FOUND:
        return ("No set of components was found that explains the responses better than their mean.",)
    return tuple(_sentences(found, audit))


def _sentences(found: Discovery, audit: Audit | None) -> Iterator[str]:
    yield _nodes(found) if audit is None else _kept(found, audit, audit.circuit)
    if audit is not None:
        yield _named(audit.circuit)
    yield from _strongest(found)
    if audit is not None:
        yield from _backups(audit)
        yield from _confirmed(audit)
    yield _trust(found, audit)


def _nodes(found: Discovery) -> str:
    circuit = found.circuit
    sets = sum(i.order > 1 for i in circuit.interactions)
    alone = len(circuit.interactions) - sets
    mattered = (
        f"{len(circuit.nodes):,} {'was' if len(circuit.nodes) == 1 else 'were'} found to matter to {_metric(found)}"
    )
    if not sets:
        return f"Of {counted(len(circuit.components), 'component')}, {mattered}, each by itself."
    return (
        f"Of {counted(len(circuit.components), 'component')}, {mattered}, alone or together with others: "
        f"{counted(alone, 'effect')} of single components and {counted(sets, 'joint effect')} of up to "
        f"{circuit.max_order} components."
    )


def _kept(found: Discovery, audit: Audit, circuit: Verified) -> str:
    replaced = found.record.get("replacement", {})
    instead = _INSTEAD.get(str(replaced.get("kind")), "something else")
    instead += " (adapters switched off)" if replaced.get("adapters") else ""
    return (
        f"With {len(circuit.names):,} of {counted(len(audit.components), 'component')} left as they are and all others "
        f"replaced by {instead}, {percent(circuit.faithfulness)} of the behaviour is left: {_metric(found)} is "
        f"{number(circuit.value)} {audit.unit}, where the intact model has {number(audit.intact)} and the model with "
        f"everything replaced {number(audit.empty)}."
    )


def _named(circuit: Verified) -> str:
    if not circuit.names:
        return "No component is in that circuit."
    return f"The circuit is {listed(circuit.names)}."


def _strongest(found: Discovery) -> Iterator[str]:
    mains = [i for i in found.circuit.interactions if i.order == 1]
    sets = [i for i in found.circuit.interactions if i.order > 1]
    if mains:
        yield f"By itself, {_label(mains[0], found)} matters most ({_effect(mains[0], found)})."
    if not sets:
        yield "No joint effect was found: components act one by one, as far as these masks can tell."
        return
    yield f"The strongest joint effect is that of {_label(sets[0], found)} ({_effect(sets[0], found)}, {sets[0].kind})."
    if sets[0].order <= MOST_IN_A_SET:
        yield sentence(losses_of(found, sets[0].components).sentence())


def _label(interaction: Interaction, found: Discovery) -> str:
    """Its name, and the words where it is of words."""
    said = quoted_roles(interaction.components, found.circuit.texts)
    return f"{interaction.label}, {said}," if said else interaction.label


def _effect(interaction: Interaction, found: Discovery) -> str:
    return f"{number(interaction.coefficient, sign=True)} {found.circuit.unit}"


def _backups(audit: Audit) -> Iterator[str]:
    for group in [g for g in audit.backups if g.confirmed()][:3]:
        yield (
            f"{listed(group.components)} back each other up: losing all of them costs {number(group.joint)} "
            f"{audit.unit}, {number(group.excess)} more than losing some of them explains."
        )


def _confirmed(audit: Audit) -> Iterator[str]:
    tested, good = len(audit.interactions), len(audit.confirmed)
    if tested:
        was = "was" if good == 1 else "were"
        yield f"Of {counted(tested, 'interaction')} measured again on fresh masks, {good:,} {was} confirmed."


def _trust(found: Discovery, audit: Audit | None) -> str:
    if audit is not None and audit.fresh.r2 is not None:
        return _explains(audit.fresh.r2, f"{audit.fresh.masks:,} masks drawn anew")
    if found.heldout_r2 is None:
        masks = f"Every one of the {len(found.responses):,} masks there are was measured"
        return f"{masks}, so for these prompts the polynomial behind this is exact."
    return _explains(found.heldout_r2, found.judged_on + "," * found.decoded.cross_fitted)


def _explains(r2: float, where: str) -> str:
    if not r2 > 0:
        return f"On {where} the polynomial behind this predicts no better than the mean: do not rely on it."
    return f"On {where} the polynomial behind this explains {percent(r2).replace('> ', 'more than ')} of the variance."


def warnings(found: Discovery, audit: Audit | None) -> tuple[str, ...]:
    """What a reader must know before anything else."""
    outcome, said = found.decoded.outcome, []
    if outcome not in (Outcome.COMPLETE, Outcome.RECOVERED):
        said.append(f"{outcome.meaning}; {outcome.remedy}")
    if audit is None and lens_of(found.record) != "components":
        if found.heldout_r2 is not None:  # else every mask was measured, and another seed has no other
            said.append("nothing here has been tested on masks drawn anew; the same call with another seed gives some")
    elif audit is None:
        said.append("nothing here has been tested by fresh forward passes; an audit (spex-mech audit) does that")
    return tuple(sentence(words) for words in (*said, *(() if audit is None else audit.cautions)))


def confidence(found: Discovery, audit: Audit | None) -> tuple[str, ...]:
    """What errors and q-values rest on, how far resamples agree, and how it compares with what is known."""
    sure = found.record.get("certainty") or {}
    return (*_errors(sure.get("inference")), *_agreement(sure.get("stability")), *_known(audit))


def _errors(inference: Mapping[str, Any] | None) -> Iterator[str]:
    if inference:
        masks = f" ({inference['masks']:,} masks)" if isinstance(inference.get("masks"), int) else ""
        yield f"Errors and q-values rest on: {inference.get('method', 'unknown')}{masks}."


def _agreement(again: Mapping[str, Any] | None) -> Iterator[str]:
    if again and again.get("jaccard") is not None and again.get("node_jaccard") is not None:
        yield (
            f"Over {again.get('resamples', 'several')} resamples the sets found agree to {again['jaccard']:.2f}, the "
            f"components to {again['node_jaccard']:.2f} (Jaccard; {STABLE_FROM:g} and more "
            "is called stable)."
        )


def _known(audit: Audit | None) -> Iterator[str]:
    known = None if audit is None else audit.known
    if known is not None and known.precision is not None and known.recall is not None:
        yield (
            f"Beside the known circuit ({listed(known.names)}) the audited one has precision {known.precision:.2f} and "
            f"recall {known.recall:.2f}."
        )


def limits(found: Discovery, audit: Audit | None) -> tuple[str, ...]:
    """What a reader might think is shown, and is not."""
    record, circuit = found.record, found.circuit
    prompts, studied = found.responses.prompts, len(circuit.components)
    assumes = record.get("replacement", {}).get("assumes")
    said = _limits_of_lens(found) or [
        "No path through the model. A joint effect says that a set moves the metric together, not that one component "
        "reads what another writes",
        f"Nothing beyond {counted(prompts, 'prompt')} and this metric. Others may have another circuit",
        f"Nothing about components that were not studied. {studied:,} were; all else in the model was left as it is in "
        "every pass",
        "A set that is not listed was not found; that does not mean that its effect is zero",
        "The effects are those of replacing activations"
        + (f", and rest on an assumption: {assumes}" if assumes else "")
        + ". Another replacement may give other numbers",
        f"A coefficient is an average over masks ({_masks(found)}), not the effect in the intact model; that is the "
        "column “knockout”, as far as the sets that were found go",
        "A circuit that is faithful need not be the only one: where components back each other up, several are",
    ]
    if circuit.link != "identity":
        said.append(
            f"The interactions are those before a link ({found.link.describe()}), in {circuit.unit}; on the metric's "
            "own scale there are others, some of which are the link's doing (interactions_raw.csv)"
        )
    if audit is not None:
        said += [*_searched(audit), *(f"Left out: {what}" for what in audit.skipped)]
    return tuple(sentence(words) for words in said)


def _limits_of_lens(found: Discovery) -> list[str]:
    """What runs of a prompt's parts or of training examples do not show; nothing for runs of components."""
    lens, averaged = lens_of(found.record), f"A coefficient is an average over masks ({_masks(found)})"
    listed_ = "A set that is not listed was not found; that does not mean that its effect is zero"
    if lens == "features":
        return [
            "Nothing about how the model reads these parts: which of its components do is another run",
            "Nothing beyond this prompt, this way of cutting it, and this metric",
            "Texts with parts taken out are unlike those that a model was made for; another way of ablation may give "
            "other numbers",
            listed_,
            f"{averaged}, not the effect in the whole prompt; that is the column “knockout”",
        ]
    if lens == "data":
        return [
            "Nothing about examples that were not varied: they were there in every training",
            "Nothing beyond these test points and this way of training; another model may learn otherwise from the "
            "same examples",
            listed_,
            f"{averaged}: of what examples teach among about as many others, not the effect of leaving them out of the "
            "whole set; that is the column “knockout”, as far as the sets that were found go",
        ]
    return []


def _searched(audit: Audit) -> Iterator[str]:
    search = audit.search
    if search is None:
        return
    words = (
        f"The circuits were chosen among sets that were measured ({search.masks:,} masks), on the prompts that report"
    )
    if search.cpr is None or search.cmd is None:
        yield f"{words}, so that some of what they keep may be luck"
        return
    yield (
        f"{words}; where half of the prompts choose and the others report, CPR is {search.cpr:.3f} and CMD "
        f"{search.cmd:.3f} (medians over {search.splits:,} splits)"
    )


def _masks(found: Discovery) -> str:
    design = found.record.get("design", {})
    if design.get("kind") == "complete":
        return "all there are"
    return f"on average {percent(float(found.responses.keep.double().mean()))} of the components kept"


def _metric(found: Discovery) -> str:
    return str(found.record.get("task", {}).get("metric", "the metric"))


def listed(names: tuple[str, ...]) -> str:
    """Names in a sentence.

    >>> listed(("a0.h1", "a0.h2", "m0"))
    'a0.h1, a0.h2 and m0'
    """
    if len(names) > _LISTED:
        return f"{', '.join(names[:_LISTED])} and {len(names) - _LISTED:,} more"
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}" if names else "none"

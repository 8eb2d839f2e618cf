"""`audit`: the return journey. A run's claims, each put to fresh forward passes, within a stated budget."""

import hashlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spex_mech.ablation.binding import bind
from spex_mech.ablation.replacement import Replacement, fit_replacement
from spex_mech.ablation.respond import Engine
from spex_mech.ablation.subject import Subject
from spex_mech.ablation.wrappers import single_precision
from spex_mech.auditing.audit_engines import Engines
from spex_mech.auditing.baselines import try_baselines
from spex_mech.auditing.case import RunCase, check_audit_budget, open_run_case
from spex_mech.auditing.cautions import cautions
from spex_mech.auditing.chosen_circuits import Circuits, add_kl, choose_circuits, verify_found
from spex_mech.auditing.confirmation import try_interactions
from spex_mech.auditing.faithfulness import model_distance, performance_ratio, precision_recall
from spex_mech.auditing.findings import Known, RankingRow, SizeRow
from spex_mech.auditing.fresh_masks import try_fresh
from spex_mech.auditing.knockout_trials import try_completeness, try_minimality
from spex_mech.auditing.mib_sizes import against_known
from spex_mech.auditing.other_contexts import other_probs, try_contexts
from spex_mech.auditing.other_replacements import try_replacements
from spex_mech.auditing.passes import Ledger
from spex_mech.auditing.random_sets import RandomSets, try_random
from spex_mech.auditing.rankings import Ranking, spectrum_strengths
from spex_mech.auditing.resampled_halves import try_stability
from spex_mech.auditing.run_audit import Audit
from spex_mech.auditing.verdicts import share_as_good
from spex_mech.errors import ResponseError, all_problems
from spex_mech.files.locks import hold
from spex_mech.files.records import differences, plain
from spex_mech.progress import mask_progress
from spex_mech.store.discovery import Discovery, lens_of
from spex_mech.tasks.task import Task

LEAST_AUDIT_BUDGET = 96  # masks: the circuits at all sizes, and a few for everything else
AUDIT = "audit.json"
# Parts of the budget.
SEARCH, FRESH, COMPLETENESS, MINIMALITY, RANDOM, CONTEXTS = 0.2, 0.2, 0.03, 0.05, 0.1, 0.08
LEAST_FRESH = 16  # masks, however small the budget: R² of fewer says nothing


@single_precision()
def audit(
    found: Discovery,
    subject: Any,
    task: Task,
    *,
    seed: int = 1,
    budget: int = 2048,
    size: int | None = None,
    known: Iterable[str] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    seconds: float = 2.0,
) -> Audit:
    """Put a run to the test on masks that had no part in it.

    In this order: circuits at MIB's ten sizes, to preserve the metric (CMD) and to help it (CPR), and the smallest
    faithful one, chosen on the polynomial and by a search near what it chose (a fifth of the budget); R² on fresh masks
    (a fifth); the worst predicted knockouts (completeness, minimality); random sets (a tenth); rankings by order-1
    regression on as many masks as our circuits took, single ablation, activation patching (where the task has corrupt
    prompts) and pairs (a tenth); KL of the chosen circuits; other replacements on masks of the run (a tenth); with all
    that is left but a twelfth, confirmation factorials for every interaction and every proposed group of backups; then
    factorials among others that are kept more or less often. Stability over masks and prompts costs no masks.

    Args:
        found: a run; subject, task: the same model and prompts, which is checked by content.
        seed: of everything drawn here.
        budget: masks; the forward rows are masks × prompts. What it does not reach is said in ``.skipped``.
        size: components of the audited circuit; default: the fewest whose predicted faithfulness is within .1 of 1.
        known: names of a known circuit, to be compared with.
        out: run folder. ``audit.json`` goes there, and a journal: the same call goes on where a killed one was.
        progress: show a bar of masks.
        seconds: an exact selection may take, for each size.

    Raises:
        ResponseError: another model, other prompts or another metric than the run's (what differs is named); a metric
            that ablation does not change.
        DesignError: a budget below 96 masks.

    Source: MIB (Mueller et al. 2025) for faithfulness, CPR and CMD; Wang et al. 2022 for completeness and minimality.
    """
    refuse_other_lens(found)
    bound, started = bind(subject), time.perf_counter()
    task = task.check(bound.shape)
    check_audit_budget(budget, LEAST_AUDIT_BUDGET)
    reference = _replacement_of(found, bound, task)
    record = _experiment(found, bound, task, reference, {"seed": seed, "budget": budget, "size": size})
    with hold(out), mask_progress(budget, "auditing", shown=progress) as tick, ExitStack() as journals:
        ledger = Ledger(budget, tick)
        engines = Engines(found, bound, task, reference, ledger, record, out, journals)
        case = open_run_case(found, engines.passes("main"), ledger, seed)
        result = _try_all(case, engines, size, tuple(known or ()), seconds)
        spent = {"masks": ledger.spent, "rows": ledger.spent * len(task), "seconds": time.perf_counter() - started}
        result = replace(result, record=plain({**_provenance(found, record), **spent}))
        if out is not None:
            result.save(Path(out) / AUDIT)
        return result


def refuse_other_lens(found: Discovery) -> None:
    """Raises `ResponseError` for runs whose components are not a model's."""
    lens = lens_of(found.record)
    if lens != "components":
        what, verb = ("parts of a prompt", "features") if lens == "features" else ("training examples", "data")
        raise ResponseError(
            f"this run is of {what}, and an audit ablates components of a model. Put it to the test by the held-out R² "
            f"of the run, and by the same discover_{verb} with another seed: found.predict(other.responses.keep) "
            "beside other.responses.values."
        )


def _try_all(case: RunCase, engines: Engines, size: int | None, known: tuple[str, ...], seconds: float) -> Audit:
    """Every trial in turn; the order decides who has the budget."""
    part = case.ledger.part
    inside = [name for name in known if name in case.components]
    chosen = choose_circuits(case, size, part(SEARCH), seconds)
    circuit, sizes, nodes = chosen.circuit, chosen.sizes, verify_found(case)
    fresh = try_fresh(case, max(LEAST_FRESH, part(FRESH)))
    completeness = try_completeness(case, circuit.names, part(COMPLETENESS), chosen.predict)
    minimality = try_minimality(case, circuit.names, part(MINIMALITY), chosen.predict)
    unverified = sum(k.measured is None for k in [*completeness, *minimality])
    if unverified:
        case.skipped.append(f"{unverified:,} knockouts are predicted only")
    null = try_random(case, [row.count for row in sizes], part(RANDOM))
    rankings = [_our_ranking(case, chosen, inside), *_null_ranking(null, sizes)]
    rankings += try_baselines(case, engines, inside, chosen.search.masks)
    circuit, sizes = add_kl(case, engines, circuit, _beside_random(case, null, sizes))
    replacements = try_replacements(case, engines)
    spare = part(CONTEXTS) if other_probs(case) else 0
    interactions, backups, left = try_interactions(case, spare)
    contexts = try_contexts(case, interactions, case.ledger.left)
    if interactions and other_probs(case) and not contexts:
        case.skipped.append("interactions where others are kept more or less often")
    if left:
        case.skipped.append(f"{left:,} weaker interactions or groups were not put to a factorial")
    halved = try_stability(case)
    return Audit(
        case.names, case.found.responses.unit, case.intact, case.empty, fresh, circuit, nodes, tuple(sizes),
        rankings[0].cpr or 0.0, rankings[0].cmd or 0.0, tuple(rankings), tuple(completeness), tuple(minimality),
        interactions, backups, _known(circuit.names, known, inside), tuple(case.skipped),
        cautions(case, fresh), {}, chosen.search, halved, replacements, contexts,
    )  # fmt: skip


def _our_ranking(case: RunCase, chosen: Circuits, known: Collection[str]) -> RankingRow:
    """The chosen sets' areas, and the components' total strength against a known circuit.

    It cost the run's masks and those of the search.
    """
    cost = len(case.found.responses) + chosen.search.masks
    row = against_known(Ranking("spex_mech", spectrum_strengths(case.spectrum, case.names), cost), known)
    cpr = performance_ratio([row.help.faithfulness for row in chosen.sizes])
    return replace(row, cpr=cpr, cmd=model_distance([row.preserve.faithfulness for row in chosen.sizes]))


def _null_ranking(null: RandomSets | None, sizes: Sequence[SizeRow]) -> list[RankingRow]:
    if null is None:
        return []
    areas = null.areas([row.count for row in sizes])
    return [RankingRow("random sets", 0, *areas, 0.5, 0.5, f"mean of {null.orders}")]


def _beside_random(case: RunCase, null: RandomSets | None, sizes: Sequence[SizeRow]) -> list[SizeRow]:
    if null is None:
        return list(sizes)
    return [
        replace(
            row, random_mean=null.mean(row.count), random_std=null.std(row.count),
            random_as_good=share_as_good(null.faithfulness[row.count], row.preserve.faithfulness),
        ) if 0 < row.count < len(case.names) else row
        for row in sizes
    ]  # fmt: skip


def _known(circuit: tuple[str, ...], known: tuple[str, ...], inside: list[str]) -> Known | None:
    if not known:
        return None
    outside = tuple(name for name in known if name not in inside)
    return Known(known, outside, *precision_recall(circuit, inside))


def _replacement_of(found: Discovery, subject: Subject, task: Task) -> Replacement:
    """The run's replacement, its values taken again."""
    record = found.record.get("replacement", {})
    seed = record.get("seed", found.record.get("seed", 0))
    return fit_replacement(subject, task, found.components, record.get("kind", "mean"), record.get("per"), seed)


def _experiment(
    found: Discovery, subject: Subject, task: Task, reference: Replacement, asked: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the values of an audit, by content; another experiment than the run's is refused."""
    here = plain(Engine(subject, task, found.components, reference).describe())
    there = {part: found.record.get(part, {}) for part in ("subject", "task")}
    same = ("weights_sha256", "weight_processing", "probe")
    other = differences(_some(there["subject"], same), _some(here["subject"], same), "model.", ("in the run", "here"))
    other += differences(there["task"], here["task"], "task.", ("in the run", "here"))
    if other:
        raise ResponseError(
            all_problems("this is not the experiment of the run, so it cannot be audited on it:", other)
            + "\nGive the model, the prompts and the metric of the run."
        )
    content = hashlib.sha256(repr(list(found.spectrum.mean_output().sorted().terms())).encode()).hexdigest()
    return {**here, "design": None, "audit": dict(asked), "spectrum_sha256": content}


def _some(record: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: record.get(key) for key in keys}


def _provenance(found: Discovery, record: Mapping[str, Any]) -> dict[str, Any]:
    run = _some(found.record, ("seed", "masks", "heldout_r2", "outcome", "unit"))
    decoder = found.record.get("decoder", {}).get("name")
    asked = dict(record["audit"])
    return {
        "spex_mech": version("spex-mech"), **asked, "run": {**run, "decoder": decoder},
        **{part: record[part] for part in ("subject", "task", "replacement")},
    }  # fmt: skip

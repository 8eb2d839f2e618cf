"""The evidence of a run and its audit as a report shows it: points, sizes, checks and tables."""

from collections.abc import Sequence

from spex_mech.auditing.run_audit import Audit
from spex_mech.auditing.verdicts import STABLE_FROM
from spex_mech.show.dossier import Cell, Check, Points, Sheet, SizePoint
from spex_mech.store.discovery import Discovery

MAX_EXHIBIT_ROWS = 40  # rows of a table


def points_of(found: Discovery, audit: Audit | None) -> Points | None:
    """Predicted beside measured: of masks drawn anew, else of held-out ones by the polynomial before it saw them."""
    if audit is not None and audit.fresh.measured:
        fresh = audit.fresh
        return Points(fresh.predicted, fresh.measured, fresh.r2, fresh.masks, "masks drawn anew")
    held = found.record.get("heldout")
    if not held:
        return None
    count = found.masks_judged or len(held["measured"])
    return Points(tuple(held["predicted"]), tuple(held["measured"]), found.heldout_r2, count, _source(found))


def sizes_of(audit: Audit | None) -> tuple[SizePoint, ...]:
    """Faithfulness of the chosen sets over their sizes."""
    rows = () if audit is None else audit.sizes
    return tuple(
        SizePoint(r.count, r.preserve.faithfulness, r.help.faithfulness, r.random_mean, r.random_std) for r in rows
    )


def checks_of(found: Discovery, audit: Audit | None) -> dict[tuple[str, ...], Check]:
    """The circuit's interactions measured again. None behind a link: an audit tests those of the metric itself."""
    if audit is None or not found.link.is_identity:
        return {}
    return {
        c.components: Check(c.estimate, c.stderr, c.q_value, c.confirmed()) for c in audit.interactions
    }  # fmt: skip


def sheets_of(found: Discovery, audit: Audit | None) -> tuple[Sheet, ...]:
    """The tables of an audit; those without rows are not shown."""
    if audit is None:
        return ()
    raw = () if found.link.is_identity else (_raw(audit),)
    sure = (_stability(audit), _replacements(audit), _contexts(audit))
    return (_backups(audit), *raw, *sure, _rankings(audit), _completeness(audit), _minimality(audit))


def _backups(audit: Audit) -> Sheet:
    rows = [
        (_names(g.components), g.joint, g.excess, g.stderr, g.intact_joint, g.intact_excess, g.q_value, g.confirmed())
        for g in audit.backups
    ]
    columns = ("group", "losing all", "excess", "± s.e.", "intact: losing all", "intact: excess", "q", "confirmed")
    note = (
        f"Groups any part of which does what the whole does, measured on fresh masks, in {audit.unit}. The excess is "
        "what losing all of a group costs beyond the best explanation by losing parts of it."
    )
    return Sheet("Backups", columns, tuple(rows), note)


def _raw(audit: Audit) -> Sheet:
    rows = [
        (_names(c.components), c.claimed, c.estimate, c.stderr, c.q_value, c.confirmed()) for c in audit.interactions
    ]
    columns = ("components", "claimed", "measured again", "± s.e.", "q", "confirmed")
    return Sheet(f"Interactions on the metric's own scale ({audit.unit})", columns, tuple(rows[:MAX_EXHIBIT_ROWS]))


def _stability(audit: Audit) -> Sheet:
    rows = [
        (f"halves of the {r.over}", r.resamples, r.nodes, r.interactions, r.stable, r.method) for r in audit.stability
    ]
    columns = ("over", "resamples", "components", "interactions", "stable", "how")
    bar = max((r.bar for r in audit.stability), default=STABLE_FROM)
    note = f"Agreement of what is found again (Jaccard index, mean); components at {bar:g} and more are called stable."
    return Sheet("Would other masks or prompts say the same?", columns, tuple(rows), note)


def _replacements(audit: Audit) -> Sheet:
    rows = [
        (r.kind, r.masks, r.effect, r.r2, r.nodes, r.interactions, r.signs, r.top) for r in audit.replacements
    ]  # fmt: skip
    columns = (
        "replaced by",
        "masks",
        "whole effect",
        "responses, r²",
        "components",
        "interactions",
        "signs",
        "top ten",
    )
    note = (
        f"The same masks with another replacement. Whole effect: intact less everything ablated ({audit.unit}). Then "
        "how far it agrees with the run: squared correlation of the responses, rank correlation of the components, "
        "correlation of the interactions, share of the ten strongest that keep their sign, and their Jaccard index."
    )
    return Sheet("Would another replacement say the same?", columns, tuple(rows), note)


def _contexts(audit: Audit) -> Sheet:
    rows = [
        (_names(r.components), r.keep_prob, r.here, r.effect, r.stderr, r.q_value, r.holds) for r in audit.contexts
    ]  # fmt: skip
    columns = ("components", "others kept", "in the run", "there", "± s.e.", "q", "holds")
    note = (
        "The strongest interactions where the other components are kept more, or less, often than in the run: what "
        f"the set does jointly ({audit.unit}), and whether it is there with the same sign."
    )
    return Sheet("Do interactions hold in other contexts?", columns, tuple(rows), note)


def _rankings(audit: Audit) -> Sheet:
    known = any(row.auroc is not None for row in audit.rankings)
    rows: list[tuple[Cell, ...]] = [
        (r.name, r.note, r.masks, r.cpr, r.cmd, *([r.auroc] if known else [])) for r in audit.rankings
    ]
    columns = ("ranking", "remark", "masks", "CPR", "CMD", *(["AUROC"] if known else []))
    note = (
        "Circuits of ten sizes by each ranking, measured. CPR is the area under faithfulness (higher is better), CMD "
        "that under its distance from 1 (lower is better); masks, what a ranking cost."
        + (" AUROC: how well it tells the known circuit's components from the others." if known else "")
    )
    return Sheet("Beside other ways to rank components", columns, tuple(rows), note)


def _completeness(audit: Audit) -> Sheet:
    rows = [(_names(k.removed), k.predicted, k.measured) for k in audit.completeness]
    note = (
        f"How far the circuit and the whole model are apart ({audit.unit}) after the same knockout, the worst by "
        "prediction. Small gaps mean that little of the behaviour is outside the circuit."
    )
    return Sheet(
        "Is it complete?", ("knocked out", "predicted gap", "measured gap"), tuple(rows[:MAX_EXHIBIT_ROWS]), note
    )


def _minimality(audit: Audit) -> Sheet:
    rows = [(k.component, _names(k.removed), k.predicted, k.measured) for k in audit.minimality]
    note = f"The most that a component of the circuit matters, after the knockout that shows it best ({audit.unit})."
    columns = ("component", "after knocking out", "predicted", "measured")
    return Sheet("Is every part needed?", columns, tuple(rows[:MAX_EXHIBIT_ROWS]), note)


def _names(names: Sequence[str]) -> str:
    if not names:
        return "nothing"
    return " × ".join(names) if len(names) <= 6 else f"{' × '.join(names[:6])} and {len(names) - 6:,} more"


def _source(found: Discovery) -> str:
    return "masks, each left out of a fit" if found.decoded.cross_fitted else "held-out masks"

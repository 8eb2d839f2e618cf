"""What a report says, sentence by sentence: of a run and an audit whose every figure is given by hand."""

from dataclasses import replace

import pytest
import torch

from spex_mech.auditing.findings import (
    BackupCheck,
    Confirmation,
    ContextRow,
    Fresh,
    Knockout,
    Known,
    RankingRow,
    ReplacementRow,
    Search,
    SizeRow,
    StabilityRow,
    Verified,
)
from spex_mech.auditing.run_audit import Audit
from spex_mech.circuit.graph import Circuit, Interaction, Node
from spex_mech.components import ComponentSet
from spex_mech.show.exhibits import MAX_EXHIBIT_ROWS, checks_of, points_of, sheets_of, sizes_of
from spex_mech.show.wording import answer_sentences, confidence, limits, listed, warnings
from spex_mech.store.discovery import Discovery
from spex_mech.store.responses import Responses
from spex_mech.walsh.decoding import Decoded, Outcome
from spex_mech.walsh.link_function import Link
from spex_mech.walsh.spectrum import Spectrum

LOGISTIC = Link("logistic", (0.0, 1.0, 0.0, 0.25))
NAMES = ("a0.h0", "a0.h1", "a1.h0", "m0")
COMPONENTS = ComponentSet.of(NAMES)
ONE = Interaction(("a0.h1",), -0.5, "main")
PAIR = Interaction(("a0.h0", "a1.h0"), 0.25, "synergy")
FACTORIAL = Confirmation(PAIR.components, 0.25, 0.24, 0.26, 0.01, 12, 1e-4, 2e-4, 1.0, None)
GROUP = BackupCheck(("a0.h0", "a0.h1"), 1.5, 0.75, 0.1, 12, 1e-4, 2e-4, 1.4, 0.7)


def circuit(*interactions):
    names = [name for name in NAMES if any(name in i.components for i in interactions)]
    return Circuit(COMPONENTS, tuple(Node(COMPONENTS[NAMES.index(n)]) for n in names), interactions, "logit")


def run(*interactions, outcome=Outcome.RECOVERED, heldout=0.9, stats=(), link=None, **record):
    keep = torch.tensor([[True, True, True, False], [False, True, False, False]])
    responses = Responses(COMPONENTS, keep, torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]), "logit")
    decoded = Decoded(
        Spectrum.from_terms(4, {(): 1.0}), outcome, {"heldout_r2": heldout, **dict(stats)}, link or Link()
    )
    record = {"task": {"metric": "logit_diff"}, "replacement": {"kind": "mean"}} | record
    return Discovery(responses, decoded, circuit(*interactions), record)


def audit(**changes):
    kept = Verified(("a0.h0", "a1.h0"), 2.9, 3.0, 0.75, "search")
    rows = tuple(SizeRow(s, c, kept, replace(kept, faithfulness=1.25), 0.1, 0.2, 0.5) for s, c in ((0.1, 0), (0.5, 2)))
    fresh = Fresh(64, (0.5,), 0.875, 0.1, (1.0, 2.0), (1.1, 2.1))
    values = {
        "components": NAMES, "unit": "logit", "intact": 4.0, "empty": 0.0, "fresh": fresh, "circuit": kept,
        "found": kept, "sizes": rows, "cpr": 0.7, "cmd": 0.3,
        "rankings": (RankingRow("spex_mech", 100, 0.7, 0.3, None, None, "ours"),),
        "completeness": (Knockout(("a0.h0",), None, 0.5, 0.4),), "minimality": (Knockout((), "a0.h0", 0.6),),
        "interactions": (FACTORIAL,), "backups": (GROUP,), "known": None, "skipped": (), "cautions": (),
        "record": {"masks": 90},
    }  # fmt: skip
    return Audit(**values | changes)


NOTHING_LOST = (
    "Losing a0.h0 costs 0.00 logit, losing a1.h0 costs 0.00 logit; losing all of them costs 0.00 logit, what the 2 by "
    "themselves add up to (averaged over masks of the others)."
)


def test_the_answer_of_a_run_alone():
    assert answer_sentences(run(ONE, PAIR, stats={"masks_heldout": 30}), None) == (
        "Of 4 components, 3 were found to matter to logit_diff, alone or together with others: 1 effect of single "
        "components and 1 joint effect of up to 2 components.",
        "By itself, a0.h1 matters most (−0.500 logit).",
        "The strongest joint effect is that of a0.h0 × a1.h0 (+0.250 logit, synergy).",
        NOTHING_LOST,
        "On 30 held-out masks the polynomial behind this explains 90 % of the variance.",
    )


def test_the_answer_of_single_effects():
    assert answer_sentences(run(ONE), None) == (
        "Of 4 components, 1 was found to matter to logit_diff, each by itself.",
        "By itself, a0.h1 matters most (−0.500 logit).",
        "No joint effect was found: components act one by one, as far as these masks can tell.",
        "On held-out masks the polynomial behind this explains 90 % of the variance.",
    )
    two = answer_sentences(run(ONE, replace(ONE, components=("m0",))), None)
    assert two[0] == "Of 4 components, 2 were found to matter to logit_diff, each by itself."


def test_the_strongest_of_each_kind_is_named():
    weaker = replace(ONE, components=("m0",), coefficient=0.1)
    backup = replace(PAIR, kind="redundancy", coefficient=-0.25)
    said = answer_sentences(run(ONE, weaker, backup, replace(PAIR, components=("a0.h0", "m0"))), None)
    assert "2 effects of single components and 2 joint effects of up to 2" in said[0]
    assert said[1].startswith("By itself, a0.h1 ")
    assert said[2] == "The strongest joint effect is that of a0.h0 × a1.h0 (−0.250 logit, redundancy)."
    assert said[3] == NOTHING_LOST  # no polynomial here has a term, so no word is borne


def test_the_answer_of_an_audit():
    assert answer_sentences(run(ONE, PAIR), audit()) == (
        "With 2 of 4 components left as they are and all others replaced by their mean over reference prompts, 75 % of "
        "the behaviour is left: logit_diff is 3.00 logit, where the intact model has 4.00 and the model with "
        "everything replaced 0.00.",
        "The circuit is a0.h0 and a1.h0.",
        "By itself, a0.h1 matters most (−0.500 logit).",
        "The strongest joint effect is that of a0.h0 × a1.h0 (+0.250 logit, synergy).",
        NOTHING_LOST,
        "a0.h0 and a0.h1 back each other up: losing all of them costs 1.50 logit, 0.750 more than losing some of them "
        "explains.",
        "Of 1 interaction measured again on fresh masks, 1 was confirmed.",
        "On 64 masks drawn anew the polynomial behind this explains 87.5 % of the variance.",
    )


def test_only_what_was_confirmed_is_told_of():
    lost = replace(FACTORIAL, q_value=0.2)
    turned = replace(FACTORIAL, estimate=-0.26)
    said = answer_sentences(run(ONE, PAIR), audit(
        backups=(replace(GROUP, q_value=0.2), replace(GROUP, excess=-0.1)),
        interactions=(lost, turned, FACTORIAL, FACTORIAL),
    ))  # fmt: skip
    assert not any("back each other up" in words for words in said)
    assert "Of 4 interactions measured again on fresh masks, 2 were confirmed." in said
    said = answer_sentences(run(ONE), audit(interactions=(), backups=(GROUP,) * 4))
    assert sum("back each other up" in words for words in said) == 3
    assert not any("measured again" in words for words in said)


def test_an_empty_circuit_and_an_unknown_replacement():
    none = Verified((), 0.0, 0.0, 0.0, "search")
    said = answer_sentences(run(ONE, replacement={"kind": "noise"}), audit(circuit=none))
    assert "replaced by something else, 0 % of" in said[0]
    assert said[1] == "No component is in that circuit."


@pytest.mark.parametrize(
    ("found", "fresh", "words"),
    [
        (run(ONE, heldout=None), None, "Every one of the 2 masks there are was measured, so for these prompts th"),
        (run(ONE, heldout=0.0), None, "On held-out masks the polynomial behind this predicts no better than the mea"),
        (run(ONE, heldout=0.9999), None, "On held-out masks the polynomial behind this explains more than 99.9 %"),
        (run(ONE), -0.5, "On 64 masks drawn anew the polynomial behind this predicts no better than the mean: do"),
        (run(ONE), None, "On held-out masks the polynomial behind this explains 90 % of the variance."),
    ],
)  # fmt: skip
def test_how_far_a_reader_may_trust_it(found, fresh, words):
    audited = audit(fresh=replace(audit().fresh, r2=fresh))
    assert answer_sentences(found, audited if fresh is not None or found.heldout_r2 == 0.9 else None)[-1].startswith(
        words
    )


def test_nothing_found_is_said_in_one_sentence():
    found = run(outcome=Outcome.NOTHING_FOUND)
    assert answer_sentences(found, audit()) == (
        "No set of components was found that explains the responses better than their mean.",
    )
    assert warnings(found, audit())[0].startswith(
        "No set of components explains the responses better than their mean; c"
    )


def test_warnings():
    untested = "Nothing here has been tested by fresh forward passes; an audit (spex-mech audit) does that."
    assert warnings(run(ONE), None) == (untested,)
    assert warnings(run(ONE, outcome=Outcome.COMPLETE), audit()) == ()
    assert warnings(run(ONE), audit(cautions=("first", "second."))) == ("First.", "Second.")
    partial = warnings(run(ONE, outcome=Outcome.PARTIAL), None)
    assert partial == (
        "Part of the variance on unseen masks is not explained; raise the budget, or move the keep-probability nearer "
        "1.",
        untested,
    )
    for lens in ("features", "data"):
        (words,) = warnings(run(ONE, task={"metric": "logit", lens: {}}), None)
        assert words.endswith("tested on masks drawn anew; the same call with another seed gives some.")


def test_confidence():
    sure = {"inference": {"method": "by halves", "masks": 1200}, "stability": {"jaccard": 0.625, "node_jaccard": 0.75}}
    known = Known(("a0.h0", "m9"), ("m9",), 0.5, 0.25)
    assert confidence(run(ONE, certainty=sure), audit(known=known)) == (
        "Errors and q-values rest on: by halves (1,200 masks).",
        "Over several resamples the sets found agree to 0.62, the components to 0.75 (Jaccard; 0.8 and more is called "
        "stable).",
        "Beside the known circuit (a0.h0 and m9) the audited one has precision 0.50 and recall 0.25.",
    )
    assert confidence(run(ONE), None) == confidence(run(ONE), audit(known=replace(known, recall=None))) == ()
    assert confidence(run(ONE, certainty={"inference": {}, "stability": {"jaccard": None}}), audit()) == ()
    (words,) = confidence(run(ONE, certainty={"inference": {"masks": "many"}}), None)
    assert words == "Errors and q-values rest on: unknown."
    again = {"stability": {"jaccard": 1.0, "node_jaccard": 1.0, "resamples": 40}}
    assert confidence(run(ONE, certainty=again), None)[0].startswith("Over 40 resamples")


def test_limits_of_a_run_of_components():
    said = limits(run(ONE, replacement={"kind": "mean", "assumes": "the mean says nothing"}), None)
    assert len(said) == 7
    assert said[1] == "Nothing beyond 3 prompts and this metric. Others may have another circuit."
    assert said[2].startswith("Nothing about components that were not studied. 4 were;")
    assert "rest on an assumption: the mean says nothing. Another" in said[4]
    assert "(on average 50 % of the components kept)" in said[5]
    assert "(all there are)" in limits(run(ONE, design={"kind": "complete"}), None)[5]
    assert "assumption" not in limits(run(ONE), None)[4]
    bare = run(ONE)
    assert limits(replace(bare, record={"task": {"metric": "logit_diff"}}), None) == limits(bare, None)
    behind = run(ONE)
    behind = replace(behind, circuit=replace(behind.circuit, link="logistic"))
    assert limits(behind, None)[7].startswith("The interactions are those before a link (")


def test_limits_of_other_lenses():
    for lens, number in (("features", 5), ("data", 4)):
        said = limits(run(ONE, task={"metric": "logit", lens: {}}), None)
        assert len(said) == number
        assert any("on average 50 % of the components kept" in words for words in said)
    assert "another run" in limits(run(ONE, task={"metric": "logit", "features": {}}), None)[0]
    assert "every training" in limits(run(ONE, task={"metric": "logit", "data": {}}), None)[0]


def test_limits_tell_what_the_search_owes_to_the_prompts():
    *_, searched, left = limits(run(ONE), audit(search=Search(77, 100, 0.5, 0.25, 1.0), skipped=("pairs",)))
    assert searched == (
        "The circuits were chosen among sets that were measured (77 masks), on the prompts that report; where half of "
        "the prompts choose and the others report, CPR is 0.500 and CMD 0.250 (medians over 100 splits)."
    )
    assert left == "Left out: pairs."
    assert limits(run(ONE), audit(search=Search(77, 0, None, None, None)))[-1].endswith(
        "of what they keep may be luck."
    )
    half = limits(run(ONE), audit(search=Search(77, 100, 0.5, None, None)))[-1]
    assert half.endswith("of what they keep may be luck.")
    assert len(limits(run(ONE), audit())) == 7


def test_long_lists_are_cut():
    names = tuple(f"m{i}" for i in range(9))
    assert listed(names) == "m0, m1, m2, m3, m4, m5, m6, m7 and 1 more"
    assert listed(names[:8]) == "m0, m1, m2, m3, m4, m5, m6 and m7"
    assert listed(names[:1]) == "m0"
    assert listed(()) == "none"


def test_points_are_of_fresh_masks_else_of_held_out_ones():
    points = points_of(run(ONE), audit())
    assert (points.predicted, points.measured, points.r2, points.masks) == ((1.1, 2.1), (1.0, 2.0), 0.875, 64)
    assert points.source == "masks drawn anew"
    held = run(ONE)
    assert points_of(held, None) is None
    with_held = replace(held, record={**held.record, "heldout": {"predicted": [1.0], "measured": [2.0]}})
    bare = audit(fresh=replace(audit().fresh, measured=(), predicted=()))
    for audited in (None, bare):
        points = points_of(with_held, audited)
        assert (points.predicted, points.measured, points.r2, points.masks) == ((1.0,), (2.0,), 0.9, 1)
        assert points.source == "held-out masks"
    many = replace(with_held, decoded=replace(with_held.decoded, stats={"heldout_r2": 0.9, "masks_heldout": 700}))
    assert points_of(many, None).masks == 700  # of which the record holds the first


def test_sizes_and_checks():
    assert sizes_of(None) == ()
    (_, two) = sizes_of(audit())
    assert (two.count, two.preserve, two.help, two.random_mean, two.random_std) == (2, 0.75, 1.25, 0.1, 0.2)
    checks = checks_of(run(ONE, PAIR), audit())
    assert list(checks) == [PAIR.components]
    check = checks[PAIR.components]
    assert (check.estimate, check.stderr, check.q_value, check.confirmed) == (0.26, 0.01, 2e-4, True)
    assert checks_of(run(ONE, PAIR), None) == checks_of(run(ONE, link=LOGISTIC), audit()) == {}


def full():
    return audit(
        stability=(StabilityRow("masks", 100, 0.5, 0.9, "refits"),),
        replacements=(ReplacementRow("zero", 50, 3.5, 0.9, 0.8, 0.7, 0.6, 0.5),),
        contexts=(ContextRow(PAIR.components, 0.9, 1.0, 0.5, 0.1, 12, 0.01),),
    )


def test_tables_hold_every_figure_in_its_column():
    sheets = {sheet.title: sheet for sheet in sheets_of(run(ONE), full())}
    rows = {title: dict(zip(sheet.columns, sheet.rows[0], strict=True)) for title, sheet in sheets.items()}
    assert rows == {
        "Backups": {
            "group": "a0.h0 × a0.h1", "losing all": 1.5, "excess": 0.75, "± s.e.": 0.1, "intact: losing all": 1.4,
            "intact: excess": 0.7, "q": 2e-4, "confirmed": True,
        },
        "Would other masks or prompts say the same?": {
            "over": "halves of the masks", "resamples": 100, "components": 0.9, "interactions": 0.5, "stable": True,
            "how": "refits",
        },
        "Would another replacement say the same?": {
            "replaced by": "zero", "masks": 50, "whole effect": 3.5, "responses, r²": 0.9, "components": 0.8,
            "interactions": 0.7, "signs": 0.6, "top ten": 0.5,
        },
        "Do interactions hold in other contexts?": {
            "components": "a0.h0 × a1.h0", "others kept": 0.9, "in the run": 1.0, "there": 0.5, "± s.e.": 0.1,
            "q": 0.01, "holds": True,
        },
        "Beside other ways to rank components": {
            "ranking": "spex_mech", "remark": "ours", "masks": 100, "CPR": 0.7, "CMD": 0.3,
        },
        "Is it complete?": {"knocked out": "a0.h0", "predicted gap": 0.5, "measured gap": 0.4},
        "Is every part needed?": {
            "component": "a0.h0", "after knocking out": "nothing", "predicted": 0.6, "measured": None,
        },
    }  # fmt: skip
    read = {sheet.title: sheet.note for sheet in sheets_of(run(ONE), full())}
    for title, words in {
        "Backups": "measured on fresh masks, in logit. The excess",
        "Would another replacement say the same?": "intact less everything ablated (logit)",
        "Do interactions hold in other contexts?": "what the set does jointly (logit)",
        "Is it complete?": "are apart (logit) after the same knockout",
        "Is every part needed?": "after the knockout that shows it best (logit)",
        "Beside other ways to rank components": "(higher is better), CMD that under its distance from 1 (lower",
    }.items():
        assert words in read[title]
    assert "AUROC" not in read["Beside other ways to rank components"]
    assert "0.8 and more are called stable" in sheets["Would other masks or prompts say the same?"].note


def test_behind_a_link_the_metrics_own_interactions_have_a_table():
    sheets = sheets_of(run(ONE, link=LOGISTIC), full())
    raw = sheets[1]
    assert raw.title == "Interactions on the metric's own scale (logit)"
    assert dict(zip(raw.columns, raw.rows[0], strict=True)) == {
        "components": "a0.h0 × a1.h0", "claimed": 0.25, "measured again": 0.26, "± s.e.": 0.01, "q": 2e-4,
        "confirmed": True,
    }  # fmt: skip
    assert sheets_of(run(ONE), None) == ()


def test_rankings_show_aurocs_where_there_are_any_and_long_tables_are_cut():
    known = audit(
        rankings=(RankingRow("spex_mech", 100, 0.7, 0.3, 0.9), RankingRow("line", 9, None, None)),
        completeness=(Knockout(tuple(f"m{i}" for i in range(7)), None, 0.5),) * 50,
        minimality=(Knockout(("a0.h0",), "m0", 0.5), *(Knockout(tuple(f"m{i}" for i in range(6)), "m0", 0.5),) * 50),
    )
    by_title = {sheet.title: sheet for sheet in sheets_of(run(ONE), known)}
    ranks = by_title["Beside other ways to rank components"]
    assert ranks.columns[-1] == "AUROC"
    assert [row[-1] for row in ranks.rows] == [0.9, None]
    assert "AUROC" in ranks.note
    for title in ("Is it complete?", "Is every part needed?"):
        assert len(by_title[title].rows) == MAX_EXHIBIT_ROWS
    assert by_title["Is it complete?"].rows[0][0] == "m0 × m1 × m2 × m3 × m4 × m5 and 1 more"
    assert [row[1] for row in by_title["Is every part needed?"].rows[:2]] == ["a0.h0", "m0 × m1 × m2 × m3 × m4 × m5"]

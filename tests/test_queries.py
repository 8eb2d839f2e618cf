"""The figures that rows of accuracy come to."""

import math

import pytest

from spex_mech.bench.accuracy import Book
from spex_mech.bench.cases import planted_case
from spex_mech.bench.queries import masks_for, means, query_ratios, summarise


def row(masks, decoder, r2, case="a", seconds=1.0, repeat=0):
    cell = {"case": case, "keep_prob": 0.5, "masks": masks, "repeat": repeat}
    return {**cell, "decoder": decoder, "r2": r2, "seconds": seconds}


def test_masks_are_read_off_a_curve_on_a_logarithmic_axis():
    curve = {64: 0.2, 128: 0.6, 256: 0.5, 512: 0.9}
    assert masks_for(curve, 0.1) == 64
    assert masks_for(curve, 0.4) == pytest.approx(64 * 2**0.5)
    assert masks_for(curve, 0.6) == 128
    assert masks_for(curve, 0.7) == pytest.approx(512**0.5 * 256**0.5)
    assert masks_for(curve, 0.95) == math.inf


def test_query_ratios_are_against_the_better_form_of_the_peer_where_it_sees_anything():
    rows = [row(64, "joint", 0.5), row(256, "joint", 0.9), row(64, "shapiq proxyspex", 0.05),
            row(256, "shapiq proxyspex", 0.3), row(256, "shapiq proxyspex, one fit", 0.7),
            row(256, "shapiq proxyshap", 0.95)]  # fmt: skip
    assert query_ratios(rows) == {("a", 0.5, 256): 0.5}
    assert summarise(rows)["median_query_ratio"] == 0.5


def test_the_summary_counts_and_names_what_is_lost():
    rows = [row(64, "joint", 0.5, seconds=2.0), row(64, "linear", 0.504), row(128, "joint", 0.5, seconds=4.0),
            row(128, "linear", 0.6)]  # fmt: skip
    summary = summarise(rows)
    assert (summary["cells"], summary["joint_is_best"]) == (2, 1)
    assert summary["worst_r2_gap"] == pytest.approx(0.1)
    assert summary["lost"] == {"a, keep 0.5, 128 masks": "to linear by 0.100 ± nan"}
    assert summary["seconds_over_linear"] == 3.0
    assert summary["median_query_ratio"] is None


def test_a_cell_that_nobody_else_answered_is_no_win():
    rows = [row(64, "joint", 0.5), row(128, "joint", 0.6), row(128, "shapiq proxyspex", 0.502)]
    summary = summarise(rows)
    assert (summary["cells"], summary["joint_is_best"]) == (1, 1)
    assert summary["median_query_ratio"] > summary["median_query_ratio_within_0.005"] == 0.5
    alone = summarise(rows[:2])
    assert (alone["cells"], alone["worst_r2_gap"], alone["lost"]) == (0, None, {})


def test_cells_are_means_over_the_repeats_in_which_all_answer():
    rows = [row(64, "joint", 0.5), row(64, "joint", 0.7, repeat=1), row(64, "joint", 0.0, repeat=2),
            row(64, "linear", 0.6), row(64, "linear", 1.0, repeat=1),
            row(32, "joint", 0.1), row(32, "linear", 0.9)]  # fmt: skip
    summary = summarise(rows)
    assert summary["cells"] == 1
    assert summary["lost"] == {"a, keep 0.5, 64 masks": "to linear by 0.200 ± 0.100"}
    assert {m["decoder"]: m["r2"] for m in means(rows) if m["masks"] == 64} == {
        "joint": pytest.approx(0.6), "linear": pytest.approx(0.8)
    }  # fmt: skip


def test_finished_cells_are_found_again(tmp_path):
    case, asked = planted_case(("random", 10, 3, 0.1), 16), []

    def measure(case):
        asked.append(case)
        return {"r2": 0.5, "seconds": 1.0}

    Book(tmp_path / "rows.jsonl").fill(case, "mine", measure)
    Book(tmp_path / "rows.jsonl").fill(planted_case(("random", 10, 3, 0.1), 16, repeat=1), "mine", lambda case: None)
    book = Book(tmp_path / "rows.jsonl")
    book.fill(case, "mine", measure)
    assert len(asked) == 1
    assert [row.get("r2") for row in book.rows] == [0.5, None]


def test_a_scaled_constant_is_scaled_wherever_it_acts_and_comes_back():
    from spex_mech.bench import constants
    from spex_mech.walsh.decoders import pursuit, screening
    from spex_mech.walsh.joint import stack, stack_polynomial

    with constants.scaled("spex_mech.walsh.decoders.screening", "NORMAL", 2.0) as value:
        assert (value, screening.NORMAL, pursuit.NORMAL, stack_polynomial.NORMAL) == (60, 60, 60, 60)
    with constants.scaled("spex_mech.walsh.joint.stack", "_POWER", 0.01):
        assert stack._POWER == 1
    assert (screening.NORMAL, pursuit.NORMAL, stack._POWER) == (30, 30, 8)


def test_every_constant_of_the_bench_is_there():
    from importlib import import_module

    from spex_mech.bench.constants import ASKS, CONSTANTS, DECODERS

    assert set(ASKS) == set(DECODERS) == {decoder for decoder, _, _ in CONSTANTS}
    assert all(getattr(import_module(f"spex_mech.walsh.{module}"), name) > 0 for _, module, name in CONSTANTS)


def test_the_bench_of_constants_tells_what_changes():
    from spex_mech.bench.constants import run

    found = run(quick=True, only=["spex.peeling._STANDS_OUT"])
    assert [line["constant"] for line in found["summary"]] == ["spex.peeling._STANDS_OUT"] * 2
    assert [row["value"] for row in found["rows"]] == [2.0, 8.0]
    assert all(row["r2"] > 0.9 and row["f1"] > 0.9 for row in found["rows"])

"""The decoding bench in its quick form: every kind of row is there, and the planted functions come back."""

from spex_mech.bench.decoding_cost import run


def test_the_bench_measures_what_it_says():
    result = run(quick=True, peer_python="no-such-python")
    kinds = {row["kind"] for row in result["rows"]}
    assert kinds == {"ours", "decode", "outputs", "transform"}
    assert {row["n"] for row in result["rows"] if row["kind"] == "decode"} == {64, 256}
    summary = result["summary"]
    assert summary["speedup_vs_shapiq_soft"] is None
    assert summary["f1_min"] >= 0.97
    assert min(row["f1"] for row in result["rows"] if row["kind"] == "decode" and row["function"] == "random") == 1.0
    assert summary["transform_share_of_copy"] > 0
    assert summary["outputs_cost"] > 0
    assert summary["peak_gib"] > 0

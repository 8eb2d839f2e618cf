"""The comparison of players on a shipped card: its rows are what they say they are."""

from pathlib import Path

import pytest

from spex_mech.bench.players import run

CARD = Path(__file__).resolve().parents[1] / "circuits" / "induction-2l"


def test_every_design_pays_for_its_masks_and_is_checked():
    rows = {row["players"]: row for row in run(str(CARD), masks=400, prompts=2)}
    assert {"independent masks, keep 0.9", "code over all", "code over candidates, rest kept"} <= rows.keys()
    assert "code over blocks of a tenth" not in rows  # a tenth of 12 heads has no three blocks
    assert rows["code over all"]["masks"] == 400
    assert rows["code over candidates, rest kept"]["masks"] == 300
    assert rows["code over all"]["ablated"] == pytest.approx(0.5, abs=0.02)
    assert 0 < rows["code over candidates, rest kept"]["ablated"] <= 0.26  # half of at most six heads of twelve
    assert rows["code over candidates, rest ablated"]["ablated"] >= 0.74
    assert all(row["heldout_r2"] > 0.9 for row in rows.values())
    assert rows["code over all"]["fresh_r2"] > 0.9
    assert rows["code over candidates, rest kept"]["working"] <= 1

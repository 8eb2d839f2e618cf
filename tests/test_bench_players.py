"""The comparison of players on a shipped card: its rows are what they say they are."""

import pytest
import torch

from spex_mech.bench.players import predicted, run
from spex_mech.walsh.decoding import Decoded, Outcome
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Spectrum


def test_every_design_pays_for_its_masks_and_is_checked():
    result = run(quick=True, budgets=(400,))
    rows = {row["players"]: row for row in result["rows"]}
    assert {"independent, keep 0.5", "independent, keep 0.9", "code over all"} <= rows.keys()
    assert "code over blocks of a tenth" not in rows  # a tenth of 12 heads has no three blocks
    assert "code over heads, rest kept" not in rows  # all components are heads
    assert all(row["masks"] + row["paid"] == 400 for row in rows.values())
    assert rows["code over candidates, rest kept"]["paid"] == 100
    assert rows["code over all"]["ablated"] == pytest.approx(0.5, abs=0.02)
    assert 0 < rows["code over candidates, rest kept"]["ablated"] <= 0.26  # half of at most six heads of twelve
    assert rows["code over candidates, rest ablated"]["ablated"] >= 0.74
    assert all(row["heldout_r2"] > 0.9 for row in rows.values())
    assert rows["code over all"]["fresh_r2_0.5"] > 0.95
    assert rows["independent, keep 0.9"]["fresh_r2_0.9"] > 0.95
    assert result["summary"]["code over all"]["fresh_r2_0.5"] == pytest.approx(
        rows["code over all"]["fresh_r2_0.5"], abs=5e-4
    )


def test_a_polynomial_over_groups_is_read_at_the_share_kept():
    """Whole groups give what the polynomial says of them; halves lie between, multilinearly."""
    players = ((0, 3), (1,), (2, 4))
    design = MaskDesign.coded(6, 2, players=players)
    spectrum = Spectrum.from_terms(3, {(): 1.0, (0,): 0.5, (0, 2): -2.0})
    found = Decoded(spectrum, Outcome.RECOVERED)
    bits = MaskDesign.complete(3).keep()
    keep = torch.ones(8, 6, dtype=torch.bool)
    for player, group in enumerate(players):
        keep[:, list(group)] = bits[:, [player]]
    assert torch.allclose(predicted(found, design, keep), spectrum.evaluate(bits))
    half = torch.tensor([[True, True, True, False, True, True]])  # half of the first group, all of the third
    assert predicted(found, design, half).tolist() == [1.0]

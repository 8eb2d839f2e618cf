"""Shares of a run: merged they are the run, bit for bit; what does not belong together or is missing is named."""

import json
import sqlite3
import sys

import pytest
import torch

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.api.shards import Shard, merge_shards, respond_shard
from spex_mech.cli import main as cli
from spex_mech.errors import DesignError, FormatError, ResponseError
from spex_mech.measuring.journal import JOURNAL

BUDGET = 1700  # seven chunks
OPTIONS = {"budget": BUDGET, "keep_prob": 0.7, "decoder": "linear", "components": "a*.h*, m*.n*"}


@pytest.fixture(scope="module")
def question():
    weights = {"a0.h1": 0.7310585, "a1.h2": -1.1102230, "m0.n1": 3.3219281}
    subject = planted.additive(weights, layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=2), spread=0.3)
    return subject, planted.task(n_prompts=4, seed=0)


@pytest.fixture(scope="module")
def shares(question, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shares")
    for part in (1, 2, 3):
        respond_shard(*question, **OPTIONS, out=folder / str(part), shard=Shard(part, 3))
    return folder


def test_merged_shares_are_the_run(question, shares, tmp_path, monkeypatch):
    whole = sm.discover(*question, **OPTIONS)
    assert len(whole.responses.keep.unique(dim=0)) < BUDGET  # a share meets masks that another has measured
    merged = merge_shards([shares / "3", shares / "1", shares / "2"], tmp_path)
    assert torch.equal(merged.values, whole.responses.values)
    assert (merged.unit, merged.provenance) == (whole.responses.unit, whole.responses.provenance)
    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", lambda *_: pytest.fail("masks were measured"))
    assert torch.equal(sm.discover(*question, **OPTIONS, out=tmp_path).responses.values, whole.responses.values)
    # again, and by the folder that holds them
    assert torch.equal(merge_shards([shares], tmp_path).values, whole.responses.values)


def test_a_share_goes_on_where_it_was(question, shares, tmp_path, monkeypatch):
    told = respond_shard(*question, **OPTIONS, out=shares / "2", shard=Shard(2, 3))
    assert told == {"masks": 512, "resumed_masks": 512}
    assert sum(Shard(part, 3).masks(BUDGET) for part in (1, 2, 3)) == BUDGET
    with pytest.raises(ResponseError, match="has shard 2/3, not 1/3"):
        respond_shard(*question, **OPTIONS, out=shares / "2", shard=Shard(1, 3))
    with pytest.raises(DesignError, match="pilot"):
        respond_shard(*question, **{**OPTIONS, "keep_prob": "auto"}, out=tmp_path, shard=Shard(1, 3))


def test_what_is_missing_is_named_and_the_rest_is_kept(question, shares, tmp_path):
    with pytest.raises(ResponseError, match=r"2 of 7 chunks are missing(.|\n)*shards 2/3 \(not given\)") as told:
        merge_shards([shares / "1", shares / "3"], tmp_path)
    assert "masks 256 to 511" in str(told.value)
    assert "masks 1,024 to 1,279" in str(told.value)
    found = sm.discover(*question, **OPTIONS, out=tmp_path)
    assert found.record["resumed_masks"] == BUDGET - 512
    assert torch.equal(found.responses.values, sm.discover(*question, **OPTIONS).responses.values)


def test_what_is_damaged_counts_as_missing(shares, tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / JOURNAL).write_bytes((shares / "2" / JOURNAL).read_bytes())
    with sqlite3.connect(tmp_path / "b" / JOURNAL) as connection:
        connection.execute("UPDATE chunks SET numbers = zeroblob(length(numbers)) WHERE first = 256")
    connection.close()
    given = [shares / "1", tmp_path / "b", shares / "3"]
    warned = pytest.warns(UserWarning, match="chunk at mask 256")
    with warned, pytest.raises(ResponseError, match=r"1 of 7 chunks(.|\n)*2/3 \(unfinished\)(.|\n)*masks 256 to 511"):
        merge_shards(given, tmp_path / "run")
    with pytest.warns(UserWarning, match="chunk at mask 256"):
        assert len(merge_shards([*given, shares / "2"], tmp_path / "run")) == BUDGET


def test_what_does_not_belong_together_is_refused_by_name(question, shares, tmp_path):
    respond_shard(*question, **{**OPTIONS, "seed": 1}, out=tmp_path / "other", shard=Shard(2, 3))
    with pytest.raises(ResponseError, match=r"other differs in design\.seed \(1 there, 0 in the first\)"):
        merge_shards([shares / "1", tmp_path / "other", shares / "3"], tmp_path / "run")
    with pytest.raises(FormatError, match="nothing"):
        merge_shards([shares / "1", tmp_path / "nothing"], tmp_path / "run")
    with pytest.raises(FormatError, match="no folder given"):
        merge_shards([], tmp_path / "run")
    (tmp_path / "other" / JOURNAL).write_text("no journal at all, though of this name")
    with pytest.warns(UserWarning, match="begun anew"), pytest.raises(FormatError, match="does not say"):
        merge_shards([tmp_path / "other"], tmp_path / "run")


@pytest.mark.parametrize("text", ["", "3", "0/3", "4/3", "a/b", "1/", "-1/3", "1/" + "9" * 40])
def test_shards_that_are_none(text):
    with pytest.raises(DesignError, match="shard"):
        Shard.parse(text)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    options = ["--budget", 600, "--keep", "0.8"]
    for part in (1, 2):
        folder = tmp_path / "shards" / str(part)
        code, out, _ = call("respond", "planted-and", *options, "--shard", f"{part}/2", "--out", folder, "--json")
        told = json.loads(out)
        assert (code, told["shard"], told["masks"]) == (0, f"{part}/2", (344, 256)[part - 1])
    code, _, err = call("merge", tmp_path / "shards" / "1", "--out", tmp_path / "run")
    assert code == 2
    assert "2/2 (not given)" in err
    assert call("merge", tmp_path / "shards", "--out", tmp_path / "run")[0] == 0
    code, out, _ = call("discover", "planted-and", *options, "--decoder", "linear", "--out", tmp_path / "run")
    assert code == 0
    assert "all 600 masks were on disk from before" in " ".join(out.split())
    assert call("respond", "planted-and", "--shard", "3/2", "--out", tmp_path / "x")[0] == 2

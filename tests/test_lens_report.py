"""Reports of runs over parts of a prompt and over examples: the text, its arcs, and words that fit."""

import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reports import HOSTILE

import spex_mech as sm
from spex_mech.circuit.layout import NARROW, WIDE
from spex_mech.cli.main import main
from spex_mech.errors import ResponseError
from spex_mech.lenses.segments import split_prompt
from spex_mech.show.dossier import PromptText
from spex_mech.show.prompt_text import draw_passage, flow, width_of
from spex_mech.store.discovery import lens_of

REVIEW = "The plot is not good but the music is nice"
WORDS = st.text(alphabet=st.sampled_from('ab漢e\u0301 \n<&"'), min_size=1, max_size=60).filter(str.strip)


def sentiment(texts):
    return [1.0 * ("good" in t) - 2.0 * ("not" in t and "good" in t) + 0.5 * ("nice" in t) for t in texts]


def passage(parts):
    return PromptText(parts.texts, parts.gaps, parts.components.names)


@settings(max_examples=150, deadline=None)
@given(WORDS, st.integers(2, 40))
def test_text_is_laid_out_whole_in_order_and_nothing_overlaps(prompt, columns):
    pieces = list(flow(passage(split_prompt(prompt)), columns))
    assert "".join("".join(p.words for p in pieces).split()) == "".join(prompt.split())
    places = [(p.line, p.column) for p in pieces]
    assert places == sorted(places)
    for one, other in pairwise(pieces):
        assert one.line < other.line or one.column + one.width <= other.column
    assert all(p.column + p.width <= columns and p.width == width_of(p.words) for p in pieces)
    parts = [p.part for p in pieces if p.part is not None]
    assert parts == sorted(parts)
    assert set(parts) == set(range(len(prompt.split())))


def test_the_report_of_a_prompt_shows_its_words_and_joins_those_that_act_together():
    found = sm.discover_features(sentiment, REVIEW, before="Review: ", budget=1024)
    html = sm.report(found).html
    assert 'id="text"' in html
    assert "Review:" in html
    for frame in (WIDE, NARROW):
        tree = ET.fromstring(draw_passage(passage(split_prompt(REVIEW)), found.circuit, frame))
        arcs = [g for g in tree.iter("g") if g.get("class", "").startswith("arc")]
        assert [g.find("title").text for g in arcs] == ["s3 × s4: −0.500, synergy"]
        parts = {g.find("text").text: g.find("title").text for g in tree.iter("g") if g.get("class") == "part"}
        assert parts == {
            "not": "s3, main effect −0.500", "good": "s4, joint effects only", "nice": "s9, main effect +0.250",
        }  # fmt: skip
        boxes = [tuple(float(t.get(k)) for k in ("x", "textLength")) for t in tree.iter("text")]
        assert all(x >= 0 and x + wide <= frame.width for x, wide in boxes)
    for words in ("it is left out of the text", "sm.discover_features(", "this way of cutting it"):
        assert words in html
    assert html.count("s3 × s4, “not” × “good”,") == 1  # in the answer
    assert "<bdi>“not” × “good”</bdi>" in html  # in the table
    assert "residual" not in html
    assert lens_of(found.record) == "features"


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_prompts_stay_text(words):
    found = sm.discover_features(lambda texts: [float(len(t)) for t in texts], [words, " and ", words * 2], budget=8)
    html = sm.report(found).html
    tags = list[tuple[str, dict]]()
    parser = HTMLParser()
    parser.handle_starttag = parser.handle_startendtag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.feed(html)
    counts = Counter(tag for tag, _ in tags)
    assert (counts["script"], counts["style"], counts["img"], counts["b"]) == (2, 1, 0, 0)
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    drawn = draw_passage(PromptText((words,), ("", ""), ("s0",)), found.circuit)
    ET.fromstring(drawn)


def test_long_texts_are_cut_and_say_so():
    prompt = "word\n" * 700
    found = sm.discover_features(sentiment, REVIEW, budget=1024)
    drawn = draw_passage(passage(split_prompt(prompt)), found.circuit)
    assert "… and more" in drawn
    assert drawn.count("<text") == 401


def test_a_damaged_record_leaves_the_text_out():
    found = sm.discover_features(sentiment, REVIEW, budget=1024)
    task = found.record["task"]
    for features in ({}, {"parts": ["a"], "gaps": ["", ""]}, {"parts": 3, "gaps": None}, [], "x"):
        found.record["task"] = {**task, "features": features}
        assert 'id="text"' not in sm.report(found).html


def test_an_audit_of_other_lenses_says_what_to_do_instead(tmp_path, monkeypatch, capsys):
    found = sm.discover_features(sentiment, REVIEW, budget=1024)
    with pytest.raises(ResponseError, match="discover_features with another seed"):
        sm.audit(found, sentiment, None)
    data = sm.discover_data(lambda kept: float(len(kept)), examples=4, budget=16)
    with pytest.raises(ResponseError, match="discover_data with another seed"):
        sm.audit(data, sentiment, None)
    sm.discover_data(lambda kept: float(len(kept)), examples=4, budget=16, out=tmp_path, identity="count")
    monkeypatch.setattr("sys.argv", ["spex-mech", "audit", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "training examples" in capsys.readouterr().err
    html = sm.report(data).html
    assert "trained without it" in html
    assert "sm.discover_data(" in html
    assert 'id="text"' not in html

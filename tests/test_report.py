"""The report as text: everything it should say is in it, escaped, and nothing that could fetch or run."""

import base64
import hashlib
import html
import json
import re
import shlex
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest
import torch
from reports import HOSTILE, circuit, dossier

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.auditing.findings import ContextRow, ReplacementRow, Search, StabilityRow
from spex_mech.circuit.drawing import draw
from spex_mech.circuit.graph import Circuit
from spex_mech.circuit.layout import NARROW, NOTEBOOK, WIDE, arrange, shown_first, strongest_joint
from spex_mech.cli import main as cli
from spex_mech.components import ComponentSet
from spex_mech.errors import FormatError, SpexMechError
from spex_mech.files.text import escaped, number, percent
from spex_mech.show.charts import curves, scatter
from spex_mech.show.dossier import Dossier, Points, SizePoint
from spex_mech.show.origins import expression
from spex_mech.show.report_page import render
from spex_mech.show.tables import MAX_TABLE_ROWS
from spex_mech.show.wording import answer_sentences, limits, warnings

VOID = {"meta", "link", "input", "img", "br", "hr"}


class Reader(HTMLParser):
    """The elements of a page: tags with attributes, text by element, and whether all that opens is closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags, self.open, self.said, self.scripts = [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.scripts if self.open and self.open[-1] in ("script", "style") else self.said).append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def told(page) -> str:
    return " ".join(" ".join(Reader(page.html).said).split())


def call(*words: object) -> None:
    """One call of the command line, which must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["spex-mech", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
    assert not stop.value.code


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run folder of the shipped induction card, audited, through the command line."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    call("discover", "induction-2l", "--budget", 300, "--out", folder, "-q")
    call("audit", folder, "--budget", 400, "-q")
    return folder


def test_numbers_for_people():
    assert [number(v) for v in (0.0, 1234567.0, -0.5, 1e-9, float("nan"))] == [
        "0.00",
        "1,234,567",
        "−0.500",
        "1e-09",
        "–",
    ]
    assert [percent(v) for v in (0.5, -0.031, 1.2, None)] == ["50 %", "−3.1 %", "120 %", "–"]
    assert escaped('a<b>&"\x00\x07\ud800') == "a&lt;b&gt;&amp;&quot;?"


def test_a_page_is_well_formed_and_allows_nothing_but_itself():
    page = render(dossier(circuit(12, 9, 4)))
    reader = Reader(page.html)
    assert not reader.open
    policy = next(a["content"] for a in reader.all("meta") if a.get("http-equiv"))
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in re.sub(r"http-equiv", "", page.html)  # no address of any kind
    assert not {"src", "srcset", "data", "action", "style"} & {k for _, a in reader.tags for k in a}
    assert {a["href"][:1] for a in reader.all("a")} == {"#"}
    targets = {a["id"] for _, a in reader.tags if "id" in a}
    assert {a["href"][1:] for a in reader.all("a")} <= targets
    assert len(targets) == sum("id" in a for _, a in reader.tags)
    for tag in ("style", "script"):
        source = re.search(rf"<{tag}>(.*?)</{tag}>", page.html, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert not [name for _, a in reader.tags for name in a if name.startswith("on")]


@pytest.mark.parametrize("words", HOSTILE)
def test_hostile_text_stays_text(words):
    found = circuit(6, 4, 1, role=words)
    page = render(dossier(replace(found, unit=words), words))
    reader = Reader(page.html)
    plain = Reader(render(dossier(replace(circuit(6, 4, 1, role="r"), unit="u"), "w")).html)
    assert [tag for tag, _ in reader.tags] == [tag for tag, _ in plain.tags]  # not one element more
    assert [a.keys() for _, a in reader.tags] == [a.keys() for _, a in plain.tags]
    data = next(s for s in reader.scripts if s.startswith("{"))
    assert not re.search("[<>&\u2028\u2029]", data)
    assert json.loads(data)["nodes"][0]["r"] == words  # what the script reads is what was given
    page.html.encode("utf-8")


def test_everything_of_a_dossier_is_said():
    found = circuit(12, 9, 4)
    parts = dossier(found, "zebra")
    said = told(render(parts))
    assert said.count("zebra") >= 20
    assert all(i.label in said for i in found.interactions)
    for words in ("0.9877 over 3", "order 2", "+1.25 ± 0.010", "The numbers", "What this does not show"):
        assert words in said, words


def test_what_is_not_there_is_left_out():
    said = told(render(Dossier("t", circuit(6, 3, 1), ("a",))))
    for words in ("Predicted and measured", "How much a circuit keeps", "Prompts", "measured again", "To do it again"):
        assert words not in said, words
    empty = Circuit(ComponentSet.of(["a0.h0"]), (), (), "logit")
    said = told(render(Dossier("t", empty, ("Nothing was found.",))))
    assert "nothing to draw" in said
    assert "Interactions" not in said


def test_every_chart_has_a_table_and_a_name():
    page = render(dossier(circuit(12, 9, 4)))
    reader = Reader(page.html)
    charts = [a for a in reader.all("svg") if a.get("class") == "chart"]
    assert len(charts) == 4
    assert all(a["role"] == "img" and a["aria-label"] for a in charts)
    assert len(reader.all("details")) == 4
    assert len(reader.all("table")) == len(reader.all("caption")) == 6  # four charts, the interactions, a sheet


@pytest.mark.parametrize("frame", [WIDE, NARROW, NOTEBOOK])
@pytest.mark.parametrize(("n", "pairs", "triples"), [(1, 0, 0), (5, 4, 1), (60, 40, 20), (150, 160, 80)])
def test_a_drawing_holds_everything_and_nothing_overlaps(frame, n, pairs, triples):
    found = circuit(n, pairs, triples)
    layout = arrange(found, frame)
    assert layout.places.keys() == set(found.names)
    assert len(layout.labelled) == min(n, frame.labelled)
    named = [layout.places[name] for name in layout.labelled]
    assert all(layout.box / 2 <= x <= frame.width - layout.box / 2 + 1 for x, _ in named)
    assert all(0 < y < layout.height for _, y in layout.places.values())
    apart = [(a, b) for i, a in enumerate(named) for b in named[:i]]
    assert all(abs(a[0] - b[0]) >= layout.box + 4 or abs(a[1] - b[1]) >= 44 for a, b in apart)
    svg = Reader(draw(found, frame))
    edges = [a for a in svg.all("g") if a.get("class", "").startswith("edge ")]
    drawn = strongest_joint(found)
    assert len(edges) == (len(drawn) if frame.spare else min(len(drawn), shown_first(drawn, frame) if drawn else 0))
    assert len([a for a in svg.all("g") if "node" in a.get("class", "").split()]) == n
    assert {a["class"].split()[1] for a in edges} <= {"synergy", "redundancy"}


def test_layers_run_upwards_and_the_strongest_bear_names():
    found = circuit(150, 160, 80)
    layout = arrange(found, WIDE)
    heights = {}
    for node in found.nodes:
        heights.setdefault(node.component.layer, []).append(layout.places[node.name][1])
    means = [max(heights[layer]) for layer in sorted(heights)]
    assert means == sorted(means, reverse=True)
    strongest = max(found.interactions, key=lambda i: abs(i.coefficient))
    assert set(strongest.components) <= layout.labelled


def test_weak_sets_are_not_shown_at_first():
    found = circuit(40, 60, 0)
    sizes = {strongest_joint(found)[0].components: 1.0}
    weak = tuple(replace(i, coefficient=sizes.get(i.components, 0.001)) for i in found.interactions if i.order > 1)
    assert shown_first(strongest_joint(replace(found, interactions=weak))) == 6
    assert shown_first(strongest_joint(found)) == 24


def test_very_many_interactions_are_cut_and_said():
    found = circuit(80, 700, 0)
    said = told(render(dossier(found)))
    assert f"{len(found.interactions) - MAX_TABLE_ROWS:,} weaker ones are in interactions.csv" in said


def test_charts_survive_flat_and_wild_values():
    flat = Points((1.0, 1.0), (1.0, 1.0), None, 2, "masks")
    wild = [SizePoint(0, 0.0, -40.0), SizePoint(1, 1e6, 3.0, -7.0, 2.0), SizePoint(9, 1.0, 1.0)]
    for svg in (scatter(flat, "logit"), curves(wild), curves([SizePoint(3, 1.0, 1.0)])):
        numbers = [float(v) for v in re.findall(r'(?:[xy][12]?|c[xy])="(-?[\d.]+)"', svg)]
        assert all(-50 <= v <= 500 for v in numbers)
        assert "nan" not in svg


def test_the_report_of_an_audited_run(audited):
    page = sm.report(audited)
    said, found, audit = told(page), sm.load_run(audited), sm.load_audit(audited / "audit.json")
    assert (audited / "report.html").read_text() == page.html  # what audit wrote, and the same each time
    assert page.title == "Induction in two layers"
    for words in (
        f"With {len(audit.circuit.names)} of 12 components",
        percent(audit.circuit.faithfulness),
        f"{audit.fresh.masks:,} masks drawn anew",
        f"{len(audit.confirmed)} of {len(audit.interactions)}",
        "previous token",  # the published role
        "back each other up",
        "order-1 regression",
        "Left out: ",
        "uninformative value",
        found.record["subject"]["weights_sha256"],
        "answer's logit minus",
    ):
        assert words in said or words in page.html, words


def test_what_findings_owe_to_choices_is_shown(audited):
    audit = replace(
        sm.load_audit(audited / "audit.json"),
        search=Search(77, 20, 0.7123, 0.2123, 0.9),
        stability=(StabilityRow("prompts", 100, None, 0.71, "sets refitted"),),
        replacements=(ReplacementRow("zero", 128, 19.5, 0.98, None, 0.81, 1.0, 0.9),),
        contexts=(ContextRow(("a0.h4", "a1.h0"), 0.9, 2.5, -2.25, 0.01, 12, 1e-9),),
    )
    said = told(sm.report(audited, audit))
    for words in (
        "halves of the prompts 100 0.710 – no sets refitted",
        "zero 128 19.5 0.980 – 0.810 1.00 0.900",
        "a0.h4 × a1.h0 0.900 2.50 −2.25 0.0100 1e-09 no",  # another sign than in the run
        "(77 masks)",
        "CPR is 0.712",
    ):
        assert words in said, words
    bare = told(sm.report(audited, replace(audit, search=None, stability=(), replacements=(), contexts=())))
    for words in ("Would other masks", "Would another replacement", "other contexts", "CPR is 0"):
        assert words not in bare


def test_the_command_told_makes_the_same_run(audited, tmp_path, monkeypatch):
    told_there = re.search(r"<pre[^>]*><code>(.*?)</code>", sm.report(audited).html, re.DOTALL)[1]
    commands = [shlex.split(line) for line in html.unescape(told_there).splitlines()]
    assert [words[1] for words in commands] == ["discover", "audit", "report"]
    assert commands[1][2] == audited.name  # there is a space in it
    monkeypatch.chdir(tmp_path)
    call(*commands[0][1:], "-q")
    again, before = sm.load_run(tmp_path / audited.name), sm.load_run(audited)
    assert torch.equal(again.responses.keep, before.responses.keep)
    assert again.circuit.interactions == before.circuit.interactions


def test_a_run_without_an_audit_says_so(audited):
    found = sm.load_run(audited)
    said = told(sm.report(found))
    assert "nothing here has been tested by fresh forward passes" in said.lower()
    assert "masks, each left out of a fit" in said
    assert "CPR" not in said
    assert "sm.discover(subject, task, components='a0.h0:6,a1.h0:6', budget=300, keep_prob=0.5" in said.replace(
        '"', "'"
    )


def test_a_report_from_python_shows_the_prompts_of_a_task():
    subject = planted.backup(("a0.h1", "a1.h0"), strength=2.0)
    task = planted.task(3, seed=0)
    found = sm.discover(subject, task, components="a*.h*", budget=4096, progress=False)
    said = told(sm.report(found, task=task))
    assert "Prompts" in said
    assert " ".join(map(str, task.prompts.row(0).tolist()))[:60] in said
    assert "is exact" in said
    assert "redundancy" in said
    assert "any one of them is enough" in said  # measured: an OR


def test_mistakes_are_told(audited, tmp_path):
    audit = sm.load_audit(audited / "audit.json")
    other = sm.discover(planted.additive({"a0.h0": 1.0}), planted.task(2), components="a*.h*",
                        budget=256, progress=False)  # fmt: skip
    with pytest.raises(SpexMechError, match="they are not the same ones"):
        sm.report(other, audit)
    with pytest.raises(FormatError, match="not a finished run folder"):
        sm.report(tmp_path)
    with pytest.raises(FormatError, match="cannot be written"):
        sm.report(audited).save(tmp_path / "none" / "r.html")


def test_a_failed_run_says_what_to_do(audited):
    from spex_mech.walsh.decoding import Outcome

    found = sm.load_run(audited)
    failed = replace(found, decoded=replace(found.decoded, outcome=Outcome.NOTHING_FOUND))
    assert answer_sentences(failed, None) == (
        "No set of components was found that explains the responses better than their mean.",
    )
    assert any("raise the budget" in words for words in warnings(failed, None))
    assert len(limits(found, None)) >= 6


@pytest.mark.parametrize(
    ("asked", "folded"),
    [
        ("a0.h0:3, m0.n0:4", "a0.h0:3,m0.n0:4"),
        ("a1.h0, a0.h0", "a1.h0,a0.h0"),
        ("a*.h*, m*.n*", "a0.h0:4,a1.h0:4,m0.n0:4,m1.n0:4"),
        ("m1, [a0.h0:2], a0.h3, a0.h2", "m1,[a0.h0:2],a0.h3,a0.h2"),
        ("a0.h1@p-1, a0.h2", "a0.h1@p-1,a0.h2"),
    ],
)
def test_expressions_select_what_they_fold(asked, folded):
    subject = planted.additive({"a0.h0": 1.0}, layout=planted.PlantedLayout(n_layers=2, n_heads=4, d_mlp=4))
    components = sm.select(subject, asked)
    assert expression(components) == folded
    assert sm.select(subject, folded).names == components.names


def test_a_moved_card_leaves_a_plain_report(audited, tmp_path):
    copy = shutil.copytree(audited, tmp_path / "run")
    (copy / "study.json").write_text(json.dumps({"schema": "spex_mech.study/1", "what": "/gone", "prompts": None}))
    said = told(sm.report(copy))
    assert "logit_diff of TransformerBridge" in said
    assert "--components a0.h0:6,a1.h0:6" in said


def test_the_command_line_writes_where_asked(audited, tmp_path, capsys):
    call("report", audited, "--out", tmp_path / "r.html")
    assert "wrote" in capsys.readouterr().out
    assert (tmp_path / "r.html").read_text() == sm.report(audited).html


def test_notebooks_show_runs_audits_circuits_and_pages(audited):
    found, audit = sm.load_run(audited), sm.load_audit(audited / "audit.json")
    shown = found._repr_html_()
    assert "<svg" in shown
    assert "recovered" in shown
    assert len(shown) < 60_000
    assert not Reader(shown).open
    assert "CPR" in audit._repr_html_()
    assert not Reader(audit._repr_html_()).open
    hostile = replace(audit, cautions=("<script>x</script>",), unit="<b>")
    assert "<script" not in hostile._repr_html_()
    frame = Reader(sm.report(found)._repr_html_()).all("iframe")[0]
    assert frame["srcdoc"] == sm.report(found).html
    assert frame["sandbox"] == "allow-scripts"


def test_figures_of_fit_and_faithfulness(audited, tmp_path):
    audit = sm.load_audit(audited / "audit.json")
    fit = sm.plot.predictions(audit.fresh.measured, audit.fresh.predicted, audit.unit)
    assert len(fit.axes[0].collections[0].get_offsets()) == audit.fresh.masks
    curve = sm.plot.faithfulness(audit.sizes_frame())
    lines = {line.get_label(): line for line in curve.axes[0].lines}
    assert list(lines["preserve"].get_ydata())[-1] == pytest.approx(1.0)
    for name, figure in (("fit.svg", fit), ("curve.pdf", curve)):
        figure.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(SpexMechError, match="as many of each"):
        sm.plot.predictions([1.0], [], "logit")
    with pytest.raises(SpexMechError, match=r"audit.sizes_frame\(\)"):
        sm.plot.faithfulness(audit.sizes_frame().drop(columns="help"))

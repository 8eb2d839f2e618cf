"""Links: increasing always, exact in their algebra, refused when damaged; found where they are and nowhere else."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import spex_mech as sm
from spex_mech.ablation.backends import planted
from spex_mech.ablation.replacement import fit_replacement
from spex_mech.ablation.respond import respond
from spex_mech.api.discover import decode
from spex_mech.bench.functions import planted_function, support_f1
from spex_mech.errors import DecodeError, FormatError
from spex_mech.names import LINK_CHOICES
from spex_mech.walsh.decoders.exact import Exact
from spex_mech.walsh.decoders.linear import Linear
from spex_mech.walsh.decoding import Decoded, Decoder, Outcome, Samples, r_squared
from spex_mech.walsh.link.fit import Grower
from spex_mech.walsh.link.linked import Linked, clearly_better
from spex_mech.walsh.link.shapes import SHAPES
from spex_mech.walsh.link_function import MAX_KNOTS, Link
from spex_mech.walsh.masks.design import MaskDesign
from spex_mech.walsh.spectrum import Basis, Spectrum
from spex_mech.walsh.spex.spex import Spex

SIZES = st.floats(0.05, 20)
PLACES = st.floats(-20, 20)


@st.composite
def links(draw):
    name = draw(st.sampled_from(["logistic", "softplus", "spline"]))
    place, size, centre, width = draw(PLACES), draw(SIZES), draw(PLACES), draw(SIZES)
    if name == "logistic":
        return Link(name, (place, place + size, centre, width))
    if name == "softplus":
        return Link(name, (place, size * draw(st.sampled_from([-1, 1])), centre, width))
    count = draw(st.integers(2, 8))
    steps = draw(st.lists(SIZES, min_size=count, max_size=count))
    slopes = draw(st.lists(SIZES, min_size=count, max_size=count))
    return Link(name, (place, *itertools.accumulate(steps), *slopes))


def around(link: Link) -> torch.Tensor:
    """Latents where the link bends, and beyond."""
    if link.name == "spline":
        knots = link.values[1 : 1 + (len(link.values) - 1) // 2]
        return torch.linspace(knots[0] - 5, knots[-1] + 5, 101, dtype=torch.float64)
    return link.values[2] + link.values[3] * torch.linspace(-8, 8, 101, dtype=torch.float64)


@given(links())
def test_a_link_increases_between_its_ends(link):
    t = around(link)
    g, (low, high) = link(t), link.ends
    assert (g.diff() > 0).all()
    assert (link.derivative(t) > 0).all()
    assert low < g.min()
    assert g.max() < high


@given(links())
def test_derivative_is_that_of_autograd_and_of_differences(link):
    t = around(link).requires_grad_()
    (slope,) = torch.autograd.grad(link(t).sum(), t)
    found = link.derivative(t.detach())
    assert torch.allclose(found, slope, rtol=1e-9, atol=1e-12)
    step = 1e-5 * (1 + t.detach().abs())
    differences = (link(t.detach() + step) - link(t.detach() - step)) / (2 * step)
    assert torch.allclose(found, differences, rtol=2e-2, atol=1e-4 * float(found.max()))


@given(links())
def test_inverse_undoes_the_link(link):
    t = around(link)[20:81]
    assert torch.allclose(link.inverse(link(t)), t, rtol=1e-6, atol=1e-6 * (1 + float(t.abs().max())))
    low, high = link.ends
    beyond = torch.tensor([x for x in (low - 1, low, high, high + 1) if math.isfinite(x)], dtype=torch.float64)
    assert torch.isinf(link.inverse(beyond)).all()


@given(links(), PLACES, SIZES, PLACES, SIZES)
def test_other_units_of_latent_and_metric(link, offset, slope, shift, factor):
    t = around(link)
    assert torch.allclose(link.rescaled(offset, slope)(offset + slope * t), link(t), rtol=1e-6, atol=1e-6)
    assert torch.allclose(link.valued(shift, factor)(t), shift + factor * link(t), rtol=1e-6, atol=1e-6)


@given(links(), st.integers(0, 100))
def test_the_conventional_latent_has_the_identity_as_its_line(link, seed):
    t = around(link)[torch.randint(101, (60,), generator=torch.Generator().manual_seed(seed))]
    if float(t.std()) < 1e-3:
        return
    normal, offset, slope = link.normal(t)
    latent = offset + slope * t
    metric = normal(latent)
    assert torch.allclose(metric, link(t), rtol=1e-6, atol=1e-6)
    assert math.isclose(float(metric.mean()), float(latent.mean()), rel_tol=1e-6, abs_tol=1e-6)
    line = float(((latent - latent.mean()) * metric).sum() / (latent - latent.mean()).square().sum())
    assert math.isclose(line, 1.0, rel_tol=1e-6)


@given(links())
def test_json_there_and_back(link):
    assert Link.from_dict(json.loads(json.dumps(link.to_dict(), allow_nan=False))) == link
    assert Link.from_dict(Link().to_dict()) == Link()


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        "identity",
        {},
        {"name": "tanh"},
        {"name": ["logistic"]},
        {"name": "identity", "extra": 1},
        {"name": "logistic", "floor": 0.0, "ceiling": 1.0, "centre": 0.0},
        {"name": "logistic", "floor": 1.0, "ceiling": 0.0, "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": math.inf, "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": 1.0, "centre": math.nan, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": True, "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": "1", "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": [1.0], "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": 10**400, "centre": 0.0, "width": 1.0},
        {"name": "logistic", "floor": 0.0, "ceiling": 1.0, "centre": 0.0, "width": 0.0},
        {"name": "softplus", "limit": 0.0, "rise": 0.0, "centre": 0.0, "width": 1.0},
        {"name": "spline", "start": 0.0, "knots": [0.0, 0.0], "slopes": [1.0, 1.0]},
        {"name": "spline", "start": 0.0, "knots": [0.0, 1.0], "slopes": [1.0, -1.0]},
        {"name": "spline", "start": 0.0, "knots": [0.0, 1.0], "slopes": [1.0]},
        {"name": "spline", "start": 0.0, "knots": 5, "slopes": [1.0, 1.0]},
        {"name": "spline", "start": 0.0, "knots": [[0.0], 1.0], "slopes": [1.0, 1.0]},
        {"name": "spline", "start": 0.0, "knots": list(range(MAX_KNOTS + 1)), "slopes": [1.0] * (MAX_KNOTS + 1)},
    ],
)
def test_damaged_records_are_refused(record):
    with pytest.raises(FormatError, match="link"):
        Link.from_dict(record)


def test_what_makes_no_link_is_refused():
    with pytest.raises(DecodeError, match="floor must be below ceiling"):
        Link("logistic", (1.0, 0.0, 0.0, 1.0))
    with pytest.raises(DecodeError, match="the links are"):
        Link("tanh")  # type: ignore[arg-type]
    with pytest.raises(DecodeError, match="no other scale"):
        Link().rescaled(1.0, 2.0)
    with pytest.raises(DecodeError, match="slope above 0"):
        Link("logistic", (0.0, 1.0, 0.0, 1.0)).rescaled(0.0, -1.0)
    with pytest.raises(DecodeError, match="there is no link 'tanh'"):
        Linked(Linear(), "tanh")


@pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
def test_shapes_are_the_links_they_make(shape):
    eta = torch.linspace(-4, 4, 60, dtype=torch.float64)
    at, first, rest = shape.start(-1.5, 1.2)
    link, weights = shape.make(first, rest), torch.tensor([first, *rest], dtype=torch.float64)
    features, slopes = shape.features(eta)
    assert torch.allclose(features @ weights, link(eta))
    assert torch.allclose(slopes @ weights, link.derivative(eta))
    assert abs(float(link(torch.tensor([at])))) < 1e-6


def drawn(function, n, masks, noise, seed, keep_prob=0.5):
    design = MaskDesign.bernoulli(n, masks, keep_prob, seed=seed)
    keep = design.keep()
    generator = torch.Generator().manual_seed(seed)
    values = function(keep) + noise * torch.randn(masks, generator=generator, dtype=torch.float64)
    return Samples(keep, values[:, None].float(), design)


def additive(n, seed, keep_prob=0.5):
    weights = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights *= 3 / weights.norm()
    return Spectrum.from_terms(n, {(i,): float(w) for i, w in enumerate(weights)}, Basis.orthonormal(keep_prob))


def latent_scale(truth, g, keep_prob):
    """What one unit of the true latent is in the conventional one, over very many masks."""
    eta = truth.evaluate(MaskDesign.bernoulli(truth.n, 1 << 15, keep_prob, seed=99).keep())
    return float(((eta - eta.mean()) * g(eta)).sum() / (eta - eta.mean()).square().sum())


@pytest.mark.parametrize(("keep_prob", "seed"), [(0.5, 0), (0.5, 1), (0.9, 2)])
@pytest.mark.parametrize("g", [torch.sigmoid, lambda t: torch.nn.functional.logsigmoid(t + 1)])
def test_an_additive_function_behind_a_link_has_no_interaction(g, keep_prob, seed):
    truth = additive(20, seed, keep_prob)
    samples = drawn(lambda keep: g(truth.evaluate(keep)), 20, 600, 0.02, seed, keep_prob)
    found = Linked(Linear()).decode(samples, seed=0)
    assert not found.link.is_identity
    assert found.spectrum.orders.max() == 1
    assert found.stats["heldout_r2"] > found.stats["link"]["heldout_r2_without"] + 0.02
    terms = [(s, c, e) for (s, c), e in zip(found.spectrum.terms(), found.spectrum.stderr.tolist(), strict=True) if s]
    scale = sum(c * truth[s] for s, c, _ in terms) / sum(truth[s] ** 2 for s, _, _ in terms)
    assert scale == pytest.approx(latent_scale(truth, g, keep_prob), rel=0.15)
    for s, value, error in terms:
        assert abs(value - scale * truth[s]) < 5 * error + 0.02 * scale, s
    missing = [abs(truth[i]) for i in range(20) if found.spectrum.get(i) is None]
    assert max(missing, default=0.0) < 0.4


def pursuit(samples: Samples) -> Decoded:
    """The grower without a link, as a decoder."""
    keep = samples.keep
    fit = Grower().fit(keep, samples.mean_values, Basis.orthonormal(samples.keep_prob))
    return Decoded(fit.spectrum, Outcome.PARTIAL, {"heldout_r2": 0.0, "seconds": 0.0})


class Plain:
    """A base decoder as good at polynomials as the fits with a link, so that only the link can tell them apart."""

    name, heldout = "plain", 0.2

    def decode(self, samples: Samples, *, seed: int) -> Decoded:
        return pursuit(samples)


@pytest.mark.parametrize("kind", ["hierarchical", "random"])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_polynomials_get_no_link(kind, noise):
    for seed in range(2):
        samples = drawn(planted_function(kind, 24, sets=6, degree=3, seed=seed), 24, 400, noise, seed)
        found, plain = Linked(Plain()).decode(samples, seed=seed), Plain().decode(samples, seed=seed)
        assert found.link.is_identity, found.stats["link"]
        assert torch.equal(found.spectrum.coefficients, plain.spectrum.coefficients)
        assert found.raw is None


@pytest.mark.parametrize("n", [12, 40])
def test_noise_gets_no_link(n):
    for seed in range(2):
        samples = drawn(lambda keep: torch.zeros(len(keep), dtype=torch.float64), n, 200, 1.0, seed)
        assert Linked(Linear()).decode(samples, seed=seed).link.is_identity


@pytest.mark.parametrize("shape", ["and", "or"])
def test_conjunctions_are_polynomials_not_thresholds(shape):
    def function(keep):
        part = keep[:, [1, 4, 7]]
        return (part.all(1) if shape == "and" else part.any(1)).double()

    for noise in (0.0, 0.05):
        found = Linked(Plain()).decode(drawn(function, 12, 600, noise, 3), seed=0)
        assert found.link.is_identity, found.stats["link"]
        assert (1, 4, 7) in found.spectrum


def test_a_saturating_sum_of_conjunctions_is_seen_through():
    function = planted_function("tanh", 64, sets=25, seed=1)
    samples = drawn(function, 64, 1500, 0.05, 3)
    fresh = MaskDesign.bernoulli(64, 2000, seed=50).keep()
    found = Linked(Plain()).decode(samples, seed=0)
    r2, without = r_squared(function(fresh), found.predict(fresh)), r_squared(function(fresh), found.raw.predict(fresh))
    assert r2 > 0.99 > 0.9 > without
    assert found.link.name == "logistic"
    assert support_f1(function.sets, set(found.spectrum.sets)) > 0.95
    assert found.outcome is Outcome.RECOVERED


def test_sets_without_strong_subsets_come_from_the_base_decoder():
    inner = planted_function("random", 32, sets=12, degree=4, seed=2)
    design = MaskDesign.coded(32, 4, 3000, seed=0)
    keep = design.keep()
    generator = torch.Generator().manual_seed(0)
    noise = 0.02 * torch.randn(len(keep), generator=generator, dtype=torch.float64)
    samples = Samples(keep, (torch.tanh(1.2 * inner(keep)) + noise)[:, None], design)
    found = Linked(Spex()).decode(samples, seed=0)
    fresh = MaskDesign.bernoulli(32, 2000, seed=50).keep()
    truth = torch.tanh(1.2 * inner(fresh))
    assert found.link.name == "logistic", found.stats["link"]
    assert r_squared(truth, found.predict(fresh)) > 0.99 > r_squared(truth, found.raw.predict(fresh)) + 0.02
    assert support_f1(inner.sets, set(found.spectrum.sets)) == 1.0


def test_equal_seeds_equal_bits():
    truth = additive(16, 0)
    samples = drawn(lambda keep: torch.sigmoid(truth.evaluate(keep)), 16, 300, 0.02, 0)
    one, two = (Linked(Linear()).decode(samples, seed=5) for _ in range(2))
    assert one.link == two.link
    assert torch.equal(one.spectrum.coefficients, two.spectrum.coefficients)
    assert torch.equal(one.spectrum.members, two.spectrum.members)


@pytest.mark.parametrize("link", [name for name in LINK_CHOICES if name not in ("auto", "identity")])
def test_a_link_by_name_is_taken_whatever_the_evidence(link):
    function = planted_function("hierarchical", 12, sets=3, degree=2, seed=1)
    found = Linked(Linear(), link).decode(drawn(function, 12, 300, 0.1, 1), seed=0)
    assert found.link.name == link
    assert found.stats["link"]["why"] == "it was asked for"
    assert found.stats["heldout_r2"] > 0.9


def test_identity_by_name_is_the_base_decoder():
    truth = additive(16, 0)
    samples = drawn(lambda keep: torch.sigmoid(truth.evaluate(keep)), 16, 300, 0.02, 0)
    found, plain = Linked(Linear(), "identity").decode(samples, seed=1), Linear().decode(samples, seed=1)
    assert torch.equal(found.spectrum.coefficients, plain.spectrum.coefficients)
    assert "link" not in found.stats


def test_what_cannot_be_linked_says_so():
    few = drawn(lambda keep: keep[:, 0].double(), 10, 20, 0.1, 0)
    assert "too few" in Linked(Linear()).decode(few, seed=0).stats["link"]["why"]
    with pytest.raises(DecodeError, match=r"'logistic' cannot be fitted: 16 masks .* too few"):
        Linked(Linear(), "logistic").decode(few, seed=0)
    flat = drawn(lambda keep: torch.ones(len(keep)).double(), 4, 100, 0.0, 0)
    assert "do not vary" in Linked(Linear()).decode(flat, seed=0).stats["link"]["why"]


def test_where_every_mask_was_measured_the_polynomial_stays_unless_a_link_is_asked_for():
    design = MaskDesign.complete(8)
    truth = additive(8, 1)
    samples = Samples(design.keep(), torch.sigmoid(truth.evaluate(design.keep()))[:, None], design)
    exact = Linked(Exact()).decode(samples, seed=0)
    assert exact.link.is_identity
    assert exact.outcome is Outcome.COMPLETE
    asked = Linked(Exact(), "logistic").decode(samples, seed=0)
    assert asked.spectrum.orders.max() == 1
    assert asked.raw.spectrum.orders.max() > 2
    assert asked.link.ends == pytest.approx((0.0, 1.0), abs=1e-3)


def test_linked_is_a_decoder_and_tells_what_it_holds_out():
    assert isinstance(Linked(Linear()), Decoder)
    assert Linked(Linear(heldout=0.3)).heldout == 0.3
    assert Linked(Linear()).name == "linear"


def test_clearly_better_wants_two_errors_a_twentieth_and_more_than_rounding():
    values, noise = torch.zeros(400), torch.randn(400, generator=torch.Generator().manual_seed(0))
    assert clearly_better(values, 0.5 * noise, noise)
    assert not clearly_better(values, 0.99 * noise, noise)
    assert not clearly_better(values, noise, noise)
    assert not clearly_better(values + 1, 1 + 1e-9 * noise, 1 + 1e-7 * noise)


@settings(max_examples=20)
@given(st.integers(0, 10_000))
def test_linearised_values_have_the_latent_as_their_mean(seed):
    truth = additive(10, seed)
    link = Link("logistic", (0.0, 1.0, 0.0, 1.0))
    decoded = Decoded(truth, Outcome.RECOVERED, {}, link)
    keep = MaskDesign.bernoulli(10, 64, seed=seed).keep()
    exact = Samples(keep, link(truth.evaluate(keep))[:, None])
    assert torch.allclose(decoded.on_latent_scale(exact).values[:, 0], truth.evaluate(keep))
    assert Decoded(truth, Outcome.RECOVERED).on_latent_scale(exact) is exact


# --- through discover and the run folder --------------------------------------------------------------------------

LAYOUT = planted.PlantedLayout(n_layers=2, n_heads=7)
WEIGHTS = dict(zip(LAYOUT.atoms.names, itertools.cycle([1.6, -1.2, 0.8, 2.0, -0.9]), strict=False))


@pytest.fixture(scope="module")
def saturating():
    half = -sum(WEIGHTS.values()) / 2
    terms = {(): half, **{(name,): w for name, w in WEIGHTS.items()}}
    return planted.polynomial(terms, layout=LAYOUT, link="sigmoid", spread=0.3)


@pytest.fixture(scope="module")
def run(saturating, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, discover(saturating, out=folder)


def discover(subject, **options):
    task = planted.task(6)
    return sm.discover(subject, task, components=sm.heads(subject), budget=500, decoder="linear", **options)


def test_discover_reports_the_latent_scale_and_says_so(run):
    _, found = run
    assert found.link.name == "logistic"
    assert (found.circuit.unit, found.circuit.link) == ("logit (latent)", "logistic")
    assert (found.raw_circuit.unit, found.raw_circuit.link) == ("logit", "identity")
    frame = found.interactions()
    assert set(frame["order"]) == {1}
    signs = {row.components[0]: row.coefficient > 0 for row in frame.itertuples()}
    assert signs == {name: WEIGHTS[name] > 0 for name in signs}
    assert len(signs) == len(WEIGHTS)
    assert (frame["q_value"] < 0.05).all()
    assert found.circuit.evidence["link"]["ceiling"] == pytest.approx(1.0, abs=0.05)
    with pytest.raises(DecodeError, match="no scale 'log'"):
        found.interactions("log")


def test_predict_has_the_link_applied(run, saturating):
    _, found = run
    keep = MaskDesign.bernoulli(len(found.components), 300, seed=9).keep()
    task = planted.task(6)
    reference = fit_replacement(saturating, task, found.components, kind="zero", seed=0)
    truth = respond(saturating, task, found.components, [keep], reference).double().mean(1)
    assert r_squared(truth, found.predict(keep)) > 0.998
    assert 0 < found.predict(keep).min() < found.predict(keep).max() < 1


def test_run_folder_keeps_the_link(run):
    folder, found = run
    again = sm.load_run(folder)
    keep = MaskDesign.bernoulli(len(found.components), 100, seed=9).keep()
    assert torch.allclose(again.predict(keep), found.predict(keep))
    assert (again.link, again.circuit, again.raw_circuit) == (found.link, found.circuit, found.raw_circuit)
    assert again.decoded.raw.outcome is found.decoded.raw.outcome
    assert again.interactions("raw").equals(found.interactions("raw"))
    assert json.loads((folder / "spectrum.json").read_text())["link"] == found.link.to_dict()
    assert json.loads((folder / "spectrum_raw.json").read_text())["link"] == "identity"


@pytest.mark.parametrize("name", ["spectrum_raw.json", "circuit_raw.json", "spectrum.json"])
def test_damaged_links_in_run_folders_give_one_clear_error(run, tmp_path, name):
    folder, _ = run
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace('"width"', '"breadth"') if name == "spectrum.json" else text[:50])
    with pytest.raises(FormatError):
        sm.load_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FormatError, match=name):
        sm.load_run(tmp_path)


def test_decoding_again_without_a_link_leaves_nothing_of_it(run, tmp_path):
    folder, found = run
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = decode(found.responses, decoder="linear", out=tmp_path, link="identity")
    assert plain.link.is_identity
    assert plain.interactions("raw").equals(plain.interactions())
    assert not list(tmp_path.glob("*_raw*"))
    assert sm.load_run(tmp_path).link.is_identity


def test_an_unknown_link_is_refused_before_anything_is_spent(saturating, monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("a forward pass was run")

    monkeypatch.setattr("spex_mech.ablation.respond.Engine.values", forbidden)
    with pytest.raises(DecodeError, match="no link 'probit'"):
        discover(saturating, link="probit")


def test_command_line(saturating, tmp_path, monkeypatch, capsys):
    import sys

    from spex_mech.cli import main as cli

    found = discover(saturating, out=tmp_path / "run", link="identity")
    assert found.link.is_identity
    source = tmp_path / "run" / "responses.safetensors"
    arguments = ["decode", source, "--decoder", "linear", "--link", "logistic", "--out", tmp_path / "linked"]
    monkeypatch.setattr(sys, "argv", ["spex-mech", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    shown = " ".join(capsys.readouterr().out.split())
    assert "logit (latent)" in shown
    assert "logistic, from" in shown
    assert "interactions_raw.csv" in shown
    assert sm.load_run(tmp_path / "linked").link.name == "logistic"


@pytest.mark.slow
def test_links_over_many_seeds():
    """False links on polynomials over 60 functions, and links found on 20 saturating sums of conjunctions."""
    false, gains = 0, []
    for seed, kind in itertools.product(range(20), ("hierarchical", "random", "hierarchical")):
        samples = drawn(planted_function(kind, 32, sets=8, degree=3, seed=seed), 32, 400, 0.2, seed)
        false += not Linked(Plain()).decode(samples, seed=seed).link.is_identity
    for seed in range(20):
        function = planted_function("tanh", 64, sets=25, seed=seed)
        found = Linked(Plain()).decode(drawn(function, 64, 2000, 0.05, seed), seed=seed)
        fresh = MaskDesign.bernoulli(64, 1000, seed=50).keep()
        gains.append(r_squared(function(fresh), found.predict(fresh)))
    assert false <= 1
    assert min(gains) > 0.99, gains

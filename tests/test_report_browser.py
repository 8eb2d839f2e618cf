"""The report as a reader meets it, in headless Chromium: silent, without network, usable by hand, key and phone."""

import pytest
from reports import HOSTILE, chromium, circuit, dossier

from spex_mech.show.html import Page
from spex_mech.show.report_page import render

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run",
)  # fmt: skip
SHOWN = "svg.circuit:visible g.edge:not(.off)"


@pytest.fixture(scope="module")
def browser():
    where = chromium()
    if where is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=where, args=list(FLAGS))
        yield started
        started.close()


class Reading:
    """A page that is open; what it logged, asked for, and how wide it is."""

    def __init__(self, browser, path, **options):
        self.said, self.asked, self.refused = [], [], []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append("dialog"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("requestfailed", lambda request: self.refused.append((request.url, request.failure)))
        self.page.goto(path.as_uri())

    def overflow(self):
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def colour(self):
        return self.page.evaluate("getComputedStyle(document.body).backgroundColor")

    def count(self, query=SHOWN):
        return self.page.locator(query).count()


@pytest.fixture
def read(browser, tmp_path):
    opened = []

    def call(page: Page, **options) -> Reading:
        reading = Reading(browser, page.save(tmp_path / f"{len(opened)}.html"), **options)
        opened.append(reading)
        return reading

    yield call
    for reading in opened:
        reading.context.close()


@pytest.fixture(scope="module")
def ordinary() -> Page:
    return render(dossier(circuit(16, 30, 8)))


def test_silent_and_alone(read, ordinary):
    reading = read(ordinary)
    assert reading.said == []
    assert len(reading.asked) == 1  # the file itself
    assert reading.page.locator("#filters").is_visible()
    assert reading.page.get_by_role("heading", level=1).count() == 1


def test_hostile_words_do_not_run(read):
    words = " ".join(HOSTILE)
    reading = read(render(dossier(circuit(8, 6, 2, role=words), words)))
    reading.page.locator("svg.circuit:visible g.node").first.click()
    reading.page.locator("#detail li button").first.click()
    reading.page.wait_for_timeout(50)
    assert reading.page.evaluate("window.hit") is None
    assert reading.said == []
    assert len(reading.asked) == 1
    assert reading.page.evaluate("document.scripts.length") == 2  # data and ours


def test_the_policy_stops_what_would_slip_through(read, ordinary):
    slipped = '<img src="x.png"><script>window.hit=1</script><p style="color:red" onclick="window.hit=1">x</p></main>'
    reading = read(Page(ordinary.html.replace("</main>", slipped, 1), "slipped"))
    reading.page.locator("p[onclick]").click()
    assert reading.page.evaluate("window.hit") is None
    assert [reason for _, reason in reading.refused] == ["csp"]
    assert {url for url, _ in reading.refused} == set(reading.asked[1:])
    assert len(reading.said) >= 3  # each refusal is logged


def test_filters_choose_what_is_drawn(read, ordinary):
    reading = read(ordinary)
    page, found = reading.page, circuit(16, 30, 8)
    sets = [i for i in found.interactions if i.order > 1]
    assert reading.count() == 24
    slider = page.locator("#strongest")
    slider.fill(str(len(sets)))
    assert reading.count() == len(sets)
    page.get_by_label("order 2").uncheck()
    assert reading.count() == sum(i.order == 3 for i in sets)
    page.get_by_label("order 2").check()
    page.get_by_label("redundancy", exact=True).uncheck()
    assert reading.count() == sum(i.kind == "synergy" for i in sets)
    page.locator("input[name=sign][value=neg]").check()
    assert reading.count() == sum(i.kind == "synergy" and i.coefficient < 0 for i in sets)
    slider.fill("2")
    assert reading.count() == 2
    assert page.locator("#count").inner_text().startswith(f"2 of {len(sets)} joint effects")
    page.get_by_label("synergy", exact=True).uncheck()
    assert reading.count() == 0
    assert "No joint effect passes" in page.locator("#count").inner_text()


def test_what_cannot_be_drawn_is_said(read):
    page = read(render(dossier(circuit(60, 260, 0)))).page
    assert page.locator("#count").inner_text().startswith("24 of ")
    assert page.locator("#count").inner_text().endswith("The 200 strongest can be drawn.")


def test_keys_alone_reach_a_component_and_its_interactions(read, ordinary):
    reading = read(ordinary)
    page, found = reading.page, circuit(16, 30, 8)
    page.locator("#strongest").focus()
    page.keyboard.press("Tab")
    focused = "document.activeElement.getAttribute('aria-label')"
    first = page.evaluate(focused)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowDown")
    label = page.evaluate(focused)
    assert label != first
    assert page.evaluate("getComputedStyle(document.activeElement.querySelector('.box')).strokeWidth") == "3.5px"
    page.keyboard.press("Enter")
    name = label.split(",")[0]
    inside = [i for i in found.interactions if i.order > 1 and name in i.components]
    assert page.locator("#detail h3").inner_text() == name
    assert page.locator("#detail li button").count() == min(12, len(inside))
    assert reading.count("svg.circuit:visible g.edge.lit") == len(inside)
    assert reading.count('svg.circuit:visible g.node[aria-pressed="true"]') == 1
    page.locator("#detail li button").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail h3").inner_text() == inside[0].label
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    page.keyboard.press("Home")
    assert reading.count("svg.circuit:visible g.node[tabindex='0']") == 1


def test_what_is_told_of_a_component_is_in_sight_and_can_be_closed(read):
    page = read(render(dossier(circuit(150, 160, 80))), viewport={"width": 390, "height": 800}).page
    page.locator("svg.circuit:visible g.node").first.click()
    box = page.locator("#detail").bounding_box()
    assert 0 <= box["y"] < box["y"] + box["height"] <= 800
    page.get_by_role("button", name="Close").click()
    assert page.locator("#detail").is_hidden()


def test_a_click_on_a_line_tells_of_it(read, ordinary):
    reading = read(ordinary)
    strongest = next(i for i in circuit(16, 30, 8).interactions if i.order > 1)
    reading.page.locator("svg.circuit:visible g.edge[data-e='0']").dispatch_event("click")
    told = reading.page.locator("#detail").inner_text()
    assert strongest.label in told
    assert "measured again +1.25 ± 0.010" in told
    assert reading.count("svg.circuit:visible g.node.lit") == strongest.order


def test_the_table_sorts_by_numbers_unknown_last(read, ordinary):
    page = read(ordinary).page
    press = page.locator("#sets th button", has_text="measured again")
    press.click()
    first = page.locator("#sets tbody tr").first.locator("td").nth(7)
    assert first.inner_text() == "+1.25 ± 0.010"
    head = page.locator("#sets th").nth(3)
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    cells = page.locator("#sets tbody td:nth-child(4) data").evaluate_all("all => all.map(x => Number(x.value))")
    assert cells == sorted(cells)
    head.locator("button").press("Enter")
    cells = page.locator("#sets tbody td:nth-child(4) data").evaluate_all("all => all.map(x => Number(x.value))")
    assert cells == sorted(cells, reverse=True)


@pytest.mark.parametrize("n", [5, 150])
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_no_page_is_wider_than_its_window(read, n, width):
    wide = render(dossier(circuit(n, n, n // 2), "Averylongwordthatdoesnotbreak" * 6))
    reading = read(wide, viewport={"width": width, "height": 800})
    assert reading.overflow() == 0
    assert reading.said == []
    assert reading.count("svg.circuit:visible") == 1
    smallest = reading.page.locator("svg.circuit:visible text.name").evaluate_all(
        "all => Math.min(...all.map(x => x.getBoundingClientRect().height))"
    )
    assert smallest >= 11  # of a line of text, in pixels


def test_themes_follow_the_system_until_chosen(read, ordinary):
    light, dark = read(ordinary), read(ordinary, color_scheme="dark")
    assert light.colour() != dark.colour()
    toggle = dark.page.locator("#theme")
    toggle.click()
    assert toggle.inner_text() == "Theme: light"
    assert dark.colour() == light.colour()
    toggle.click()
    assert dark.colour() != light.colour()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(read, ordinary, scheme):
    """WCAG's contrast, at least 4.5, for running text, soft text, links and the words in boxes."""
    page = read(ordinary, color_scheme=scheme).page
    ratio = """([query, ground]) => {
      const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b;
      };
      const style = (q) => getComputedStyle(document.querySelector(q));
      const front = document.querySelector(query) instanceof SVGElement ? style(query).fill : style(query).color;
      const [a, b] = [light(front), light(style(ground).backgroundColor)].sort((x, y) => y - x);
      return (a + .05) / (b + .05);
    }"""  # noqa: E501
    for query, ground in (
        (".lead", "section"), (".facts dt", "section"), ("nav a", "body"), ("footer", "body"),
        (".warning", ".warning"), ("thead th", "thead th"), ("svg .name", "section"), ("svg .remark", "section"),
        ("#count", "section"), (".chart .tick", "section"),
    ):  # fmt: skip
        assert page.evaluate(ratio, [query, ground]) >= 4.5, query


def test_on_paper_everything_is_open_and_controls_are_gone(read, ordinary):
    reading = read(ordinary)
    reading.page.emulate_media(media="print")
    reading.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert reading.page.locator("#filters").is_hidden()
    assert reading.page.locator("details:not([open])").count() == 0
    assert reading.page.evaluate("getComputedStyle(document.querySelector('.scroll')).maxHeight") == "none"


def test_without_scripts_it_still_says_everything(read, ordinary):
    page = read(ordinary, java_script_enabled=False).page
    assert page.locator("#filters").is_hidden()
    assert page.locator("svg.circuit").first.is_visible()
    assert page.locator("#sets tbody tr").count() == len(circuit(16, 30, 8).interactions)


def test_a_page_in_a_frame_without_storage_works(read, ordinary):
    shown = Page(f"<!doctype html><title>n</title>{ordinary._repr_html_()}", "notebook")
    reading = read(shown)
    inner = reading.page.frame_locator("iframe")
    inner.locator("#theme").click()
    assert inner.locator("#theme").inner_text() == "Theme: light"
    assert reading.said == []

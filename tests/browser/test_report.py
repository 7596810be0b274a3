"""The report in a browser, opened from its file as by a double click."""

import functools

import pytest
from fake_report import (
    PRIOR_METRICS,
    SCORES,
    write_reconstruction,
    write_run,
    write_sampling,
    write_scoring,
    write_search,
)

from brainslices.report.page import write_report

axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    from tuning.report import read_search

    folder = tmp_path_factory.mktemp("report")
    runs = [
        write_run(folder / "vqvae", metrics={"epochs": 2, "epoch": 2, **SCORES}),
        write_run(folder / "prior", "pixelcnn", metrics=PRIOR_METRICS),
    ]
    return write_report(
        folder / "report.html",
        runs,
        reconstructions=[write_reconstruction(folder / "reconstruction")],
        samples=[write_sampling(folder / "samples")],
        scores=write_scoring(folder / "scores"),
        search=read_search(write_search(folder / "search")),
    )


@pytest.fixture(scope="module")
def pages(browser, report):
    """Function that opens the report, once for each width and theme; and what went wrong there."""
    problems = []

    @functools.cache
    def open_page(width, scheme):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: line.type == "error" and problems.append(line.text))
        page.on("request", lambda request: check_local(request.url))
        page.goto(report.as_uri())
        page.wait_for_selector("#parallel .main-svg")
        return page

    def check_local(url):
        if not url.startswith(("data:", "blob:", report.as_uri())):
            problems.append(url)

    return open_page, problems


@pytest.fixture
def open_report(pages):
    """Function that returns the report in a window; no test may leave an error or a request."""
    open_page, problems = pages
    yield lambda width=1440, scheme="light": open_page(width, scheme)
    assert not problems


def test_slider_uncovers_the_original_by_mouse_and_by_keyboard(open_report):
    page = open_report()
    compare = page.locator(".compare").first
    slider, after = compare.locator("input"), compare.locator(".after")

    def cut():
        return after.evaluate("image => getComputedStyle(image).clipPath")

    assert "50%" in cut()
    compare.scroll_into_view_if_needed()
    box = compare.bounding_box()
    page.mouse.click(box["x"] + 0.9 * box["width"], box["y"] + box["height"] / 2)
    assert int(slider.input_value()) > 80
    assert f"{slider.input_value()}%" in cut()
    slider.press("Home")
    slider.press("ArrowRight")
    assert "1%" in cut()


def test_verdict_is_explained_on_hover_and_on_focus_until_escape(open_report):
    page = open_report(390, "dark")
    check = page.locator(".check").first
    tip = check.locator("[role=tooltip]")
    assert not tip.is_visible()
    for show in (check.hover, check.locator("button").focus):
        show()
        assert tip.is_visible()
        assert "Structural similarity" in tip.inner_text()
        box = tip.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
        page.keyboard.press("Escape")
        assert not tip.is_visible()
        page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    for other in page.locator(".check").all():
        other.hover()
        box = other.locator("[role=tooltip]").bounding_box()
        assert (box["x"] >= 0, box["x"] + box["width"] <= 390) == (True, True)


def test_sample_shows_its_nearest_training_slice(open_report):
    page = open_report()
    sample = page.locator(".sample").nth(2)
    nearest = sample.locator(".nearest")
    for show in (sample.hover, sample.focus):
        assert nearest.evaluate("image => getComputedStyle(image).opacity") == "0"
        show()
        assert nearest.evaluate("image => getComputedStyle(image).opacity") == "1"
        assert sample.inner_text() == "train_2, SSIM 0.750"
        page.mouse.move(0, 0)


def test_table_is_sorted_by_its_headers(open_report):
    page = open_report()
    header = page.locator(".sortable th", has_text="num_embeddings")
    row = header.evaluate("cell => cell.cellIndex")

    def column():
        return page.locator(f".sortable td:nth-child({row + 1})").all_inner_texts()

    assert header.get_attribute("aria-sort") is None
    header.locator("button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column() == ["16", "64", "512", "512", "2048"]
    header.locator("button").press("Enter")
    assert header.get_attribute("aria-sort") == "descending"
    assert column() == ["2048", "512", "512", "64", "16"]
    score = page.locator(".sortable th", has_text="score").first
    score.locator("button").click()
    assert header.get_attribute("aria-sort") is None
    assert page.locator(".sortable tbody tr").last.inner_text().startswith("4")  # it has no score


def test_point_of_the_pareto_front_leads_to_its_row(open_report):
    page = open_report()
    page.locator("#search").scroll_into_view_if_needed()
    trace = page.evaluate(
        "document.getElementById('search').data.findIndex(t => t.name == 'Pareto front')"
    )
    trial = page.evaluate(f"document.getElementById('search').data[{trace}].customdata[0]")
    point = page.locator("#search .scatterlayer .trace").nth(trace).locator("path.point").first
    box = point.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_selector("tr.chosen")
    assert page.evaluate("document.activeElement.id") == f"trial-{trial}"
    assert page.locator("tr.chosen.front").count() == 1


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1440, "light"),
        (390, "dark"),
        pytest.param(1440, "dark", marks=pytest.mark.long),
        pytest.param(390, "light", marks=pytest.mark.long),
    ],
)
def test_page_is_accessible_and_fits_the_window(open_report, width, scheme):
    page = open_report(width, scheme)
    page.evaluate("document.querySelectorAll('details').forEach(item => { item.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    serious = [item for item in found if item["impact"] in ("serious", "critical")]
    assert not [(item["id"], item["nodes"][0]["html"][:200]) for item in serious]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == (
        "rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)"
    )


def test_printed_page_shows_what_is_folded(open_report, tmp_path):
    page = open_report()
    page.locator("#verdict details").evaluate("item => { item.open = false; }")
    page.pdf(path=tmp_path / "report.pdf")
    assert page.locator("#verdict details").evaluate("item => item.open")

"""The browser app in Chromium, used as a person would, and what its server refuses."""

import contextlib
import re
import socket
import subprocess
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from fake_prior import HELD_SEED
from helpers import ROOT, save_image, start

pytest.importorskip("gradio", reason='needs Gradio: pip install --editable ".[studio]"')
httpx = pytest.importorskip("httpx")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe")
expect = playwright.expect
pytestmark = [pytest.mark.browser, pytest.mark.slow]
ANSWER_MS = 60_000
expect.set_options(ANSWER_MS)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def server(*words):
    """Start a server; yield its address, once it prints it, and its process."""
    process = start(*words, stderr=subprocess.STDOUT)
    try:
        printed = []
        for line in process.stdout:
            printed.append(line)
            if found := re.search(r"http://[\d.]+:\d+/", line):
                yield found[0]
                break
        else:
            pytest.fail("".join(printed))
    finally:
        process.terminate()
        process.wait(20)


FAKE = ROOT / "tests" / "support" / "fake_studio.py"


@pytest.fixture(scope="module")
def address(phantom_archive):
    """A server of a fake prior."""
    with server(FAKE, free_port(), phantom_archive.path) as found:
        yield found


@pytest.fixture
def window(browser, address):
    """Function that opens a window of its own; at the end no window may have seen an error."""
    problems, contexts = [], []

    def open_window(width=1440, height=1000, url=address):
        context = browser.new_context(viewport={"width": width, "height": height})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(ANSWER_MS)
        page.on("console", lambda note: note.type == "error" and problems.append(note.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: check_local(request.url, problems))
        page.goto(url)
        page.add_style_tag(content="* { transition: none !important; animation: none !important }")
        return page

    yield open_window
    for context in contexts:
        context.close()
    assert not problems


def check_local(url, problems):
    if not url.startswith(("http://127.0.0.1:", "data:", "blob:")):
        problems.append(f"a request left the machine: {url}")


def open_tab(page, name):
    """Open a tab; return its visible panel."""
    page.get_by_role("tab", name=name).click()
    return page.locator("div[role=tabpanel]:visible")


def press(scope, name):
    scope.get_by_role("button", name=name, exact=True).click()


def pictures(scope, label):
    """Image sources of a gallery, by the label in its corner."""
    block = scope.locator(".slices").filter(has_text=label)
    return [image.get_attribute("src") for image in block.locator(".grid-wrap img").all()]


def pixels(page, url):
    return page.request.get(url).body()


def fill(scope, label, value):
    field = scope.get_by_label(label).first
    field.fill(str(value))
    field.press("Enter")


def sample(page, seed, count):
    """Sample more slices than before, so that no earlier text answers; return the pictures."""
    fill(page, "Seed", seed)
    fill(page, "number input for Count", count)
    press(page, "Sample")
    page.get_by_text(f"{count} slices of 42 codes, 210 bits each").wait_for()
    page.get_by_text("SSIM 0.").nth(count - 1).wait_for()  # comes last
    assert len(pictures(page, "Nearest training slice")) == count
    return [pixels(page, url) for url in pictures(page, "Samples")]


def test_windows_grow_their_own_samples_and_cancel_them(window):
    windows = first, second = window(), window()
    for page in windows:  # as many as are sampled at a time
        fill(page, "Seed", HELD_SEED)
        press(page, "Sample")
    for page in windows:
        page.get_by_text("Sampling: 50% of the codes").wait_for()
        expect(page.locator(".grid-wrap img")).to_have_count(4)
        press(page, "Cancel")
        page.get_by_text("Stopped.").wait_for()
    alone, others = sample(first, 7, 1), sample(second, 8, 1)
    assert alone != others
    assert sample(first, 8, 2)[0] == others[0]
    fill(second, "number input for Guidance", 2)
    assert sample(second, 8, 2)[0] != others[0]
    check_downloads(first)


def check_downloads(page):
    with page.expect_download() as downloading:
        press(page, "Download NPZ")
    with np.load(downloading.value.path()) as stored:
        assert stored["codes"].shape == (2, 6, 7)
        assert stored["images"].shape == (2, 48, 56)
    with page.expect_download() as downloading:
        press(page, "Download PNGs")
    with zipfile.ZipFile(downloading.value.path()) as stored:
        assert len(stored.namelist()) == 2


def test_uploads_are_reconstructed_or_refused_and_codes_edited(window, phantom_archive, tmp_path):
    page = window()
    panel = open_tab(page, "Reconstruct")
    upload = panel.locator("input[type=file]")
    upload_bad_files(page, panel, tmp_path)
    image = phantom_archive.images[phantom_archive.indices("test")[4]]
    upload.set_input_files(save_image(tmp_path / "a.png", image))
    score = panel.get_by_role("row", name=re.compile("^ssim_foreground")).get_by_role("cell")
    for column in (1, 2):  # the codes' and AVIF's
        expect(score.nth(column)).to_have_text(re.compile(r"^0\.\d{3}$"))
    edit_a_code(panel)
    panel.get_by_label("Clear").click()
    check_slider_of_volume(panel, upload, score.nth(1), tmp_path)


def upload_bad_files(page, panel, folder):
    headers = {"model.keras": b"PK\x03\x04", "data.pkl": b"\x80\x04", "array.npy": b"\x93NUMPY"}
    for name, header in headers.items():
        (folder / name).write_bytes(header + bytes(500))
        panel.locator("input[type=file]").set_input_files(folder / name)
        page.get_by_text(f"Received: {name}, ").wait_for()
        panel.get_by_label("Clear").click()
    panel.locator("input[type=file]").set_input_files(save_image(folder / "small.png"))
    page.get_by_text("small.png has 12 x 10 pixels").wait_for()
    assert not re.search(f"{folder}|/tmp", page.locator(".toast-wrap").inner_text())
    for toast in page.get_by_label("Close message").all():
        toast.click()
    panel.get_by_label("Clear").click()


def edit_a_code(panel):
    grid = panel.locator("#code-grid img")
    box = grid.bounding_box()
    grid.click(position={"x": box["width"] * 3.5 / 7, "y": box["height"] * 2.5 / 6})
    expect(panel.get_by_label("Row")).to_have_value("2")
    expect(panel.get_by_label("Column")).to_have_value("3")
    old = float(panel.get_by_label("number input for Code").input_value())
    fill(panel, "number input for Code", int(31 - old))
    press(panel, "Change the code")
    panel.get_by_text(re.compile("1 codes and 64 pixels changed")).wait_for()


def check_slider_of_volume(panel, upload, score, folder):
    voxels = np.random.default_rng(0).random((40, 48, 32)).astype("float32")
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), folder / "head.nii.gz")
    of_image = score.inner_text()
    upload.set_input_files(folder / "head.nii.gz")
    expect(panel.get_by_label("number input for Slice of the volume")).to_have_value("31")
    expect(score).not_to_have_text(of_image)
    of_middle = score.inner_text()
    slider = panel.get_by_label("range slider for Slice of the volume")
    for _ in range(9):
        slider.press("ArrowRight")
    expect(score).not_to_have_text(of_middle)


@pytest.mark.long
def test_painted_part_is_filled_in(window):
    page = window()
    panel = open_tab(page, "Inpaint")
    press(panel, "Take a slice of the test split")
    canvas = panel.locator("#inpaint-editor canvas").first
    expect(panel.get_by_role("button", name="Undo")).to_be_enabled()  # the slice is there
    press(panel, "Fill in")
    page.get_by_text("Nothing is painted").wait_for()
    box = canvas.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    for step in range(6):
        page.mouse.move(middle[0] + 8 * step, middle[1] + 4 * step)
    page.mouse.up()
    fill(panel, "number input for Count", 3)
    press(panel, "Fill in")
    panel.get_by_text("3 inpainted slices. Only the painted part").wait_for()
    shown = pictures(panel, "Inpainted slices")
    assert len(shown) == 3
    assert len({pixels(page, url) for url in shown}) == 3


@pytest.mark.long
def test_command_opens_a_trained_prior(window, trained_prior):
    script = ROOT / "scripts" / "studio.py"
    with server(script, "--run", trained_prior, "--port", free_port()) as address:
        page = window(url=address)
        press(page, "Sample")
        page.get_by_text(re.compile(r"4 slices of \d+ codes")).wait_for()
        page.get_by_text("SSIM 0.").first.wait_for()
        panel = open_tab(page, "Inpaint")
        press(panel, "Take a slice of the test split")
        panel = open_tab(page, "Reconstruct")
        press(panel, "Take a slice of the test split")
        panel.get_by_text("Likeliest position").wait_for()
        panel = open_tab(page, "Surprise")
        press(panel, "Take a slice of the test split")
        panel.get_by_text("of the validation slices near position").wait_for()
        open_tab(page, "Runs")
        page.frame_locator("iframe.report").get_by_text("Verdict").first.wait_for()


@pytest.mark.parametrize("width", [1440, pytest.param(390, marks=pytest.mark.long)])
def test_tabs_are_accessible_and_fit_the_window(window, width):
    page = window(width, 900)
    sample(page, 0, 1)
    check_page(page, width)
    for name in ("Reconstruct", "Inpaint"):
        panel = open_tab(page, name)
        press(panel, "Take a slice of the test split")
        if name == "Reconstruct":
            panel.get_by_text("Likeliest position").wait_for()
        check_page(page, width)
    panel = open_tab(page, "Surprise")
    press(panel, "Take a slice of the test split")
    panel.get_by_text("percentile 60 of the validation slices").wait_for()
    expect(panel.locator("img")).to_have_count(2)
    check_page(page, width)
    open_tab(page, "Runs")
    page.frame_locator("iframe.report").get_by_text("The report").wait_for()
    check_page(page, width)


def check_page(page, width):
    """Check that nothing is wider than the window, and that axe finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    serious = [item for item in found if item["impact"] in ("serious", "critical")]
    assert not [(item["id"], item["nodes"][0]["html"][:200]) for item in serious]


def is_page(answer):
    return answer.status_code == 200 and "gradio" in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Host": "evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
    ids=str,
)
def test_requests_of_other_pages_are_refused(address, headers):
    assert is_page(httpx.get(address))
    assert httpx.get(address, headers=headers).status_code == 403
    queue = f"{address}gradio_api/queue/join"
    assert httpx.post(queue, headers=headers, json={"data": [], "fn_index": 0}).status_code == 403


def test_the_apps_own_page_and_links_to_it_are_served(address):
    own = {"Origin": address.rstrip("/"), "Sec-Fetch-Site": "same-origin"}
    assert is_page(httpx.get(address, headers=own))
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert is_page(httpx.get(address, headers=link))


def test_no_file_of_the_machine_is_served(address, phantom_archive):
    paths = [
        "/etc/passwd",
        "../../../../etc/passwd",
        "..%2f..%2f..%2fetc%2fpasswd",
        str(ROOT / "setup.py"),
        "setup.py",
        str(phantom_archive.path / "index.csv"),
        "http://127.0.0.1:1/",
    ]
    for path in paths:
        for route in ("file=", "file/"):
            answer = httpx.get(f"{address}gradio_api/{route}{path}")
            assert answer.status_code in (400, 403, 404), path
            assert "setuptools" not in answer.text
            assert "root:" not in answer.text


def test_a_path_instead_of_an_upload_is_refused(address):
    """A forged request names a file of the machine as if it were uploaded."""
    config = httpx.get(f"{address}config").json()
    upload = next(
        item for item in config["dependencies"] if [t[1] for t in item["targets"]] == ["upload"]
    )
    for path in ("/etc/passwd", str(ROOT / "setup.py"), str(Path(__file__))):
        file = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"data": [file], "fn_index": upload["id"], "session_hash": "forged"}
        joined = httpx.post(f"{address}gradio_api/queue/join", json=body)
        stream = httpx.get(f"{address}gradio_api/queue/data?session_hash=forged", timeout=20)
        text = joined.text + stream.text
        assert '"success":true' not in text.replace(" ", "")
        assert "PNG image" not in text  # the file was not even opened


def test_large_upload_is_refused(address):
    files = {"files": ("big.png", bytes(65 << 20), "image/png")}
    assert httpx.post(f"{address}gradio_api/upload", files=files, timeout=60).status_code == 413


@pytest.mark.long
def test_password_is_wanted(phantom_archive):
    with server(FAKE, free_port(), phantom_archive.path, "secret") as address:
        assert httpx.get(f"{address}config").status_code == 401
        login = f"{address}login"
        wrong = httpx.post(login, data={"username": "studio", "password": "no"})
        assert wrong.status_code == 400
        with httpx.Client() as client:
            client.post(login, data={"username": "studio", "password": "secret"})
            assert client.get(f"{address}config").status_code == 200

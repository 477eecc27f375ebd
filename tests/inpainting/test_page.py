"""The page with a brush, in a browser: no name but 127.0.0.1 can be resolved there."""

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms
from support.inpainters import make_net
from support.servers import served

import pconv_ext

#: None: that of `playwright install chromium`, if there is one.
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.deep
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def address():
    net = make_net()
    net.decoder[-1].conv.bias.data.fill_(0.5)
    with served(pconv_ext.Inpainter(net, device="cpu"), body=128 << 20) as (host, port):
        yield f"http://{host}:{port}/"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        if BROWSER is None and not Path(driver.chromium.executable_path).exists():
            pytest.skip(
                "there is no Chromium: playwright install chromium, or in Debian apt install chromium"
            )
        chromium = driver.chromium.launch(
            executable_path=BROWSER,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            ],
        )
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    shown = browser.new_page(viewport={"width": 1100, "height": 800}, accept_downloads=True)
    told = []
    shown.on("console", lambda message: told.append(message.text))
    shown.on("pageerror", lambda error: told.append(str(error)))
    shown.goto(address)
    yield shown
    shown.close()
    assert [text for text in told if "status of 415" not in text] == []


def photograph(height, width, seed=0):
    """Smooth, in colours that tell where one is."""
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    planes = (rows * (200 / height) + 20, columns * (200 / width) + 20, (rows + columns) % 97 + seed)
    return np.stack(planes, 2).astype(np.uint8)


def write(folder, pixels, name="photo.png", **options):
    Image.fromarray(pixels).save(folder / name, **options)
    return folder / name


def load(page, file):
    page.set_input_files("#open", file)
    page.locator("#picture").wait_for(state="visible")
    page.get_by_role("status").filter(has_text=file.name).wait_for()


def draw(page, *points):
    """With the mouse held, through places in the view as shares of its size."""
    box = page.locator("#view").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()


def fill(page):
    page.click("#fill")
    page.get_by_role("status").filter(has_text="Filled in").wait_for(timeout=120_000)


def downloaded(page, selector="#download"):
    with page.expect_download() as download:
        page.click(selector)
    return Image.open(io.BytesIO(download.value.path().read_bytes())), download.value.suggested_filename


def changed(result, pixels):
    return (np.array(result.convert("RGB")).astype(int) != pixels).any(2)


def test_from_a_photograph_to_a_download(page, tmp_path):
    pixels = photograph(300, 400)
    load(page, write(tmp_path, pixels))
    assert page.locator("#fill").is_disabled()
    draw(page, (0.4, 0.5), (0.6, 0.5))
    fill(page)
    result, name = downloaded(page)
    assert (name, result.size) == ("photo-filled.png", (400, 300))
    hole = changed(result, pixels)
    rows, columns = hole.any(1).nonzero()[0], hole.any(0).nonzero()[0]
    assert rows[0] < 150 < rows[-1]
    assert columns[0] < 180 < 220 < columns[-1]
    assert hole.mean() < 0.2
    page.keyboard.press("Control+z")
    page.keyboard.press("Control+z")
    assert page.locator("#fill").is_disabled()
    assert downloaded(page)[1] == "photo.png"
    page.keyboard.press("Control+Shift+z")
    assert page.locator("#fill").is_enabled()
    page.keyboard.press("Control+y")
    assert downloaded(page)[1] == "photo-filled.png"


def test_twelve_megapixels_of_a_telephone(page, tmp_path):
    """Stored on its side, as EXIF says; nine thousand pixels wide."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photograph(3000, 4000)
    file = write(tmp_path, stored, "phone.jpg", exif=exif, icc_profile=PROFILE, quality=90)
    upright = np.rot90(np.array(Image.open(file)), -1)
    load(page, file)
    assert "3000 x 4000" in page.inner_text("#status")
    draw(page, (0.5, 0.3), (0.5, 0.4))
    mask, _ = None, page.click("summary:has-text('Mask')")
    mask = np.array(downloaded(page, "#save")[0].convert("L"))
    assert {*np.unique(mask)} == {0, 255}
    fill(page)
    result, _ = downloaded(page)
    assert result.info["icc_profile"] == PROFILE
    assert_array_equal(np.array(result)[mask == 255], upright[mask == 255])
    assert changed(result, upright)[mask == 0].mean() > 0.9
    wide = photograph(1200, 9000)
    load(page, write(tmp_path, wide, "wide.png"))
    draw(page, (0.5, 0.48), (0.55, 0.52))
    fill(page)
    result, _ = downloaded(page)
    assert result.size == (9000, 1200)
    assert 0 < changed(result, wide).mean() < 0.05


def test_progress(page, tmp_path):
    """Of each hole; the bar has no value where nothing is known."""
    load(page, write(tmp_path, photograph(3000, 4000)))
    for x in (0.2, 0.35, 0.5, 0.65, 0.8):
        draw(page, (x, 0.3), (x, 0.5))
    page.evaluate("""() => {
        window.told = [];
        const bar = document.getElementById("progress");
        const text = document.getElementById("status");
        const look = () => told.push(`${text.textContent}|${bar.max}|${bar.value}`);
        new MutationObserver(look).observe(text, { childList: true });
    }""")
    fill(page)
    told = page.evaluate("told")
    assert told[0].startswith("Filling ...|")
    assert {f"Filling: {done} of 5 holes ...|5|{done}" for done in range(1, 6)} & {*told}
    assert page.locator("#progress").is_hidden()


def test_erasing_clearing_and_inverting(page, tmp_path):
    load(page, write(tmp_path, photograph(200, 200)))
    draw(page, (0.4, 0.5), (0.6, 0.5))
    page.keyboard.press("e")
    assert page.locator("#eraser").get_attribute("aria-pressed") == "true"
    page.click("summary:has-text('Mask')")
    whole = np.array(downloaded(page, "#save")[0].convert("L"))
    draw(page, (0.5, 0.3), (0.5, 0.7))
    less = np.array(downloaded(page, "#save")[0].convert("L"))
    assert (whole == 0).sum() > (less == 0).sum() > 0
    assert (less[whole == 255] == 255).all()
    page.click("#invert")
    assert_array_equal(downloaded(page, "#save")[0].convert("L"), 255 - less)
    page.click("#clear")
    assert page.locator("#fill").is_disabled()
    page.click("#undo")
    assert page.locator("#fill").is_enabled()


@pytest.mark.parametrize("kind", ["dark", "transparent"])
def test_a_mask_that_is_loaded(page, tmp_path, kind):
    pixels, valid = photograph(120, 160), np.ones((120, 160), bool)
    valid[30:60, 40:90] = False
    load(page, write(tmp_path, pixels))
    grey = np.where(valid, 255, 0).astype(np.uint8)
    picture = grey if kind == "dark" else np.dstack([np.full_like(pixels, 9), grey])
    page.click("summary:has-text('Mask')")
    page.set_input_files("#load", write(tmp_path, picture, "mask.png"))
    page.get_by_role("status").filter(has_text="mask is loaded").wait_for()
    assert_array_equal(np.array(downloaded(page, "#save")[0].convert("L")) == 255, valid)
    fill(page)
    assert not changed(downloaded(page)[0], pixels)[valid].any()
    page.set_input_files("#load", write(tmp_path, grey[1:], "other.png"))
    page.get_by_role("status").filter(has_text="The mask is 160 x 119, the picture 160 x 120").wait_for()


def test_again_from_the_original(page, tmp_path):
    pixels = photograph(200, 200)
    load(page, write(tmp_path, pixels))
    draw(page, (0.45, 0.4), (0.55, 0.4))
    fill(page)
    first = changed(downloaded(page)[0], pixels)
    draw(page, (0.45, 0.6), (0.55, 0.6))
    fill(page)
    both = changed(downloaded(page)[0], pixels)
    assert both.sum() > first.sum()
    assert (both | ~first).all()
    page.check("#again")
    fill(page)  # both holes, nothing painted since
    assert_array_equal(changed(downloaded(page)[0], pixels), both)


def test_the_original_while_a_key_is_held(page, tmp_path):
    load(page, write(tmp_path, photograph(200, 200)))
    draw(page, (0.4, 0.5), (0.6, 0.5))
    fill(page)
    place = page.locator("#view").bounding_box()
    result = page.screenshot(clip=place)
    page.keyboard.down("o")
    assert page.locator("#picture").get_attribute("alt") == "The original, photo.png"
    page.wait_for_timeout(200)
    original = page.screenshot(clip=place)
    page.keyboard.up("o")
    page.wait_for_timeout(200)
    assert page.locator("#picture").get_attribute("alt") == "The filled picture"
    assert original != result


def test_with_the_keyboard_alone(page, tmp_path):
    pixels = photograph(200, 200)
    load(page, write(tmp_path, pixels))
    page.focus("#view")
    page.keyboard.down("p")
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("p")
    page.keyboard.press("Enter")
    page.get_by_role("status").filter(has_text="Filled in").wait_for()
    assert changed(downloaded(page)[0], pixels)[95:105, 100:110].any()


def test_errors_are_text(page, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    page.set_input_files("#open", tmp_path / "text.png")
    page.get_by_role("status").filter(has_text="text.png is no picture that this browser can show").wait_for()
    stream = io.BytesIO()
    frames = [Image.fromarray(photograph(50, 50, seed)) for seed in (0, 40)]
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:])
    (tmp_path / "moving.gif").write_bytes(stream.getvalue())
    load(page, tmp_path / "moving.gif")
    draw(page, (0.45, 0.5), (0.55, 0.5))
    page.route("**/inpaint", lambda route: route.continue_())
    with page.expect_response("**/inpaint") as answer:
        page.click("#fill")
    assert answer.value.status == 415
    page.get_by_role("status").filter(has_text="Not filled: cannot read picture").wait_for()
    assert page.locator("#fill").is_enabled()


def test_a_small_screen_with_fingers(browser, address, tmp_path):
    context = browser.new_context(viewport={"width": 390, "height": 780}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(address)
    load(page, write(tmp_path, photograph(200, 300)))
    scrolled = page.locator("html")
    assert scrolled.bounding_box()["width"] <= 390
    for button in page.locator("button, .button").all():
        box = button.bounding_box()
        if button.is_visible():
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 390
            assert box["height"] >= 40
    box = page.locator("#view").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.locator("#fill").click()
    page.get_by_role("status").filter(has_text="Filled in").wait_for()
    context.close()

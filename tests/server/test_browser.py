"""The demo page and the page of the API in a real Chromium, with tiny models."""

import base64
import io
import json
import os
import re

import browser
import numpy as np
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from loopline.server import pages
from loopline.tasks import find, image
from loopline.tasks.spec import ImageInput, ModelSpec, TextInput
from loopline.tasks.text import tokenizing

text_task = find("text")


@pytest.fixture(scope="module")
def chromium():
    """A browser for this module: Playwright's event loop must end before other tests start theirs."""
    with browser.chromium() as running:
        yield running


@pytest.fixture
def visit(chromium, server):
    """visit(path, options) -> a page that has no errors and loads nothing from other servers."""
    contexts, wrong, allowed = [], [], []

    def go(path="/", *, url=server.url, expected=(), **options):
        allowed.extend(expected)
        context = chromium.new_context(**{"viewport": browser.DESKTOP} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda line: wrong.append(line.text) if line.type in ("error", "warning") else None)
        page.on("request", lambda sent: None if sent.url.startswith((url, "blob:")) else wrong.append(sent.url))
        page.goto(url + path)
        if "401" not in expected:
            page.wait_for_selector("body[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    unexpected = [problem for problem in wrong if not any(f"status of {status}" in problem for status in allowed)]
    assert unexpected == []


@pytest.fixture
def local():
    browser.need((pages.HERE / "assets/ready").exists(), "onnxruntime-web is not there: make demo")


def picture(value, size=(32, 32), mode="RGB", kind="PNG"):
    file = io.BytesIO()
    Image.new(mode, size, value if mode == "L" else (value,) * 3).save(file, kind)
    return {"name": "it", "mimeType": f"image/{kind.lower()}", "buffer": file.getvalue()}


def choose(page, model, file):
    page.set_input_files(f"#panel-{model} input[type=file]", file)


def test_a_drawing_is_answered_with_bars(visit):
    page = visit()
    browser.stroke(page, [(0.5, 0.2), (0.5, 0.8)])
    browser.answered(page, "classifier")
    assert page.locator("#panel-classifier .title").inner_text().startswith("dark")
    assert page.locator("#panel-classifier .bars li").count() == 2
    assert re.fullmatch(r"Round trip [\d.]+ ms", page.locator("#panel-classifier .latency").inner_text())
    browser.stroke(page, [(0.2, 0.2), (0.8, 0.8)])
    page.wait_for_selector("#panel-classifier .latency:has-text('median of the last 2')")
    page.click("#panel-classifier button:text('Clear')")
    page.wait_for_selector("#panel-classifier:not([data-answered])")


def test_an_image_is_chosen_and_dropped(visit):
    page = visit()
    choose(page, "classifier", picture(230, mode="L"))
    browser.answered(page, "classifier")
    assert page.locator("#panel-classifier .title").inner_text().startswith("bright")
    drop = """async (bytes) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "it.png", { type: "image/png" }));
        const stage = document.querySelector("#panel-classifier .stage");
        for (const kind of ["dragenter", "dragover", "drop"])
            stage.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
    }"""
    page.evaluate(drop, list(picture(10, mode="L")["buffer"]))
    page.wait_for_selector("#panel-classifier .title:has-text('dark')")


@pytest.mark.parametrize("token", [None, "secret"])
def test_the_bundles_examples_are_shown_and_answered(visit, serve, folders, token):
    """The examples are golden samples, which a server with a token does not show without it."""
    server = serve(*folders.values(), env={"LOOPLINE_TOKEN": token or ""})
    page = visit(url=server.url, expected=["401"] if token else ())
    if token:
        page.fill("dialog input", token)
        page.click("dialog button")
        page.wait_for_selector("body[data-ready]")
    for number, title in enumerate(("dark", "bright")):
        page.click(f"#panel-classifier .thumb:has(img[alt='Example {number + 1}'][src^='blob:'])")
        page.wait_for_selector(f"#panel-classifier .title:has-text('{title}')")
    page.click("#tab-detector")
    page.click("#panel-detector .thumb")
    page.wait_for_selector("#panel-detector .box")
    page.click("#tab-text")
    assert page.locator("#panel-text .chip").all_inner_texts() == ["good fine", "bad awful"]
    page.click("#panel-text .chip:text('bad awful')")
    page.wait_for_selector("#panel-text .title:has-text('bad')")
    assert page.locator("#panel-text textarea").input_value() == "bad awful"
    if os.environ.get("LOOPLINE_SCREENSHOT"):
        page.click("#tab-classifier")
        page.screenshot(path=os.environ["LOOPLINE_SCREENSHOT"])


def test_boxes_lie_over_the_image_where_the_answer_says(visit):
    page = visit("/#detector")
    choose(page, "detector", picture(250, (64, 64)))
    page.wait_for_selector("#panel-detector .box")
    frame = page.locator("#panel-detector .frame img").bounding_box()
    box = page.locator("#panel-detector .box").bounding_box()
    # the model's box is 4 to 20 of 32
    assert [(box[side] - frame[side]) / frame["width"] for side in ("x", "y")] == pytest.approx([4 / 32] * 2, abs=0.005)
    assert box["width"] / frame["width"] == pytest.approx(16 / 32, abs=0.005)
    assert page.locator("#panel-detector .found li").inner_text().split() == ["spot", "98.0", "%"]
    choose(page, "detector", picture(5))
    page.wait_for_selector("#panel-detector :text('nothing found')")
    assert page.locator("#panel-detector .box").count() == 0


def test_a_text_is_answered_while_it_is_typed(visit):
    page = visit("/#text")
    page.locator("textarea").press_sequentially("good fine")
    browser.answered(page, "text")
    assert page.locator("#panel-text .title").inner_text().startswith("good")
    page.locator("textarea").fill("bad poor")
    page.wait_for_selector("#panel-text .title:has-text('bad')")


def test_a_servers_refusal_is_shown_on_the_page(visit):
    page = visit("/#classifier", expected=["415"])
    with page.expect_response("**/predict/classifier"):
        choose(page, "classifier", {"name": "it.gif", "mimeType": "image/gif", "buffer": b"GIF89a"})
    page.wait_for_selector("#panel-classifier .error:has-text('JPEG, PNG and WebP')")


def test_tabs_work_with_the_keyboard_and_the_address(visit):
    page = visit("/#detector")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "detector"
    page.focus("#tab-detector")
    page.keyboard.press("ArrowRight")
    assert page.locator("[role=tabpanel]:visible").get_attribute("id") == "panel-text"
    page.keyboard.press("ArrowRight")
    assert page.url.endswith("#classifier")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("path", ["/#classifier", "/#detector", "/#text", "/docs"])
def test_a_phone_needs_no_sideways_scrolling(visit, path, scheme):
    page = visit(path, viewport=browser.PHONE, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= browser.PHONE["width"]


def test_without_the_runtime_the_switch_is_off_with_a_reason(chromium, server, folders):
    page = chromium.new_page()
    page.route(
        "**/bundles",
        lambda route: route.fulfill(json={"in_browser": False, "models": [], "examples": dict.fromkeys(folders, ())}),
    )
    page.goto(server.url)
    page.wait_for_selector("body[data-ready]")
    assert page.locator("#in-browser").is_disabled()
    assert "make demo" in page.locator("#where").inner_text()
    page.close()


def test_the_page_asks_for_the_token_and_sends_it(visit, serve, folders):
    page = visit(url=serve(folders["text"], env={"LOOPLINE_TOKEN": "secret"}).url, expected=["401"])
    page.fill("dialog input", "secret")
    page.click("dialog button")
    page.wait_for_selector("body[data-ready]")
    page.fill("textarea", "good")
    browser.answered(page, "text")


def test_in_the_browser_nothing_leaves_the_device_and_the_answer_is_the_servers(visit, local):
    page = visit()
    inputs = {"classifier": picture(140, mode="L"), "detector": picture(200, (48, 20)), "text": "good fine, bad"}
    for model, given_input in inputs.items():
        page.uncheck("#in-browser")
        page.click(f"#tab-{model}")
        page.fill("textarea", given_input) if model == "text" else choose(page, model, given_input)
        browser.answered(page, model)
        expected = page.locator(f"#panel-{model} .answer").inner_text()
        page.check("#in-browser")
        browser.answered(page, model, "browser")
        assert "stays on this device" in page.locator("#where").inner_text()
        assert "On this device" in page.locator(f"#panel-{model} .latency").inner_text()
        sent = []
        page.on("request", lambda request, sent=sent: sent.append(request.url))
        page.evaluate(f"document.querySelector('#panel-{model}').dataset.answered = ''")
        page.fill("textarea", given_input + " ") if model == "text" else choose(page, model, given_input)
        browser.answered(page, model, "browser")
        assert page.locator(f"#panel-{model} .answer").inner_text() == expected
        assert [url for url in sent if not url.startswith("blob:")] == []


def test_a_bundle_that_changed_on_disk_does_not_run_in_the_browser(visit, local, serve, tmp_path):
    import bundles

    server = serve(bundles.text(tmp_path / "text").folder)
    page = visit(url=server.url, expected=["404"])
    (tmp_path / "text/SHA256SUMS").write_text("")
    page.check("#in-browser")
    page.wait_for_selector("#where:has-text('no longer holds version')")
    page.fill("textarea", "good")
    browser.answered(page, "text")


SIZES = [(28, 28), (128, 128), (97, 301), (300, 41), (13, 13), (8, 200), (1, 1), (1000, 640)]


def test_pixels_of_a_png_differ_from_pillows_by_at_most_one(visit):
    """For both fits, in grey and colour, larger and smaller, and rotated by EXIF."""
    page, noise = visit(), np.random.default_rng(0)
    for (width, height), channels, fit in [
        (size, c, fit) for size in SIZES for c in (1, 3) for fit in ("stretch", "letterbox")
    ]:
        pixels = noise.integers(0, 256, (height, width, 3), np.uint8)
        file, exif = io.BytesIO(), Image.Exif()
        exif[0x0112] = 6 if width == 97 else 1
        Image.fromarray(pixels).save(file, "PNG", exif=exif)
        spec = ImageInput(height=48, width=64, channels=channels, fit=fit)
        expected = image.resize(image.decode(file.getvalue(), channels), spec)
        gap = np.abs(in_page(page, file.getvalue(), spec) - expected.astype(int))
        assert gap.max() <= 1, (width, height, channels, fit)


def test_pixels_of_other_files_differ_by_at_most_three(visit):
    """JPEG (colour and grey), WebP, 16 bits and transparency: at most 3 of 255, on average 0.5."""
    page = visit()
    ramp = np.add.outer(np.arange(90), np.arange(120)).astype(np.uint8)
    colour = np.stack([ramp, ramp[::-1], 255 - ramp], 2)
    clear = np.dstack([colour, ramp])
    kinds = [
        ("JPEG", colour),
        ("JPEG", ramp),
        ("WEBP", colour),
        ("PNG", ramp.astype(np.uint16) * 257),
        ("PNG", clear),
    ]
    for kind, pixels in kinds:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        for channels in (1, 3):
            spec = ImageInput(height=32, width=32, channels=channels, fit="letterbox")
            expected = image.resize(image.decode(file.getvalue(), channels), spec).astype(int)
            gap = np.abs(in_page(page, file.getvalue(), spec) - expected)
            assert gap.max() <= 3, (kind, pixels.shape, pixels.dtype)
            assert gap.mean() <= 0.5, (kind, pixels.shape)


def in_page(page, data, spec):
    script = """async ([encoded, spec]) => {
        const { decode, resize } = await import("/pages/pixels.js");
        const bytes = Uint8Array.from(atob(encoded), (letter) => letter.charCodeAt(0));
        return Array.from(resize(await decode(new Blob([bytes]), spec.channels), spec).data);
    }"""
    fields = {name: getattr(spec, name) for name in ("height", "width", "channels", "fit", "pad_value")}
    return np.array(page.evaluate(script, [base64.b64encode(data).decode(), fields])).reshape(
        spec.height, spec.width, spec.channels
    )


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_ids_are_those_of_the_tokenizer(visit, tmp_path, kind):
    """Texts from all of Unicode, with many characters that tokenizers treat specially."""
    awkward = [
        "don't",
        "İstanbul",
        "ΟΔΟΣ",
        "ﬁn",
        "e\u0301",
        "a\u00a0b",
        "\ufeffx",
        "\u0085y",
        "a\u200cb",
        "…?!",
        "ⅷ²",
        "\u3000",
        "_",
        "é",
        "漢字",
        "🙂",
    ]
    learnt = tokenizing.learn([*awkward, "good fine", "a b c"], kind, vocabulary=200, max_tokens=16)
    learnt.save(str(tmp_path / "tokenizer.json"))
    encode = text_task.preprocessor(ModelSpec(task="text", labels=("a",), text=TextInput(max_tokens=16)), tmp_path)
    page = visit()
    file = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    page.evaluate("""async (file) => { self.encode = (await import("/pages/tokenizer.js")).compile(file); }""", file)
    characters = st.characters(exclude_categories=["Cn", "Cs"])  # the browser may have a newer Unicode
    piece = st.one_of(st.sampled_from([*awkward, " ", "good", "A"]), st.text(characters, max_size=5))

    @settings(max_examples=200)
    @given(st.lists(st.lists(piece, max_size=12).map("".join), min_size=1, max_size=30))
    def agree(texts):
        expected = [encode([text])["ids"][0].tolist() for text in texts]
        assert page.evaluate("(texts) => texts.map(self.encode)", texts) == expected, ascii(texts)

    agree()


def test_every_call_of_the_api_page_works_unchanged(visit, server):
    page = visit("/docs")
    calls = page.locator("details.call")
    paths = requests.get(server.url + "/openapi.json", timeout=60).json()["paths"]
    assert calls.count() == sum(len(methods) for methods in paths.values())
    for number in range(calls.count()):
        call = calls.nth(number)
        call.locator("summary").click()
        call.locator("button").click()
        answer = call.locator("pre").nth(1)
        answer.wait_for()
        assert answer.inner_text().startswith("200 OK"), call.inner_text()


def test_a_call_of_the_api_page_is_edited_and_shown_for_curl(visit):
    page = visit("/docs")
    call = page.locator("#text_predict")
    call.locator("summary").click()
    call.locator("textarea").fill('{"text": "it\'s bad"}')
    assert "curl --json '{\"text\": \"it'\\''s bad\"}' http://127.0.0.1" in call.locator("pre").first.inner_text()
    call.locator("button").click()
    call.locator("pre").nth(1).wait_for()
    assert '"label": "bad"' in call.locator("pre").nth(1).inner_text()

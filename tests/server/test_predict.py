"""The predict route, for people: image files, texts in every form, and invalid bodies."""

import io
import json

import brightness
import numpy as np
import pytest
import requests
from PIL import Image, ImageDraw

from loopline.server import model, payloads

CALLS = "/predict/classifier"


def post(server, path, data=None, **options):
    return requests.post(server.url + path, data=data, timeout=20, **options)


def encoded(picture, kind="PNG", **options):
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize(("value", "label"), [(230, "bright"), (20, "dark")])
def test_an_image_is_answered_as_a_raw_body_and_in_a_form(server, kind, value, label):
    data = encoded(Image.new("L", (20, 30), value), kind)
    for answer in (post(server, CALLS, data), post(server, CALLS, files={"file": ("x.bin", data)})):
        assert answer.status_code == 200
        body = answer.json()
        assert (body["model"], body["predictions"][0]["label"]) == ("classifier", label)
        assert body["id"] == answer.headers["x-request-id"]
        assert sum(body["predictions"][0]["probabilities"].values()) == pytest.approx(1, abs=1e-5)


def test_several_images_of_a_form_keep_their_order(server):
    files = [("file", (f"{n}.png", brightness.png(value))) for n, value in enumerate((250, 3, 240))]
    assert [row["label"] for row in post(server, CALLS, files=files).json()["predictions"]] == [
        "bright",
        "dark",
        "bright",
    ]


def test_boxes_are_in_pixels_of_the_upright_original(server):
    picture = Image.new("RGB", (64, 32), "white")
    sideways = Image.Exif()
    sideways[0x0112] = 6  # rotate by 90 degrees: 32 x 64 upright
    for data, size in ((encoded(picture), (64, 32)), (encoded(picture, "JPEG", exif=sideways), (32, 64))):
        (box,) = post(server, "/predict/detector", data).json()["predictions"][0]["boxes"]
        factor = max(size) / 32
        right = [min(20 * factor, size[0]), min(20 * factor, size[1])]
        assert [box["x1"], box["y1"], box["x2"], box["y2"]] == [4 * factor, 4 * factor, *right]
        assert box["label"] == "spot"


def test_a_large_image_is_decoded_in_its_own_queue(server):
    noise = np.random.default_rng(0).integers(200, 256, (600, 600), np.uint8)
    data = encoded(Image.fromarray(noise))
    assert len(data) > 64 * 1024
    assert post(server, CALLS, data).json()["predictions"][0]["label"] == "bright"


@pytest.mark.parametrize(
    ("data", "kind", "labels"),
    [
        ('{"text": "good great"}', "application/json", ["good"]),
        ('{"texts": ["bad", "fine"]}', "application/json", ["bad", "good"]),
        ('["awful"]', "application/json", ["bad"]),
        ('"great"', "application/json", ["good"]),
        ('{"text": "good", "texts": null}', "application/json", ["good"]),
        ('{"text": null, "texts": ["bad"]}', "application/json", ["bad"]),
        ('{"text": "good", "texts": []}', "application/json", ["good"]),
        ("poor poor", "text/plain; charset=utf-8", ["bad"]),
        ("poor poor", 'text/plain;CharSet="UTF-8"; format=flowed', ["bad"]),
        ("poor poor", "text/plain; charset=us-ascii", ["bad"]),
        ('\ufeff{"text": "good"}', "application/json", ["good"]),
        ('{"text": "good \\ud800"}', "application/json", ["good"]),
    ],
)
def test_texts_in_every_form(server, data, kind, labels):
    answer = post(server, "/predict/text", data.encode(), headers={"Content-Type": kind})
    if "ud800" in data:
        assert answer.status_code in (200, 400)  # a lone surrogate: JSON can write it, UTF-8 cannot
        return
    assert [row["label"] for row in answer.json()["predictions"]] == labels


def test_a_text_in_a_form(server):
    answer = post(server, "/predict/text", files={"text": (None, "good")})
    assert answer.json()["predictions"][0]["label"] == "good"


def test_a_byte_order_mark_is_not_part_of_a_text():
    part = b"--x\r\nContent-Disposition: form-data; name=text\r\n\r\n\xef\xbb\xbfbad\r\n--x--\r\n"
    for body, kind in ((b"\xef\xbb\xbfbad", b"text/plain"), (part, b"multipart/form-data; boundary=x")):
        assert payloads.texts(body, {b"content-type": kind}).items == ["bad"]


@pytest.mark.parametrize("charset", ["utf-16le", "iso-8859-1", '"windows-1252"'])
def test_a_text_in_another_charset_is_refused(server, charset):
    kind = f"text/plain; charset={charset}"
    raw = post(server, "/predict/text", "good".encode("utf-16-le"), headers={"Content-Type": kind})
    part = post(server, "/predict/text", files={"text": (None, "good".encode("utf-16-le"), kind)})
    for answer in (raw, part):
        assert (answer.status_code, "send it in UTF-8" in answer.json()["error"]) == (415, True)


def test_an_empty_text_is_a_text(server):
    assert post(server, "/predict/text", json={"text": ""}).status_code == 200


def test_the_request_id_and_the_trace_pass_through(server):
    headers = {"X-Request-Id": "abc-1", "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
    answer = post(server, CALLS, brightness.png(9), headers=headers)
    assert answer.json()["id"] == answer.headers["X-Request-Id"] == "abc-1"
    assert answer.headers["traceparent"] == headers["traceparent"]


@pytest.mark.parametrize(
    ("path", "data", "kind", "status", "message"),
    [
        (CALLS, b"", "image/png", 400, "empty"),
        (CALLS, b"hello", "image/png", 415, "JPEG, PNG and WebP"),
        (CALLS, b"GIF89a" + bytes(50), "image/gif", 415, "JPEG, PNG and WebP"),
        (CALLS, b"RIFF\x24\0\0\0WAVEfmt " + bytes(28), "audio/wav", 415, "JPEG, PNG and WebP"),
        (CALLS, brightness.png(1)[:45], "image/png", 400, "broken image"),
        (CALLS, b'{"image": 1}', "application/json", 415, "the image file itself"),
        (CALLS, b"--x\r\n", "multipart/form-data; boundary=x", 400, "the form is cut off"),
        (CALLS, b"--x--\r\n", "multipart/form-data", 400, "boundary"),
        (CALLS, b"junk", "multipart/form-data; boundary=x", 400, "form"),
        ("/predict/text", b"{", "application/json", 400, "not JSON"),
        ("/predict/text", b"{}", "application/json", 400, "send"),
        ("/predict/text", b'{"text": 1}', "application/json", 400, "send"),
        ("/predict/text", b'{"text": null, "texts": null}', "application/json", 400, "send"),
        ("/predict/text", b'{"texts": []}', "application/json", 400, "no text"),
        ("/predict/text", b'{"text": "a", "texts": ["b"]}', "application/json", 400, "not both"),
        ("/predict/text", b"\xff\xfe", "text/plain", 400, "not UTF-8"),
        ("/predict/text", b"[" * 100_000, "application/json", 400, "not JSON"),
        ("/predict/text", json.dumps(["x"] * (payloads.MOST_ITEMS + 1)).encode(), "application/json", 413, "at most"),
        ("/predict/text", json.dumps("x" * (model.MOST_TEXT + 1)).encode(), "application/json", 413, "characters"),
    ],
)
def test_a_bad_body_is_explained(server, path, data, kind, status, message):
    answer = post(server, path, data, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert message in answer.json()["error"]


def test_a_decompression_bomb_is_refused_by_its_header(server):
    data = encoded(Image.new("1", (30_000, 30_000)))
    assert len(data) < 200_000
    answer = post(server, CALLS, data)
    assert answer.status_code in (400, 413)
    assert "pixels" in answer.json()["error"]


def test_an_animation_is_refused(server):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:])
    assert "animated" in post(server, CALLS, data).json()["error"]


@pytest.mark.parametrize("pictures", [2, 3])
def test_a_phones_photo_with_pictures_behind_it_is_answered_by_the_first(server, pictures):
    """A JPEG with an index (MPF) of further pictures: depth maps, previews, the second eye."""
    frames = [Image.new("RGB", (40, 20), shade) for shade in ("white", "black", "black")[:pictures]]
    sideways = Image.Exif()
    sideways[0x0112] = 6
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:], exif=sideways)
    assert Image.open(io.BytesIO(data)).n_frames == pictures
    assert post(server, CALLS, data).json()["predictions"][0]["label"] == "bright"
    (box,) = post(server, "/predict/detector", data).json()["predictions"][0]["boxes"]
    assert (box["x2"], box["y2"]) == (20, 25), "in pixels of the upright first picture"
    content = next(iter(post(server, CALLS, data[: len(data) - 300]).json()["predictions"]))
    assert content["label"] == "bright", "what lies behind it may be cut off"


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_animation_in_any_format_is_refused(server, kind):
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    answer = post(server, CALLS, encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert (answer.status_code, "animated" in answer.json()["error"]) == (415, True)


@pytest.mark.parametrize(
    "disposition",
    [
        "form-data; name=file; filename*=UTF-8''f%C3%BCr.png",
        "form-data; name=\"file\"; FileName*=utf-8'de'f%C3%BCr.png",
        "form-data; name=file; filename*0*=UTF-8''f%C3%BC; filename*1=r.png",
        "form-data; name=file; filename*0=a; filename*1=b",
        "form-data; name=file; filename=\"f\u00fcr.png\"; filename*=UTF-8''x",
        'form-data; name="file"; filename=""',
        "form-data; name=file\r\nContent-Type: image/png",
    ],
)
def test_a_forms_file_may_be_named_in_every_way_that_clients_use(server, disposition):
    head = f"--x\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = post(server, CALLS, head + brightness.png(230) + b"\r\n--x--\r\n", headers=headers)
    assert answer.json()["predictions"][0]["label"] == "bright"


@pytest.mark.parametrize("field", ["filename", "a; filename*=b", "filename*"])
def test_a_field_named_like_a_file_is_not_a_file(server, field):
    body = f'--x\r\nContent-Disposition: form-data; name="{field}"\r\n\r\nhello\r\n--x--\r\n'.encode()
    answer = post(server, CALLS, body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    assert (answer.status_code, "no file in the form" in answer.json()["error"]) == (400, True)


def test_unusual_but_valid_images_are_answered(server):
    deep = Image.fromarray(np.full((9, 9), 60_000, np.uint16))
    for data in (
        encoded(Image.new("CMYK", (9, 9)), "JPEG"),
        encoded(deep),
        encoded(Image.new("P", (9, 9))),
        encoded(Image.new("RGBA", (9, 9), (0, 0, 0, 0))),
        encoded(Image.new("L", (1, 1), 255)),
        encoded(Image.new("L", (3000, 1), 255)),
    ):
        assert post(server, CALLS, data).status_code == 200


def test_a_thousand_hostile_images_break_nothing(server):
    """Bytes are changed, cut or doubled in all three formats: an answer or a refusal, never an internal error."""
    generator = np.random.default_rng(0)
    picture = Image.new("RGB", (40, 30), "white")
    ImageDraw.Draw(picture).ellipse((5, 5, 30, 25), "black")
    seeds = [encoded(picture, kind) for kind in ("PNG", "JPEG", "WEBP")]
    statuses = []
    with requests.Session() as session:
        for number in range(1000):
            data = bytearray(seeds[number % 3])
            for place in generator.integers(0, len(data), generator.integers(1, 8)):
                data[place] = generator.integers(0, 256)
            if number % 5 == 0:
                del data[generator.integers(1, len(data)) :]
            if number % 7 == 0:
                start = generator.integers(0, len(data))
                data[start:start] = data[: generator.integers(0, 200)]
            statuses.append(session.post(server.url + CALLS, data=bytes(data), timeout=20).status_code)
    assert set(statuses) <= {200, 400, 413, 415}
    assert statuses.count(200) > 50
    assert statuses.count(400) > 50


@pytest.mark.parametrize("number", [-1, 9, 50, 2**62, -(2**63)])
def test_ids_that_the_tokenizer_cannot_give_are_refused(server, number):
    """Found by fuzzing: such ids reached the graph, which failed, so a client could make every batch fail."""
    body = {"inputs": [{"name": "ids", "shape": [1, 2], "datatype": "INT64", "data": [3, number]}]}
    answer = requests.post(server.url + "/v2/models/text/infer", json=body, timeout=60)
    assert answer.status_code == 400
    assert "ids must be from 0 to 8" in answer.json()["error"]

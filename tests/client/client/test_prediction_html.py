"""The HTML of predictions, read back with a parser: what it shows, in which order, and that it loads nothing."""

from __future__ import annotations

import base64
import io
import re
from datetime import datetime, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from defensemble import InputError, OutputNotRequestedError, Prediction
from defensemble._client.contact_sheet import THUMBNAIL_SIDE, contact_sheet_html, encode_thumbnail, write_contact_sheet
from tests.support.facts import assert_facts, raises

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)
VOID = {"img", "meta"}
NAMES = ("cat", "dog", "frog", "owl")


class Page(HTMLParser):
    """The elements, attributes and texts of a page. Each element that opens must close, in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.images: list[dict[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []
        assert not {"script", "link", "iframe", "object", "form"} & set(self.tags)
        assert not [name for name, _ in self.attributes if name.startswith("on") or name in ("href", "srcset", "action")]
        assert all(value.startswith("data:") for name, value in self.attributes if name == "src")
        assert "url(" not in text
        assert "@import" not in text

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag == "img":
            self.images.append({name: value or "" for name, value in attrs})
        if tag not in VOID:
            self._open.append(tag)
        self.texts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.texts.append(data)


def prediction_of(count: int = 3, names: tuple[str, ...] = NAMES, members: int | None = None, **metadata: Any) -> Prediction:
    received = {"probabilities": RNG.dirichlet(np.ones(len(names)), count).astype(np.float32)}
    if members is not None:
        received["member_probabilities"] = RNG.dirichlet(np.ones(len(names)), (count, members)).astype(np.float32)
        received["mutual_information"] = RNG.random(count, np.float32)
    return Prediction("ensemble", names, received, **metadata)


def widths(text: str) -> list[str]:
    return re.findall(r"width:([\d.]+)%", text)


def test_a_notebook_shows_classes_uncertainty_members_and_metadata() -> None:
    probabilities = np.array([[0.5, 0.25, 0.2, 0.05], [0, 0, 1, 0]], np.float32)
    members = np.array([[[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]], [[0, 0, 1, 0]] * 3], np.float32)
    received = {"probabilities": probabilities, "member_probabilities": members, "mutual_information": np.array([0.375, 0], np.float32)}
    prediction = Prediction("ensemble", NAMES, received, "7", "id-5", 0.0123, "grpc://host:8001")
    html = prediction._repr_html_()
    page = Page(html)
    assert_facts(page.text, "2 images | ensemble | version 7 | 12.3 ms | grpc://host:8001 | request id-5")
    assert_facts(page.text, f"cat 50.0% dog 25.0% frog 20.0% owl 5.0% | {prediction.entropy[0]:.3f} | 0.375 | 2 of 3 agree; 1 dog")
    assert_facts(page.text, "frog 100.0% | 0.000 | 3 of 3 agree")
    bits = prediction.entropy[0] / np.log(4)
    assert widths(html)[:6] == ["50.0", "25.0", "20.0", "5.0", f"{100 * bits:.1f}", f"{100 * 0.375 / np.log(4):.1f}"]


def test_a_notebook_shows_at_most_twenty_images_and_only_what_was_received() -> None:
    page = Page(prediction_of(1020)._repr_html_())
    assert page.tags.count("tr") == 1 + 20
    assert_facts(page.text, "1,020 images | and 1,000 more")
    assert "mutual information" not in page.text
    assert "members" not in page.text
    assert "more" not in Page(prediction_of(20)._repr_html_()).text
    only = Prediction("m", NAMES, {"mutual_information": np.array([0.25], np.float32)})
    assert_facts(Page(only._repr_html_()).text, "1 image | mutual information | 0.250")
    assert "entropy" not in Page(only._repr_html_()).text
    members = Prediction("m", NAMES, {"member_probabilities": np.array([[[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]], np.float32)})
    assert_facts(Page(members._repr_html_()).text, "3 members; 2 cat; 1 dog")
    Page(prediction_of(3)[3:]._repr_html_())
    Page(prediction_of(2, ("only",), members=2)._repr_html_())  # one class: ln 1 = 0


TEXTS = st.text(st.characters(exclude_categories=["Cc", "Cs", "Z"]) | st.sampled_from("<>&\"'"), min_size=1, max_size=8)


@settings(max_examples=40)
@given(st.lists(TEXTS, min_size=2, max_size=4), TEXTS, TEXTS)
def test_names_are_escaped(names: list[str], model: str, url: str) -> None:
    probabilities = np.full((1, len(names)), 1 / len(names), np.float32)
    prediction = Prediction(model, tuple(names), {"probabilities": probabilities}, model, url, 0.1, url)
    page = Page(prediction._repr_html_())
    for text in (*names, model, url):
        assert text in page.text
    sheet = Page(contact_sheet_html([(model, encode_thumbnail(np.zeros((2, 2, 3), np.uint8)))], prediction, url, true_labels=[names[1]]))
    for text in (*names[:3], model, url):
        assert text in sheet.text
    assert model in sheet.images[0]["alt"]


def test_a_contact_sheet_begins_with_the_most_uncertain_and_marks_what_is_wrong(tmp_path: Path) -> None:
    prediction = prediction_of(6, members=3, model_version="7", url="grpc://host:8001")
    images = [(f"folder/image {number}.png", RNG.integers(0, 256, (8, 8, 3), np.uint8)) for number in range(6)]
    truths = [prediction.labels[0], "none of them", None, None, None, prediction.labels[5]]
    created = datetime(2025, 1, 2, 3, 4, tzinfo=timezone.utc)
    html = contact_sheet_html(images, prediction, "A title", true_labels=truths, created=created)
    page = Page(html)
    order = np.argsort(-prediction.entropy, kind="stable").tolist()
    assert [image["alt"].split(", ")[0] for image in page.images] == [images[number][0] for number in order]
    for image, number in zip(page.images, order, strict=True):
        label, probability = prediction.top(1)[number][0]
        assert_facts(image["alt"], f"{label} | {probability:.0%}")
        data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), images[number][1])
    assert_facts(page.text, "A title | ensemble version 7 | 6 | 1 of 3 | grpc://host:8001 | 2025-01-02 03:04 UTC | entropy | 1.39")
    assert [image["alt"] for image in page.images if "none of them" in image["alt"]] == [page.images[order.index(1)]["alt"]]
    assert html.count('class="card wrong"') == 1
    assert (page.text.count("✗ true label: none of them"), page.text.count("✓")) == (1, 2)
    for nats in (*prediction.entropy, *prediction.mutual_information):
        assert_facts(page.text, f"{nats:.3f}")
    assert ("content", "default-src 'none'; img-src data:; style-src 'unsafe-inline'") in page.attributes

    with (tmp_path / "sheet.html").open("w", encoding="utf-8") as file:  # batches, as a command predicts them
        write_contact_sheet(file, images, [prediction[:4], prediction[4:]], "A title", true_labels=truths, created=created)
    assert (tmp_path / "sheet.html").read_text(encoding="utf-8") == html


def test_a_name_that_is_no_text_can_be_written(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode("utf-8", "surrogateescape")
    with (tmp_path / "sheet.html").open("w", encoding="utf-8") as file:
        write_contact_sheet(file, [(name, np.zeros((2, 2, 3), np.uint8))], prediction_of(1))
    assert "caf?.png" in (tmp_path / "sheet.html").read_text(encoding="utf-8")


def test_a_contact_sheet_needs_a_prediction_with_probabilities_for_each_image() -> None:
    thumbnail = encode_thumbnail(np.zeros((2, 2, 3), np.uint8))
    for images, predictions, truths, facts in (
        ([], prediction_of(2)[2:], None, "0"),
        ([("a", thumbnail)], prediction_of(2), None, "1 | 2"),
        ([("a", thumbnail)], prediction_of(1), ["cat"] * 3, "1 | 3"),
        ([("a", b"GIF89a...")], prediction_of(1), None, "a | GIF89a"),
    ):
        with raises(InputError, facts):
            contact_sheet_html(images, predictions, true_labels=truths)
    stream = io.StringIO()
    with pytest.raises(OutputNotRequestedError):
        write_contact_sheet(stream, [("a", thumbnail)], Prediction("m", NAMES, {"entropy": np.zeros(1, np.float32)}))
    assert stream.getvalue() == ""


@pytest.mark.parametrize(("height", "width", "kind"), [(8, 8, "PNG"), (64, 40, "PNG"), (65, 8, "JPEG"), (400, 1000, "JPEG")])
def test_thumbnails_are_small_and_exact_where_the_image_is_tiny(height: int, width: int, kind: str) -> None:
    for channels in (1, 3):
        pixels = RNG.integers(0, 256, (height, width, channels), np.uint8)
        image = Image.open(io.BytesIO(encode_thumbnail(pixels)))
        assert image.format == kind
        assert max(image.size) == min(max(height, width), THUMBNAIL_SIDE)
        if kind == "PNG":
            np.testing.assert_array_equal(np.asarray(image).reshape(pixels.shape), pixels)
        assert encode_thumbnail(pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)) == encode_thumbnail(pixels)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3))])
def test_a_thumbnail_of_another_form_is_rejected(image: Array) -> None:
    with raises(InputError, f"{image.dtype} | {image.shape}"):
        encode_thumbnail(image)

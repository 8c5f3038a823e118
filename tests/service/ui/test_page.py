"""The page in a real browser: what people do there, by mouse, keyboard and drop; and what must not happen."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright")
from playwright.sync_api import Error, Page, Route, expect  # noqa: E402

from clipworks.client import Client  # noqa: E402
from tests.service.ui.conftest import Site, picture  # noqa: E402

pytestmark = pytest.mark.slow

VIEWS = ("search", "classify", "localise", "status")
HOSTILE = [
    "<img src=x onerror=window.hit=1>",
    '"><script>window.hit=1</script>',
    "javascript:window.hit=1",
    "${window.hit=1}",
]
# A File in the page, from base64: what a drop and the clipboard hold.
AS_FILE = """([name, data]) => {
  const bytes = Uint8Array.from(atob(data), (each) => each.charCodeAt(0));
  const held = new DataTransfer();
  held.items.add(new File([bytes], name, {type: "image/png"}));
  return held;
}"""


def hits(page: Page) -> list[str]:
    """Ids of the hits that are drawn."""
    return [
        said.split(", score")[0]
        for said in page.locator(".hits button.open").evaluate_all("all => all.map(each => each.ariaLabel)")
    ]


def found(page: Page, count: int | str) -> None:
    expect(page.locator(".count")).to_contain_text(re.compile(rf"^\s*{count} hits?"))


def shows(page: Page, ids: list[str]) -> None:
    """These hits in this order, soon."""
    end = time.monotonic() + 20
    while hits(page) != ids and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert hits(page) == ids


def given(page: Page, pixels: bytes, how: str, *, onto: str = ".field") -> None:
    """A picture by the file dialog, a drop or the clipboard."""
    if how == "dialog":
        page.locator(f"{onto} input[type=file]").set_input_files(
            {"name": "a.png", "mimeType": "image/png", "buffer": pixels}
        )
        return
    held = page.evaluate_handle(AS_FILE, ["a.png", base64.b64encode(pixels).decode()])
    if how == "drop":
        for name in ("dragenter", "dragover", "drop"):
            page.dispatch_event(onto, name, {"dataTransfer": held})
    else:
        page.evaluate(
            "held => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held, bubbles: true}))", held
        )


# Search


def test_words_find_what_the_api_finds(site: Site) -> None:
    page = site.page()
    page.get_by_label("What to search for").fill("red")
    found(page, 24)
    expected = site.client.collection("photos").search(["red"], top_k=24)[0].hits
    shows(page, [hit.id for hit in expected])
    assert {each.split("/")[0] for each in hits(page)[:8]} == {"red"}
    score = page.locator(".hits .score").first.text_content()
    assert score == f"{expected[0].score:.2f}"


def test_hits_show_their_pictures_and_where_the_words_are_in_them(site: Site) -> None:
    """Pictures are fetched with the key, so none is in the page before it is seen."""
    page = site.page("?view=search&term=1|text|red", height=500)
    found(page, 24)
    first = page.locator(".hits button.open").first
    expect(first.locator("img")).to_be_visible()
    drawn = first.locator("img").evaluate("""image => {
      const canvas = document.createElement("canvas");
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext("2d");
      context.drawImage(image, 0, 0);
      return [canvas.width, canvas.height, ...context.getImageData(20, 20, 1, 1).data];
    }""")
    stored = np.asarray(Image.open(BytesIO(site.client.collection("photos").thumbnail(hits(page)[0]))).convert("RGB"))
    assert drawn[:2] == [stored.shape[1], stored.shape[0]]
    assert np.abs(np.array(drawn[2:5]) - stored[20, 20].astype(int)).max() < 8
    assert page.locator(".hits img").count() < 24, "what is below the window waits"
    first.click()
    page.get_by_role("button", name="Where is it?").click()
    expect(page.locator("dialog .overlay rect").first).to_be_visible()
    page.keyboard.press("Escape")
    page.mouse.wheel(0, 6000)
    expect(page.locator(".hits img")).to_have_count(24)


def test_only_the_keyboard(site: Site) -> None:
    page = site.page()
    expect(page.locator(".count")).to_contain_text("Type words")
    page.keyboard.press("/")
    page.keyboard.type("blue")
    found(page, 24)
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="blue")).to_be_visible()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    expect(page.locator(".hits button.open").nth(1)).to_be_focused()
    second = hits(page)[1]
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name=second)).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.locator(".hits button.open").nth(1).focus()
    page.keyboard.press("s")
    expect(page.get_by_role("group", name=second)).to_be_visible()
    expected = site.client.collection("photos").search([{"id": second}], top_k=23)[0].hits
    found(page, 23)
    shows(page, [hit.id for hit in expected])


def test_a_dropped_a_pasted_and_a_chosen_picture_ask_the_same(site: Site) -> None:
    pixels, bodies = picture("green", 77), list[Any]()
    for how in ("dialog", "drop", "paste"):
        page = site.page()
        expect(page.locator(".count")).to_contain_text("Type words")
        with page.expect_request("**/search") as asked:
            given(page, pixels, how)
        bodies.append(json.loads(asked.value.post_data or ""))
        found(page, 24)
        assert {each.split("/")[0] for each in hits(page)[:8]} == {"green"}
    assert bodies[0] == bodies[1] == bodies[2]
    assert bodies[0]["queries"] == [{"image": base64.b64encode(pixels).decode()}]


def test_terms_are_weighed_turned_and_removed(site: Site) -> None:
    page, sent = site.page(), list[Any]()
    page.on(
        "request", lambda each: sent.append(json.loads(each.post_data or "")) if each.url.endswith("/search") else None
    )

    def asks(query: object) -> None:
        """The page comes to ask this, and stays with it."""
        end = time.monotonic() + 20
        while (not sent or sent[-1]["queries"] != [query]) and time.monotonic() < end:
            page.wait_for_timeout(50)
        assert sent[-1]["queries"] == [query]

    image = base64.b64encode(picture("red", 5)).decode()
    given(page, picture("red", 5), "drop")
    page.get_by_label("What to search for").fill("-green")
    page.keyboard.press("Enter")
    expect(page.get_by_role("group", name="not green")).to_be_visible()
    asks({"combine": [{"image": image, "weight": 1}, {"text": "green", "weight": -0.3}]})
    page.get_by_label("Weight of green").fill("0.4")
    asks({"combine": [{"image": image, "weight": 1}, {"text": "green", "weight": -0.4}]})
    page.get_by_role("button", name="green: pushes away; change to draw near").click()
    asks({"combine": [{"image": image, "weight": 1}, {"text": "green", "weight": 0.4}]})
    page.get_by_role("button", name="Remove a.png").click()
    asks({"text": "green"})
    page.get_by_role("button", name="Remove green").click()
    expect(page.locator(".hits")).to_have_count(0)


def test_filters_come_from_the_schema_and_are_the_apis(site: Site) -> None:
    page = site.page("?view=search&q=red")
    found(page, 24)
    for field, comparison, value in (("year", "≥", "2020"), ("kind", "=", "red"), ("own", "=", "true")):
        page.get_by_role("button", name="Filter", exact=True).click()
        page.get_by_label("Field").select_option(field)
        page.get_by_label("Comparison").select_option(comparison)
        if field == "own":
            page.get_by_label("Value").select_option(value)
        else:
            page.get_by_label("Value").fill(value)
        page.get_by_role("button", name="Add the filter").click()
    found(page, 2)
    expected = site.client.collection("photos").search(
        ["red"], filter={"kind": "red", "year": {"$gte": 2020}, "own": True}
    )
    shows(page, [hit.id for hit in expected[0].hits])
    page.get_by_role("button", name="Remove the filter on own").click()
    found(page, 4)


def test_values_that_items_have_are_offered_as_filters(site: Site) -> None:
    page = site.page("?view=search&q=red")
    found(page, 24)
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Field").select_option("kind")
    values = page.get_by_role("group", name="Items by kind").get_by_role("button")
    expect(values).to_have_text(["blue 8", "green 8", "red 8"])
    values.nth(1).click()
    found(page, 8)
    page.get_by_role("button", name="Filter", exact=True).click()
    page.get_by_label("Field").select_option("own")  # counted among what the first filter leaves
    page.get_by_role("group", name="Items by own").get_by_role("button", name="true").click()
    found(page, 4)
    expected = site.client.collection("photos").search(["red"], filter={"kind": "green", "own": True})
    shows(page, [hit.id for hit in expected[0].hits])


def test_near_duplicates_are_shown_as_one(site: Site) -> None:
    page = site.page("?view=search&q=red")
    found(page, 24)
    page.get_by_label("near duplicates as one").check()
    [expected] = site.client.collection("photos").search(["red"], top_k=24, group_near=0.95)
    assert len(expected.hits) < 24
    found(page, len(expected.hits))
    shows(page, [hit.id for hit in expected.hits])
    near = [f"+{len(hit.near)}" for hit in expected.hits if hit.near]
    expect(page.locator(".hits .near")).to_have_text(near)
    assert "fold=1" in page.url
    page.locator(".hits button.open").first.click()
    shown = page.locator("dialog .same li")
    expect(shown).to_have_count(len(expected.hits[0].near))
    expect(shown.first).to_contain_text(expected.hits[0].near[0].id)
    page.get_by_role("button", name="Close").click()
    page.get_by_label("near duplicates as one").uncheck()
    found(page, 24)


def test_no_good_match_is_said_of_words_that_nothing_shows(site: Site) -> None:
    expected = {
        words: site.client.collection("photos").search([words], presence={}, top_k=24)[0] for words in ("red", "no")
    }
    page = site.page("?view=search&term=1|text|no")
    said = page.locator(".warning")
    expect(said).to_contain_text("No good match: probably nothing here shows “no”")
    match = expected["no"].match
    assert match is not None
    expect(said).to_contain_text(f"(probability {match.probability:.2f})")
    found(page, 24)  # what is nearest is there all the same
    page.goto(f"{site.url}/ui?view=search&term=1|text|red")
    found(page, 24)
    expect(page.locator(".warning")).to_have_count(0)
    page.locator(".hits button.open").first.click()
    likely = expected["red"].hits[0].presence
    assert likely is not None
    expect(page.locator("dialog")).to_contain_text(f"shows it with probability {likely:.2f}")
    page.keyboard.press("Escape")
    page.goto(f"{site.url}/ui?view=search&term=1|text|no&term=0.3|text|red")  # of several terms nothing is said
    found(page, 24)
    expect(page.locator(".warning")).to_have_count(0)


def test_the_cut_hides_what_is_below_and_counts(site: Site) -> None:
    page = site.page("?view=search&q=red")
    found(page, 24)
    expected = site.client.collection("photos").search(["red"], top_k=24)[0].hits
    page.get_by_label("Minimum score").fill("0.5")
    kept = [hit.id for hit in expected if hit.score >= 0.5]
    assert 0 < len(kept) < 24
    expect(page.locator(".count")).to_contain_text(f"{len(kept)} hits of 24 above the cut")
    shows(page, kept)
    assert "min=0.5" in page.url


def test_state_is_in_the_address_and_the_back_button_undoes(site: Site) -> None:
    page = site.page()
    page.get_by_label("What to search for").fill("red")
    page.keyboard.press("Enter")
    page.get_by_label("What to search for").fill("-blue")
    page.keyboard.press("Enter")
    query = {"combine": [{"text": "red", "weight": 1}, {"text": "blue", "weight": -0.3}]}
    expected = [hit.id for hit in site.client.collection("photos").search([query], top_k=24)[0].hits]
    shows(page, expected)
    address = page.url
    other = site.page(f"?{address.split('?')[1]}")
    found(other, 24)
    shows(other, expected)
    expect(other.get_by_role("group", name="not blue")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("group", name="not blue")).to_have_count(0)
    found(page, 24)
    shows(page, [hit.id for hit in site.client.collection("photos").search(["red"], top_k=24)[0].hits])


def test_an_older_answer_never_replaces_a_newer_one(site: Site) -> None:
    page, held = site.page(), list[Route]()

    def late(route: Route) -> None:
        if json.loads(route.request.post_data or "")["queries"][0]["text"] == "red":
            held.append(route)
        else:
            route.continue_()

    page.route("**/search", late)
    with page.expect_request("**/search"):
        page.get_by_label("What to search for").fill("red")
    page.get_by_label("What to search for").fill("green")
    newer = [hit.id for hit in site.client.collection("photos").search(["green"], top_k=24)[0].hits]
    shows(page, newer)
    assert len(held) == 1
    with contextlib.suppress(Error):  # the page has given it up
        held[0].continue_()
    page.wait_for_timeout(800)
    assert hits(page) == newer


def test_a_thousand_hits_scroll(site: Site) -> None:
    page = site.page("?view=search&collection=vectors&q=red")
    expect(page.locator(".count")).to_contain_text("200+ hits")
    for _ in range(60):
        page.mouse.wheel(0, 6000)
        page.wait_for_timeout(60)
        if "1,000 hits" in (page.locator(".count").text_content() or ""):
            break
    found(page, "1,000")
    expected = site.client.collection("vectors").search(["red"], top_k=1000)[0].hits
    shows(page, [hit.id for hit in expected])


def test_more_and_less_like_a_hit(site: Site) -> None:
    page = site.page("?view=search&q=red")
    found(page, 24)
    first = hits(page)[0]
    page.locator(".hits button.open").first.click()
    with page.expect_request("**/search") as asked:
        page.get_by_role("button", name="More like this").click()
    assert json.loads(asked.value.post_data or "")["queries"][0]["combine"] == [
        {"text": "red", "weight": 1},
        {"id": first, "weight": 0.5},
    ]
    found(page, 23)
    page.wait_for_load_state("networkidle")
    last = hits(page)[-1]
    page.locator(".hits button.open").last.click()
    with page.expect_request("**/search") as asked:
        page.get_by_role("button", name="Less like this").click()
    assert json.loads(asked.value.post_data or "")["queries"][0]["combine"][2] == {"id": last, "weight": -0.1}


def test_what_is_copied_as_curl_and_python_gives_the_same_answer(site: Site, tmp_path: Path) -> None:
    page = site.page("?view=search&term=1|text|red&term=-0.5|text|blue&filter=year|≥|2019")
    found(page, 15)
    expected = hits(page)[:10]
    page.get_by_role("button", name="Copy as curl").click()
    command = page.locator(".copy pre").text_content() or ""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert [hit["id"] for hit in json.loads(done.stdout)["results"][0]["hits"]] == expected
    page.get_by_role("button", name="Copy as Python").click()
    program = page.locator(".copy pre").text_content() or ""
    printed = list[str]()
    exec(compile(program, "copied", "exec"), {"print": lambda *words: printed.append(str(words[0]))})  # noqa: S102
    assert printed == expected


def test_a_picture_that_is_searched_with_is_copied_as_its_file(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture("green", 9))
    page = site.page()
    given(page, picture("green", 9), "drop")
    page.get_by_label("What to search for").fill("-it's red")
    page.keyboard.press("Enter")
    query = {"combine": [{"image": picture("green", 9), "weight": 1}, {"text": "it's red", "weight": -0.3}]}
    expected = [hit.id for hit in site.client.collection("photos").search([query], top_k=24)[0].hits]
    shows(page, expected)
    page.get_by_role("button", name="Copy as curl").click()
    command = page.locator(".copy pre").text_content() or ""
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [hit["id"] for hit in json.loads(done.stdout)["results"][0]["hits"]] == expected[:10], done.stderr
    page.get_by_role("button", name="Copy as Python").click()
    program = page.locator(".copy pre").text_content() or ""
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert [line.split()[0] for line in done.stdout.splitlines()] == expected[:10], done.stderr


def test_a_collection_that_is_not_there_is_said_and_none_is_searched_instead(site: Site) -> None:
    page = site.page("?view=search&collection=gone&q=red")
    expect(page.get_by_role("heading", name="There is no collection gone")).to_be_visible()
    page.get_by_role("button", name="photos (24)").click()
    found(page, 24)


# Classify, teach, localise


def chosen(page: Page, *files: tuple[str, bytes]) -> None:
    page.locator(".drop input[type=file]").set_input_files(
        [{"name": name, "mimeType": "image/png", "buffer": pixels} for name, pixels in files]
    )


def test_pictures_are_classified_as_by_the_api_and_a_bad_one_fails_alone(site: Site) -> None:
    page = site.page("?view=classify&labels=red,green,blue")
    chosen(page, ("a.png", picture("green", 3)), ("bad.png", b"no picture"), ("b.png", picture("blue", 4)))
    expected = site.client.classify([picture("green", 3), picture("blue", 4)], labels=["red", "green", "blue"])
    rows = page.locator(".results > li")
    expect(rows).to_have_count(3)
    for row, wanted in ((0, expected[0]), (2, expected[1])):
        shown = rows.nth(row).locator(".bars .said").all_text_contents()
        assert shown == [each.label for each in wanted]
        numbers = rows.nth(row).locator(".bars .number").all_text_contents()
        assert [float(each) for each in numbers] == pytest.approx([each.score for each in wanted], abs=0.006)
    expect(rows.nth(1)).to_contain_text("bad.png")
    page.get_by_label("Scores").select_option("none")
    cosines = site.client.classify([picture("green", 3)], labels=["red", "green", "blue"], activation="none")
    expect(rows.first.locator(".bars .number").first).to_have_text(f"{cosines[0][0].score:.2f}")
    assert "activation=none" in page.url


def test_a_label_is_taught_by_dropping_pictures_onto_it(site: Site) -> None:
    """Words that the model does not know, and pictures that say what they mean."""
    page = site.page("?view=classify&labels=zif,mab")
    chosen(page, ("new.png", picture("blue", 50)))
    page.get_by_label("Name of the set").fill("mine")
    page.get_by_role("button", name="Store").click()
    expect(page.get_by_role("heading", name="Teach mine")).to_be_visible()
    for label, colour in (("zif", "red"), ("mab", "blue")):
        place = f".teach li[data-label={label}]"
        for seed in range(3):
            given(page, picture(colour, seed), ("drop", "dialog", "drop")[seed], onto=place)
            expect(page.locator(place)).to_contain_text(f"{seed + 1} picture")
    expect(page.locator(".teach")).to_contain_text("Leaving one out, 1.00 are right")
    expect(page.locator(".results .said").first).to_have_text("mab")
    assert site.client.label_set("mine").examples == 6
    assert page.locator(".results > li").count() == 1, "what is dropped onto a label is not classified"
    page.close()  # it would ask for the set that goes
    site.client.delete_label_set("mine")
    site.refused(422)  # chances, which the set has none of, asked for while its first head is being fitted


def test_the_chance_that_a_label_is_there_stands_beside_the_score(site: Site) -> None:
    page = site.page("?view=classify&labels=red,green,blue")
    chosen(page, ("a.png", picture("green", 3)), ("bad.png", b"no picture"), ("b.png", picture("blue", 4)))
    rows = page.locator(".results > li")
    pictures = [picture("green", 3), picture("blue", 4)]
    present = site.client.classify(pictures, labels=["red", "green", "blue"], activation="sigmoid")
    scores = site.client.classify(pictures, labels=["red", "green", "blue"])
    expect(rows.first.locator(".chance")).to_have_count(3)
    for row, alone, compared in zip((0, 2), present, scores, strict=True):
        by_label = {each.label: each.score for each in alone}
        numbers = [float(each) for each in rows.nth(row).locator(".chance").all_text_contents()]
        assert numbers == pytest.approx([by_label[each.label] for each in compared], abs=0.006)
    page.get_by_label("Scores").select_option("none")
    expect(rows.first.locator(".bars.both")).to_have_count(0)
    expect(rows.first.locator(".number")).to_have_count(3)
    assert rows.first.locator(".chance").count() == 0


def test_chances_of_an_older_answer_never_stand_beside_a_newer_one(site: Site) -> None:
    page = site.page("?view=classify&labels=red,green,blue")
    held: list[Route] = []
    holds: list[bool] = []

    def hold(route: Route) -> None:
        if holds and b"sigmoid" in (route.request.post_data_buffer or b""):
            held.append(route)
        else:
            route.continue_()

    page.route("**/classify", hold)
    chosen(page, ("a.png", picture("green", 3)))
    expect(page.locator(".chance")).to_have_count(3)
    holds.append(True)
    page.get_by_label("Labels, one a line").fill("red,green")
    expect(page.locator(".results .said")).to_have_count(2)
    while not held:
        page.wait_for_timeout(20)
    assert page.locator(".chance").count() == 0
    held.pop().continue_()
    expect(page.locator(".chance")).to_have_count(2)


def test_templates_of_ones_own(site: Site) -> None:
    page = site.page("?view=classify&labels=red,green,blue")
    chosen(page, ("a.png", picture("green", 3)))
    page.get_by_label("Wording").select_option("own")
    own = page.get_by_label("Templates, one a line")
    own.fill("a {} {}")
    expect(page.locator("#wording")).to_have_text("Each line takes {} once.")
    expect(page.locator(".results > li")).to_have_count(0)
    own.fill("green {}\n{} and blue")
    wanted = site.client.classify(
        [picture("green", 3)], labels=["red", "green", "blue"], templates=["green {}", "{} and blue"]
    )[0]
    plain = site.client.classify([picture("green", 3)], labels=["red", "green", "blue"])[0]
    assert f"{wanted[0].score:.2f}" != f"{plain[0].score:.2f}", "the templates make a difference"
    expect(page.locator(".results .number").first).to_have_text(f"{wanted[0].score:.2f}")
    page.reload()
    expect(page.get_by_label("Templates, one a line")).to_have_value("green {}\n{} and blue")


def test_a_wrong_example_is_seen_and_taken_away(site: Site) -> None:
    site.client.teach(
        "fruit",
        {
            "cherry": [*(picture("red", seed) for seed in range(4)), picture("blue", 9)],
            "plum": [picture("blue", seed) for seed in range(4)],
        },
    )
    page = site.page("?view=classify&set=fruit")
    cherry = page.locator(".teach li[data-label=cherry]")
    expect(cherry).to_contain_text("5 pictures")
    cherry.get_by_role("button", name="Pictures of cherry").click()
    wrong = cherry.locator(".examples li.taken")
    expect(wrong).to_have_count(1)
    expect(wrong).to_contain_text("left out it is taken for plum")
    wrong.get_by_role("button").click()
    expect(cherry).to_contain_text("4 pictures")
    expect(page.locator(".teach")).to_contain_text("Leaving one out, 1.00 are right")
    expect(cherry.locator(".examples li")).to_have_count(4)
    expect(cherry.locator(".examples li.taken")).to_have_count(0)
    assert site.client.label_set("fruit").examples == 8
    site.client.delete_label_set("fruit")


def test_a_label_set_is_not_replaced_by_storing_another_under_its_name(site: Site) -> None:
    site.client.teach("pets", {"red": [picture("red", seed) for seed in range(2)], "blue": [picture("blue")]})
    page = site.page("?view=classify&labels=green,blue")
    page.get_by_label("Name of the set").fill("pets")
    page.get_by_role("button", name="Store").click()
    expect(page.get_by_role("alert")).to_contain_text("There is a label set pets")
    assert site.client.label_set("pets").examples == 3
    site.client.delete_label_set("pets")


def test_boxes_of_one_picture_never_stand_on_another(site: Site) -> None:
    page = site.page("?view=localise&labels=red,blue")
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[16:56, 24:72, 0] = 255
    first, second = BytesIO(), BytesIO()
    Image.fromarray(pixels).save(first, "PNG")
    Image.fromarray(pixels[:, :, ::-1].copy()).save(second, "PNG")
    chosen(page, ("red.png", first.getvalue()))
    expect(page.get_by_role("img", name="Found: red")).to_be_visible()
    held = list[Route]()
    page.route("**/localize", lambda route: held.append(route))
    chosen(page, ("blue.png", second.getvalue()))
    expect(page.get_by_text("Looking…")).to_be_visible()
    expect(page.locator(".overlay")).to_have_count(0)
    page.wait_for_timeout(600)
    for route in held:
        route.continue_()
    expect(page.get_by_role("img", name="Found: blue")).to_be_visible()
    # Work is kept while another view is looked at.
    page.unroute("**/localize")
    page.get_by_role("link", name="Status").click()
    page.get_by_role("link", name="Localise").click()
    expect(page.get_by_role("img", name="Found: blue")).to_be_visible()


@pytest.mark.parametrize("masks", [False, True])
def test_labels_are_drawn_where_the_api_says(site: Site, masks: bool) -> None:
    pixels = np.zeros((96, 128, 3), dtype=np.uint8)
    pixels[16:56, 24:72, 0] = 255
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    page = site.page("?view=localise&labels=red,blue" + ("&masks=1" if masks else ""))
    chosen(page, ("red.png", buffer.getvalue()))
    expected = site.client.localize([buffer.getvalue()], labels=["red", "blue"])[0].labels
    assert [(each.label, each.present) for each in expected] == [("red", True), ("blue", False)]
    shown = page.locator(".overlay rect")
    expect(shown).to_have_count(len(expected[0].boxes))
    box = expected[0].boxes[0]
    drawn = [float(shown.first.get_attribute(name) or "") for name in ("x", "y", "width", "height")]
    assert drawn == pytest.approx([box.x0, box.y0, box.x1 - box.x0, box.y1 - box.y0])
    expect(page.locator(".bars .number").first).to_have_text(f"{expected[0].score:.2f}")
    # Heat, and masks over it, lie on the red part.
    expect(page.locator(".overlay canvas")).to_have_count(2 if masks else 1)
    page.wait_for_timeout(300)
    inside, outside = page.locator(".overlay canvas").last.evaluate(
        """canvas => {
          const at = (x, y) => canvas.getContext("2d").getImageData(x * canvas.width, y * canvas.height, 1, 1).data[3];
          return [at(48 / 128, 36 / 96), at(110 / 128, 85 / 96)];
        }"""
    )
    assert inside > 100 > outside
    page.get_by_label("Present from a score of").fill("1")
    expect(shown).to_have_count(0)
    page.get_by_label("Opacity").fill("0")
    assert page.locator(".overlay canvas").first.evaluate("each => each.style.opacity") == "0"


# Errors, keys, hostile names


def test_a_key_is_asked_for_and_kept_in_this_tab_alone(
    colour_store: Path, tmp_path: Path, site: Site, serving: Callable[..., AbstractContextManager[str]]
) -> None:
    options = ("--store", colour_store, "--model", "colours", "--data", tmp_path, "--api-keys", "secret-key-1")
    with serving(*options) as url, Client(url, api_key="secret-key-1") as client:
        client.create_collection("photos").upsert_images([picture("red")], ids=["red.png"])
        locked = Site(url, client, site.browser, [], [])
        page = locked.page("?view=search&q=red")
        page.get_by_label("API key").fill("wrong")
        page.get_by_role("button", name="Use it").click()
        expect(page.get_by_text("did not take the key of this tab")).to_be_visible()
        page.get_by_label("API key").fill("secret-key-1")
        page.keyboard.press("Enter")
        found(page, 1)
        assert "secret" not in page.url
        held = page.evaluate("() => [Object.values(localStorage), document.cookie, Object.values(sessionStorage)]")
        assert held == [[], "", ["secret-key-1"]]
        page.reload()
        found(page, 1)
        page.get_by_role("button", name="Copy as curl").click()
        assert "secret" not in (page.locator(".copy pre").text_content() or "")
        page.close()
        locked.refused(401)
        assert not locked.troubles
        assert not locked.foreign


def test_a_busy_server_is_waited_for_and_that_is_said(site: Site) -> None:
    page, answers = site.page(), iter([429, 429])

    def busy(route: Route) -> None:
        status = next(answers, None)
        if status is None:
            route.continue_()
        else:
            error = {"message": "too much work", "type": "overloaded_error", "code": "overloaded", "param": None}
            route.fulfill(status=status, headers={"Retry-After": "1"}, json={"error": error})

    page.route("**/search", busy)
    page.get_by_label("What to search for").fill("red")
    expect(page.get_by_role("alert")).to_contain_text("The server is busy. too much work")
    expect(page.get_by_role("alert")).to_contain_text("Trying again")
    found(page, 24)
    expect(page.get_by_role("alert")).to_have_count(0)
    site.refused(429)


def test_a_server_that_is_gone_is_said_in_words(site: Site) -> None:
    page = site.page()
    expect(page.locator(".count")).to_contain_text("Type words")
    page.route("**/search", lambda route: route.abort())
    page.get_by_label("What to search for").fill("red")
    expect(page.get_by_role("alert")).to_contain_text("The server does not answer")
    page.unroute("**/search")
    page.get_by_role("button", name="Try again").click()
    found(page, 24)
    site.troubles.clear()  # the browser's own words about the request that was cut off


def test_hostile_names_stay_text(site: Site) -> None:
    client = site.client
    hostile = client.create_collection("hostile", metadata_schema={HOSTILE[0]: "string"})
    hostile.upsert_images(
        [picture("red", seed) for seed in range(len(HOSTILE))],
        ids=HOSTILE,
        metadata=[{HOSTILE[0]: each, "title": each} for each in HOSTILE],
    )
    with pytest.warns(UserWarning, match="knows nothing"):
        client.put_label_set("hostile", labels=["red", *HOSTILE])
    page = site.page("?view=search&collection=hostile&q=red")
    found(page, len(HOSTILE))
    assert sorted(hits(page)) == sorted(HOSTILE)
    page.locator(".hits button.open").first.click()
    expect(page.locator("dialog td").first).to_have_text(re.compile("window.hit"))
    page.get_by_role("button", name="Find similar", exact=True).click()
    expect(page.locator(".field .chip")).to_have_count(1)
    page.goto(f"{site.url}/ui?view=classify&set=hostile")
    chosen(page, ("<b>x</b>.png", picture("red")))
    expect(page.locator(".results .said")).to_have_count(5)
    page.goto(f"{site.url}/ui?view=localise&labels=" + "%0A".join(["red", "%3Cimg src=x onerror=window.hit=1%3E"]))
    chosen(page, ("<b>x</b>.png", picture("red")))
    expect(page.locator(".bars .said").nth(1)).to_have_text(HOSTILE[0])
    page.goto(f"{site.url}/ui?view=status")
    expect(page.get_by_role("link", name="hostile")).to_be_visible()
    assert page.evaluate("() => window.hit") is None
    client.delete_collection("hostile")
    client.delete_label_set("hostile")


def test_an_empty_server_says_what_to_do(
    colour_store: Path, tmp_path: Path, site: Site, serving: Callable[..., AbstractContextManager[str]]
) -> None:
    with serving("--store", colour_store, "--model", "colours", "--data", tmp_path) as url, Client(url) as client:
        empty = Site(url, client, site.browser, [], [])
        page = empty.page()
        expect(page.get_by_role("heading", name="Nothing to search yet")).to_be_visible()
        expect(page.locator("pre")).to_contain_text(f"clipworks index FOLDER --collection photos --url {url}")
        assert not empty.troubles


# All views


def test_status_tells_models_collections_and_the_live_load(site: Site) -> None:
    page = site.page("?view=status")
    expect(page.get_by_role("status").filter(has_text="Server")).to_contain_text("ready")
    page.get_by_text("colours@1").first.click()
    model = site.client.model("colours")
    expect(page.locator(".model").first).to_contain_text(str(model.space))
    expect(page.locator(".model").first).to_contain_text(str(model.fingerprint.image))
    expect(page.locator(".model").first).to_contain_text("sees a picture at 48 x 48 pixels")
    expect(page.get_by_role("row", name=re.compile("^photos"))).to_contain_text("24")
    page.get_by_role("button", name="Copy as curl").click()
    copied = page.get_by_label("The copied text")
    expect(copied).to_contain_text(f"curl {site.url}/collections")
    _, collections, _ = (copied.text_content() or "").splitlines()
    done = subprocess.run(["bash", "-c", collections], capture_output=True, text=True, timeout=60)
    assert [each["name"] for each in json.loads(done.stdout)["data"]] == ["photos", "vectors"]
    for _ in range(30):
        site.client.embed(texts=["red"])
    expect(page.locator(".tile", has_text="Latency")).to_contain_text(re.compile(r"\d+ ms"))
    expect(page.locator(".tile", has_text="a second").locator("strong")).to_have_text(re.compile(r"^[1-9]\d*\.\d$"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
def test_no_serious_finding_of_accessibility_and_no_sideways_scrolling_on_a_phone(
    site: Site, view: str, dark: bool
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = site.page(
        f"?view={view}&q=red&labels=red,blue&term=-1|text|green&min=0.1&filter=year|≥|2017",
        width=375,
        height=740,
        dark=dark,
    )
    page.wait_for_load_state("networkidle")
    if view in ("classify", "localise"):
        chosen(page, ("a.png", picture("red", 1)))
        expect(page.locator(".bars .number").first).to_be_visible()
    if view == "status":
        page.locator("summary").first.click()
        expect(page.locator(".model table")).to_be_visible()
    page.wait_for_timeout(300)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
    serious = [each for each in Axe().run(page).response["violations"] if each["impact"] in ("serious", "critical")]
    assert not [(each["id"], [node["html"] for node in each["nodes"]]) for each in serious]

"""The page of a review as a person meets it, in a headless Chromium."""

import json

import pytest

from tests.support.openai_server import openai_server
from tests.support.page_server import Visitor
from tests.support.reviewing import LOG, chat, review_server, saved, write_rows

pytestmark = pytest.mark.slow  # a Chromium
HOSTILE = (
    "<script>window.hacked = 1</script><img src=x onerror='window.hacked=1'> \x1b[2J a\u202eb [a](javascript:alert(1))"
)


@pytest.fixture
def file(tmp_path):
    return write_rows(tmp_path / "rows.jsonl", [chat(n) for n in range(4)])


@pytest.fixture
def visitor(browser, file):
    with review_server(file) as url:
        one = Visitor(browser, f"{url}/review")
        yield one
        assert one.problems == []
        one.context.close()


def title(visitor) -> str:
    return visitor.page.locator("#title").inner_text()


def at(visitor, row: int) -> None:
    visitor.page.locator("#title", has_text=f"Row {row}").wait_for()


def test_rows_are_decided_by_keys_and_saved_at_once(visitor, file):
    keys = visitor.page.keyboard
    assert title(visitor) == "Row 0 undecided"
    assert visitor.page.locator(".part pre").first.inner_text() == f"What is it?\n{LOG}"
    assert visitor.page.locator(".unknown").all_text_contents() == ["10.9.9.9 (not in the log)"]
    keys.press("a")
    at(visitor, 1)
    assert [(one["row"], one["verdict"], one["reviewer"]) for one in saved(file)] == [(0, "accept", "ann")]
    assert visitor.page.evaluate("document.activeElement.id") == "title"
    keys.press("n")
    keys.type("a wrong address, a e r")
    keys.press("Enter")
    keys.press("r")
    at(visitor, 2)
    assert (saved(file)[1]["verdict"], saved(file)[1]["note"]) == ("reject", "a wrong address, a e r")
    keys.press("e")
    box = visitor.page.locator(".answer textarea")
    assert visitor.page.evaluate("document.activeElement.closest('.answer') !== null")
    box.fill("Root was refused.\nFrom 10.0.0.5.")
    keys.press("Control+Enter")
    at(visitor, 3)
    assert saved(file)[2]["edits"] == {"messages/1/content": "Root was refused.\nFrom 10.0.0.5."}
    keys.press("k")
    at(visitor, 2)
    assert title(visitor) == "Row 2 edited"
    assert visitor.page.locator(".answer pre").inner_text() == "Root was refused.\nFrom 10.0.0.5."
    keys.press("u")
    visitor.page.locator("#title", has_text="undecided").wait_for()
    assert saved(file)[3]["verdict"] == "open"
    visitor.status("Row 2 is undecided. 2 of 4 rows are decided.")
    assert "Root was refused from 10.0.0.5" in visitor.page.locator(".answer pre").inner_text()


def test_an_edit_that_is_left_changes_nothing_and_one_without_change_accepts(visitor, file):
    keys = visitor.page.keyboard
    keys.press("e")
    visitor.page.locator(".answer textarea").fill("other")
    keys.press("Escape")
    assert "Root was refused" in visitor.page.locator(".answer pre").inner_text()
    assert not file.with_name("rows.jsonl.reviews.jsonl").exists()
    keys.press("e")
    keys.press("Control+Enter")
    at(visitor, 1)
    assert saved(file)[0]["verdict"] == "accept"


def test_a_reload_goes_on_and_rows_are_found_by_their_verdict(visitor, file):
    visitor.page.click("#reject")
    at(visitor, 1)
    visitor.go(visitor.page.url.partition("#")[0])
    assert title(visitor) == "Row 1 undecided"  # the first that is
    visitor.page.select_option("#which", "reject")
    at(visitor, 0)
    visitor.page.select_option("#which", "edit")
    visitor.status("No row is edited.")
    visitor.page.select_option("#which", "")
    visitor.page.fill("#number", "3")
    visitor.page.keyboard.press("Enter")
    at(visitor, 3)
    visitor.page.focus("#title")
    visitor.page.keyboard.press("j")
    visitor.status("There is no row after this one.")


def test_single_keys_can_be_turned_off(visitor, file):
    """For people whose speech is taken for keys."""
    visitor.page.keyboard.press("?")
    visitor.page.uncheck("#single")
    visitor.page.click("#keys >> text=Done")
    visitor.page.focus("#title")
    visitor.page.keyboard.press("a")
    visitor.page.wait_for_timeout(200)
    assert title(visitor) == "Row 0 undecided"
    visitor.page.click("#accept")
    at(visitor, 1)


def test_what_could_not_be_saved_is_told_and_the_row_stays(visitor, file):
    file.with_name("rows.jsonl.reviews.jsonl").mkdir()
    visitor.page.keyboard.press("a")
    visitor.status("Not saved: ")
    assert title(visitor) == "Row 0 undecided"
    visitor.problems.clear()  # the browser reports the status


def test_hostile_rows_are_shown_as_text(browser, tmp_path):
    row = chat(0, HOSTILE)
    row["messages"][0]["role"] = "<b>user</b>"
    file = write_rows(tmp_path / "<img src=x onerror=alert(1)>.jsonl", [row])
    with review_server(file) as url:
        visitor = Visitor(browser, f"{url}/review")
        text = visitor.page.locator(".answer pre").text_content().replace(" (not in the log)", "")
        assert "<script>window.hacked = 1</script>" in text and r"\x1b[2J a\u202eb" in text
        assert visitor.page.evaluate("window.hacked") is None
        assert visitor.page.locator("#parts :is(script, img, b, a)").count() == 0
        assert "\u202e" not in visitor.page.content()
        assert visitor.page.locator(".part h3").first.inner_text() == "<b>user</b>"
        visitor.page.keyboard.press("e")
        assert visitor.page.input_value(".answer textarea").replace("\u202e", "") == HOSTILE.replace("\u202e", "")
        visitor.page.keyboard.press("Control+Enter")
        visitor.status("It is the last one.")
        assert saved(file)[0]["verdict"] == "accept"  # what was not touched stays, marks and all
        assert visitor.problems == []
        visitor.context.close()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_sizes_colours_and_what_a_screen_reader_meets(browser, file, width, scheme):
    with openai_server() as fake, review_server(file, base_url=f"{fake.url}/v1") as url:
        visitor = Visitor(browser, f"{url}/review", width, 844 if width == 390 else 800, scheme)
        assert visitor.violations() == []
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
        assert visitor.page.locator("html").get_attribute("data-theme") == scheme
        visitor.page.keyboard.press("e")
        assert visitor.violations() == []
        visitor.page.keyboard.press("Escape")
        visitor.page.keyboard.press("?")
        assert visitor.violations() == []
        visitor.page.keyboard.press("Escape")
        visitor.page.keyboard.press("a")
        at(visitor, 1)
        visitor.page.click(".tabs >> text=Chat")
        visitor.page.locator("#question").wait_for()
        visitor.page.locator("body[data-ready]").wait_for()
        assert visitor.violations() == []
        assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
        assert visitor.ask("why?") == "yes"
        visitor.page.click(".tabs >> text=Review")
        at(visitor, 1)
        assert visitor.problems == []
        visitor.context.close()


def test_two_reviewers_do_not_see_each_other(browser, file):
    with review_server(file, "ann") as first, review_server(file, "bob") as second:
        for url, key in ((first, "a"), (second, "r")):
            visitor = Visitor(browser, f"{url}/review")
            assert title(visitor) == "Row 0 undecided"
            visitor.page.keyboard.press(key)
            at(visitor, 1)
            visitor.context.close()
    assert [(one["reviewer"], one["verdict"]) for one in saved(file)] == [("ann", "accept"), ("bob", "reject")]
    assert json.dumps(saved(file)[0]["edits"]) == "{}"

"""The page as a person meets it, in a headless Chromium, in front of a scripted server."""

import re

import pytest

from logtrain.conversation.tasks import TASKS
from logtrain.data.conversations import conversations
from logtrain.data.files import InputFile
from tests.support.page_server import Visitor, page_server, until

pytestmark = pytest.mark.slow  # a Chromium
LOG = "".join(
    f"Dec 10 06:55:{n % 60:02} LabSZ sshd[{24200 + n}]: Failed password from 10.0.0.{n % 5}\n" for n in range(40)
)
LONG = "".join(
    f"Dec 10 06:{n // 60 % 60:02}:{n % 60:02} LabSZ sshd[{n}]: Connection closed by 10.0.0.9\n" for n in range(5000)
)
ANSWER = (
    "The user came from `10.0.0.4`, see L2 and **lines 3-7**; not from 10.9.9.9 at 06:55:01.\n\n- sshd[24203] at L99"
)


def test_a_pasted_log_is_asked_about_and_the_answer_checked(visitor, served):
    _, fake = served
    fake.answers.append(ANSWER)
    visitor.paste(LOG)
    assert re.match(r"pasted, 40 lines\n×\n[\d,]+ tokens", visitor.attached())
    visitor.page.click("text=Root cause")
    visitor.page.locator(".turn.assistant").wait_for()
    visitor.answered()
    (asked,) = fake.asked
    lines = LOG.splitlines()
    numbered = "\n".join(f"L{n} {line}" for n, line in enumerate(lines, 1))
    assert asked["messages"] == [{"role": "user", "content": f"{TASKS['cause'].prompt}\n{numbered}"}]
    assert (asked["model"], asked["max_tokens"]) == ("base", 1024)
    assert visitor.page.locator(".turn .unknown").all_text_contents() == [
        "10.9.9.9 (not in the log)",
        "L99 (not in the log)",
    ]
    assert "2 of 7 entities are not in the log" in visitor.page.locator(".facts").inner_text()
    assert visitor.page.locator("button.line").all_inner_texts() == ["L2", "lines 3-7"]
    visitor.page.click("text=lines 3-7")
    assert visitor.page.locator(".row.marked").all_inner_texts() == [f"{n}{lines[n - 1]}" for n in range(3, 8)]


def test_entities_are_marked_while_the_answer_streams_and_stop_ends_it(visitor, served):
    _, fake = served
    fake.held = True
    fake.answers.append("From 10.9.9.9 and then 10.0.0.4")
    visitor.paste(LOG)
    visitor.attached()
    visitor.page.fill("#question", "who?")
    visitor.page.click("#send")
    visitor.page.locator(".turn.assistant", has_text="From").wait_for()
    assert visitor.page.locator("#send").is_hidden()
    visitor.page.click("#stop")
    visitor.status("Stopped.")
    until(lambda: fake.left == 1)  # the server is free again
    assert "stopped" in visitor.page.locator(".facts").inner_text()
    fake.release()
    fake.answers.append("yes")
    visitor.page.click("text=Regenerate")
    assert visitor.answered() == "yes"
    assert visitor.page.locator(".turn.assistant .tools span").inner_text() == "2 / 2"


def test_a_reload_brings_everything_back(visitor, served):
    url, fake = served
    fake.answers.append("first")
    visitor.drop("app.log", LOG)
    visitor.attached()
    visitor.ask("why?")
    visitor.drop("other.log", LOG)
    visitor.attached("other.log")
    visitor.page.fill("#question", "half a ques")
    visitor.page.wait_for_timeout(700)
    visitor.go(url)
    assert visitor.page.locator(".turn").count() == 2
    assert visitor.page.locator(".turn.assistant .body").inner_text() == "first"
    assert visitor.page.input_value("#question") == "half a ques"
    assert "other.log, 40 lines" in visitor.attached("tokens")


def test_branches_of_edits_and_answers(visitor, served):
    _, fake = served
    fake.answers += ["one", "two", "three"]
    visitor.ask("why?")
    visitor.page.click("text=Regenerate")
    assert visitor.answered() == "two"
    visitor.page.click("text=Edit")
    visitor.page.fill(".edit textarea", "how?")
    visitor.page.click(".edit >> text=Send")
    assert visitor.answered() == "three"
    assert [turn["messages"][-1]["content"] for turn in fake.asked] == ["why?", "why?", "how?"]
    visitor.page.locator("[aria-label='earlier branch']").first.click()
    assert visitor.page.locator(".turn .body").all_inner_texts() == ["why?", "two"]
    visitor.page.locator("[aria-label='earlier branch']").last.click()
    assert visitor.page.locator(".turn .body").all_inner_texts() == ["why?", "one"]
    assert visitor.ask("and then?") == "yes"
    assert [turn["content"] for turn in fake.asked[-1]["messages"]] == ["why?", "one", "and then?"]


def test_what_is_saved_is_a_row_that_prepare_reads_and_loads_again(visitor, served, tmp_path):
    _, fake = served
    fake.answers += ["one <|eot|> é", "two"]
    visitor.paste(LOG)
    visitor.attached()
    visitor.ask("why?")
    visitor.page.click("text=Regenerate")
    visitor.answered()
    visitor.page.click("#save")
    with visitor.page.expect_download() as saving:
        visitor.page.click("text=Every branch")
    path = tmp_path / "saved.json"
    saving.value.save_as(path)
    rows = [list(row.turns) for row in conversations(InputFile(path), "messages")]
    assert [row[-1].content for row in rows] == ["two", "one <|eot|> é"]
    assert rows[0][0].content == fake.asked[0]["messages"][0]["content"]
    visitor.page.click("#new")
    visitor.page.click("text=Forget it")
    visitor.page.locator("#empty").wait_for()
    assert visitor.page.locator(".turn").count() == 0
    visitor.page.set_input_files("#rows", path)
    visitor.status("saved.json: 2 turns")
    assert visitor.page.locator(".turn .chip").inner_text() == "log, 40 lines"
    assert visitor.page.locator(".turn.assistant .tools span").inner_text() == "1 / 2"
    visitor.page.click(".turn .chip")
    assert visitor.page.locator(".row").first.inner_text() == f"1{LOG.splitlines()[0]}"
    visitor.page.click("#viewer .close")
    visitor.ask("and then?")
    assert fake.asked[-1]["messages"][0] == fake.asked[0]["messages"][0]
    for text, message in (
        ("{", "not JSON"),
        ("[]", "no turn in it"),
        ('{"messages": [{"role": "tool"}]}', "row 1, message 1"),
    ):
        path.write_text(text)
        visitor.page.set_input_files("#rows", path)
        visitor.status(message)
    assert visitor.page.locator(".turn").count() == 4


def test_a_long_log_is_folded_and_unfolded(visitor, served):
    _, fake = served
    lines = LONG.splitlines()
    lines[3210] = "Dec 10 06:59:59 LabSZ kernel: disk /dev/sdb failed"
    visitor.drop("long.log", "\n".join(lines))
    said = visitor.attached("folded")
    assert re.search(r"folded: \d+ lines whole, [\d,]+ tokens instead of [\d,]+", said)
    visitor.page.click("#attached .chip")
    rows = visitor.page.locator(".lines")
    rows.locator(".gap button").first.click()
    first, last = map(int, re.findall(r"L(\d+)", rows.locator(".gap").first.inner_text()))
    assert rows.locator(".row.inner").first.inner_text() == f"{first}{lines[first - 1]}"
    visitor.page.evaluate("document.querySelector('.lines').scrollTop = 0")
    if last - first < 30:
        rows.get_by_text("Send these lines too").first.click()
        visitor.status("folded")
    visitor.page.click("#viewer .close")
    visitor.ask("what failed?")
    sent = fake.asked[0]["messages"][0]["content"].splitlines()
    assert f"L3211 {lines[3210]}" in sent
    assert len(sent) < 200
    if last - first < 30:
        assert f"L{first} {lines[first - 1]}" in sent
    visitor.page.click(".turn .chip")
    rows.locator(".group", has_text="T1 4,999 lines").locator("button").click()
    assert rows.locator(".row").first.inner_text() == f"1{lines[0]}"
    visitor.page.click("text=All lines")
    visitor.page.evaluate("document.querySelector('.lines').scrollTop = 20 * 3205")
    rows.get_by_text("disk /dev/sdb failed").wait_for()


def test_lines_of_a_log_that_was_sent_folded_go_with_the_next_question(visitor, served):
    _, fake = served
    lines = LONG.splitlines()
    lines[99], lines[109] = "kernel: disk /dev/sda failed", "kernel: panic at 0x4711"
    visitor.drop("long.log", "\n".join(lines))
    visitor.attached("folded")
    visitor.ask("what is it?")
    visitor.page.click(".turn .chip")
    texts = visitor.page.locator(".gap button").all_inner_texts()
    gaps = [(text, *map(int, re.findall(r"L(\d+)", text))) for text in texts]
    [(gap, first, last)] = [one for one in gaps if len(one) == 3 and one[1] > 100 and one[2] < 110]
    visitor.page.get_by_text(gap, exact=True).click()
    visitor.page.get_by_text("Send these lines too").click()
    assert f"{last - first + 1} lines of it" in visitor.attached("lines of it")
    fake.answers.append(f"It is L{first} and L4999.")
    visitor.ask("and these?")
    numbered = "\n".join(f"L{n} {lines[n - 1]}" for n in range(first, last + 1))
    assert fake.asked[1]["messages"][2]["content"] == f"and these?\n{numbered}"
    assert visitor.page.locator("button.line").all_inner_texts() == [f"L{first}", "L4999"]


def test_a_text_is_found_in_a_log(visitor):
    visitor.drop("long.log", LONG)
    visitor.attached("folded")
    visitor.page.click("#attached .chip")
    find = visitor.page.locator("[aria-label='Find in the log']")
    find.fill("SSHD[444]")
    find.press("Enter")
    assert visitor.page.locator(".row.marked").inner_text() == f"445{LONG.splitlines()[444]}"
    find.fill("nowhere")
    find.press("Enter")
    assert visitor.page.locator("#viewer h2").inner_text() == "long.log: nothing found"


def test_a_question_that_was_stopped_before_its_answer_comes_back(visitor, served):
    _, fake = served
    visitor.ask("first")
    visitor.paste(LOG)
    visitor.attached()
    fake.delay = 5.0
    visitor.page.fill("#question", "second")
    visitor.page.keyboard.press("Enter")
    visitor.page.locator("#stop").wait_for()
    visitor.page.keyboard.press("Escape")
    visitor.status("pasted")
    assert visitor.page.input_value("#question") == "second"
    assert "pasted, 40 lines" in visitor.attached()
    assert visitor.page.locator(".turn").count() == 2
    fake.delay = 0.0
    assert visitor.ask("third") == "yes"
    assert [turn["content"].splitlines()[0] for turn in fake.asked[-1]["messages"]] == ["first", "yes", "third"]


def test_an_answer_that_failed_is_not_part_of_what_is_asked_next(visitor, served):
    _, fake = served
    fake.answers.append("status 500")
    visitor.ask("first")
    visitor.problems.clear()  # the browser reports the status
    visitor.ask("second")
    assert [turn["content"] for turn in fake.asked[-1]["messages"]] == ["second"]


def test_a_question_that_does_not_fit_is_told_before_it_is_sent(visitor, served):
    _, fake = served
    visitor.page.fill("#question", "error " * 4000)
    visitor.status("more than the model has room for")
    visitor.page.click("#send")
    visitor.page.wait_for_timeout(500)
    assert fake.asked == []
    visitor.page.fill("#question", "error")
    visitor.page.locator("#meter", has_text="tokens of 4,096").wait_for()
    visitor.page.wait_for_timeout(600)
    assert visitor.page.locator("#status").inner_text() == ""


HOSTILE = (
    "<script>window.hacked = 1</script> <img src=x onerror='window.hacked=1'> [a](javascript:window.hacked=1) "
    "[b](data:text/html,x) ![c](http://127.0.0.1:9/x.png) <b>bold</b> &lt; \x1b[31mred\x07 a\u202eb\u2066c\u200bd\n\n"
    "| <script>window.hacked=1</script> | [x](JaVaScRiPt:window.hacked=1) |\n|--|--|\n"
    "| </td></table><h1>out</h1> | `<i>` |\n\n"
    "```html\n</code></pre><script>window.hacked=1</script>\n```\n\n```\nnever closed"
)


def test_hostile_text_is_shown_as_text(visitor, served):
    _, fake = served
    fake.answers.append(HOSTILE)
    visitor.drop("<img src=x onerror=alert(1)>\u202e.log", "<script>window.hacked=1</script>\n\x1b[2J\n" + LOG)
    visitor.attached()
    visitor.ask("</textarea><script>window.hacked=1</script>")
    visitor.page.click(".turn .chip")
    body = visitor.page.locator(".turn.assistant .body").inner_text()
    for piece in (
        "<script>window.hacked = 1</script>",
        "[a](javascript:window.hacked=1)",
        "<b>bold</b> &lt;",
        "never closed",
    ):
        assert piece in body
    assert r"\x1b[31mred\x07 a\u202eb\u2066c\u200bd" in body.replace(" (not in the log)", "")
    assert "\x1b" not in visitor.page.content() and "\u202e" not in visitor.page.content()
    assert visitor.page.evaluate("window.hacked") is None
    assert visitor.page.locator(".body script, .body img, .body b, .body i, .body h1, .lines script").count() == 0
    hrefs = visitor.page.locator(".body a").evaluate_all("(all) => all.map((one) => one.href)")
    assert hrefs == ["http://127.0.0.1:9/x.png"]
    assert "<script>window.hacked=1</script>" in visitor.page.locator(".lines").inner_text()


def test_an_error_of_the_server_is_shown_and_the_chat_goes_on(visitor, served):
    _, fake = served
    fake.answers += ["status 503", "well"]
    visitor.ask("why?")
    visitor.problems.clear()  # the browser reports the status
    assert "503: status 503" in visitor.page.locator(".facts").inner_text()
    visitor.page.click("text=Regenerate")
    assert visitor.answered() == "well"


def test_settings_go_with_the_request(visitor, served):
    _, fake = served
    visitor.page.select_option("#model", "hdfs-adapter")
    visitor.page.click("#set")
    for name, value in {
        "system": "be brief",
        "temperature": "0",
        "top_p": "0.5",
        "seed": "7",
        "max_tokens": "99",
        "key": "k1",
    }.items():
        visitor.page.fill(f"#settings [name={name}]", value)
    visitor.page.select_option("#settings [name=theme]", "dark")
    visitor.page.uncheck("#settings [name=numbers]")
    visitor.page.click("#settings >> text=Done")
    visitor.page.locator("html[data-theme=dark]").wait_for()
    visitor.paste(LOG)
    visitor.attached()
    visitor.ask("why?")
    (asked,) = fake.asked
    assert asked["messages"] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": f"why?\n{LOG}"}]
    assert {name: asked[name] for name in ("model", "temperature", "top_p", "seed", "max_tokens", "stream")} == {
        "model": "hdfs-adapter",
        "temperature": 0,
        "top_p": 0.5,
        "seed": 7,
        "max_tokens": 99,
        "stream": True,
    }
    assert fake.keys == ["Bearer k1"]


def test_by_keyboard_alone(visitor, served):
    _, fake = served
    fake.answers += ["see L2", "yes"]
    visitor.paste(LOG)
    visitor.attached()
    keys = visitor.page.keyboard
    keys.type("first line")
    keys.press("Shift+Enter")
    keys.type("second")
    keys.press("Enter")
    keys.press("Enter")  # once more does not ask twice
    visitor.page.locator(".turn.assistant").wait_for()
    visitor.answered()
    assert len(fake.asked) == 1
    assert fake.asked[0]["messages"][0]["content"].startswith("first line\nsecond\nL1 ")
    visitor.page.focus("button.line")
    keys.press("Enter")
    assert visitor.page.locator(".row.marked").inner_text().startswith("2Dec")
    keys.press("Escape")
    assert visitor.page.locator("#viewer").is_hidden()
    assert visitor.page.evaluate("document.activeElement.id") == "question"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")])
def test_sizes_colours_and_what_a_screen_reader_meets(browser, served, width, scheme):
    url, fake = served
    fake.answers.append(
        f"# Top\n\n### Deep\n\n{ANSWER}\n\n| a | b |\n|--|--|\n| {'wide ' * 40} | 2 |\n\n```\n{'long ' * 99}\n```"
        + "\n\none more" * 40
        + "\n\nat 10.9.9.8"
    )
    visitor = Visitor(browser, url, width, 844 if width == 390 else 800, scheme)
    assert visitor.violations() == []
    visitor.drop("long.log", LONG)
    visitor.attached("folded")
    visitor.ask("why?")
    assert visitor.violations() == []
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
    assert visitor.page.evaluate("document.documentElement.scrollHeight - innerHeight") == 0, "the turns alone scroll"
    visitor.page.click(".turn .chip")
    assert visitor.violations() == []
    visitor.page.click("#viewer .close")
    for name in ("#set", "#new"):
        visitor.page.click(name)
        assert visitor.violations() == []
        visitor.page.keyboard.press("Escape")
    assert visitor.page.evaluate("document.documentElement.scrollWidth") == width
    assert visitor.problems == []


def test_in_front_of_a_server_that_cannot_count(browser):
    """Tokens are estimated, and said to be."""
    with page_server(can_count=False) as (url, fake):
        visitor = Visitor(browser, url)
        visitor.drop("long.log", LONG)
        assert "about" in visitor.attached("folded")
        assert visitor.ask("why?") == "yes"
        assert len(fake.asked[0]["messages"][0]["content"]) < 4096 * 3
        visitor.context.close()

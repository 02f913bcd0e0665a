"""The page of runs in a browser: nothing is cut off or wider than the window, on a phone or a desk."""

from pathlib import Path

import pytest

from logtrain import report
from logtrain.core.untrusted import sealed
from tests.entries.test_report import EXPORT, FORGETTING, write_run
from tests.support.page_server import chromium

TOO_WIDE = """() => [document.documentElement, ...document.querySelectorAll(".wide")]
    .filter((one) => one.scrollWidth > one.clientWidth + 1)
    .map((one) => `${one.scrollWidth} of ${one.clientWidth}: ${one.textContent.trim().slice(0, 40)}`)"""
NAMES = ("nlplog-8b-lora-r16-alpha32-lr1e-4-warmup-seed-1", "full_parameter_run_without_any_hyphen_in_its_name_at_all")


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> list[Path]:
    """The page of a run, and that of several."""
    folder, runs = tmp_path_factory.mktemp("runs"), []
    for name in (*NAMES, "x", f"{NAMES[1]}_2"):
        runs.append(str(run := write_run(folder / name)))
        (run / "export.json").write_bytes(sealed(EXPORT))
        (run / "forgetting.json").write_bytes(sealed(FORGETTING))
        (run / "plan.json").write_text('{"step_seconds": 2.0}')
    assert report.main([runs[0], "--no_pictures"]) == 0
    assert report.main([*runs, "--no_pictures", "--output", str(folder / "all.html")]) == 0
    return [Path(runs[0], "report.html"), folder / "all.html"]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(pages, width):
    with chromium() as browser:
        for file in pages:
            page = browser.new_page(viewport={"width": width, "height": 844})
            page.goto(file.as_uri())
            page.evaluate("() => document.querySelectorAll('details').forEach((one) => (one.open = true))")
            assert page.evaluate(TOO_WIDE) == []
            shown = page.locator("td", has_text="within a budget of 2.00%").first.bounding_box()
            assert shown is not None and shown["x"] + shown["width"] <= width

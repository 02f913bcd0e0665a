"""The page of an evaluation and its tables on the screen: all figures are there, under any name, and what they mean."""

import json
from html import escape
from pathlib import Path

from logtrain.data.questions import questions
from logtrain.evaluation.comparison import compare
from logtrain.evaluation.page import write_page
from logtrain.evaluation.results import Perplexity, Result
from logtrain.evaluation.samples import SAMPLE_METRICS
from logtrain.evaluation.score_table import BOLD, MULTIPLE, p_text
from logtrain.evaluation.screen import print_scores
from tests.support.samples import make_sample


def shown(page: str) -> dict[str, list[tuple[int, str]]]:
    """Heading -> (row, its gain or score) of each answer under it."""
    found = {}
    for part in page.split("<h2>")[1:]:
        heading, *sections = part.split("<h3>row ")
        titles = [section.split("</h3>")[0] for section in sections]
        if titles:
            found[heading.split("</h2>")[0]] = [(int(t.split(",")[0]), t.split(": ")[-1]) for t in titles]
    return found


BY = {
    "backend": "local", "dtype": "float32", "base_url": "", "prompts": "", "server_model": None,
    "sampling": {"temperature": 0.0, "max_new_tokens": 9},
}  # fmt: skip
ODD = ("Node.js", "45", "items", "<b>&", "plain")
TALK = (("system", "be brief"), ("user", "<i>why"), ("assistant", "so"), ("user", "and now"))


def write_odd_page(
    folder: Path, gains: dict[str, list[float]], without: dict[str, None] | None = None, **data
) -> tuple[str, Result]:
    """Of a question a task of ODD, by turns; the models' ROUGE-L is 0.5 and their gain over it. -> page, result"""
    n = len(next(iter(gains.values())))
    talk = [{"role": role, "content": content} for role, content in (*TALK, ("assistant", "<u>because"))]
    rows = [{"messages": talk, "domain": ODD[i % len(ODD)]} for i in range(n)]
    (folder / "test.json").write_text(json.dumps(rows))
    asked = list(questions(folder / "test.json", "messages"))
    blank = dict.fromkeys(SAMPLE_METRICS, 0.5) | {"json_valid": None, "stopped": 1.0}
    samples = {
        name: [
            make_sample(blank | {"rougeL": 0.5 + gain} | (without or {}), prediction=f"{name}<hr>{i}")._replace(
                question=question
            )
            for i, (question, gain) in enumerate(zip(asked, of_model, strict=True))
        ]
        for name, of_model in gains.items()
    }
    found = compare(samples)
    loss: Perplexity = {
        "perplexity": 2.0,
        "loss": 1.0,
        "bits_per_byte": 1.0,
        "tokens": 1,
        "sha256": "",
        "model_sha256": "",
    }
    models = {
        name: {**model, "path": "", "answered_by": BY, "perplexity": {"items": loss, "a.b": loss}}
        for name, model in found["models"].items()
    }
    counts = {"path": "x<y.json", "sha256": "", "questions": n, "rows": n, "left_out": {}, "too_long": []} | data
    result = {"data": counts, "models": models, "differences": found["differences"]}
    write_page(folder, result, samples)
    return (folder / "compare.html").read_text(), result


def test_tasks_of_any_name_have_their_tables(tmp_path):
    page, result = write_odd_page(tmp_path, {"a": [0.0] * 15, "b": [i / 100 for i in range(15)]})
    parts = {part.split("</h2>")[0]: part for part in page.split("<h2>")[1:]}
    for i, task in enumerate(ODD):
        part = parts[escape(task)]
        assert "<p>3 questions</p>" in part
        assert f"<td>{0.5 + (i + 5) / 100:.4f} " in part
        assert f"+{(i + 5) / 100:.4f} " in part
        p = result["differences"][0]["tasks"][task]["rougeL"]["p"]
        assert f", {escape(p_text(p))}</small>" in part
    assert not any(markup in page for markup in ("<b>&", "<i>", "<hr>", "<u>")) and "x&lt;y.json" in page
    assert "<td>items</td><td>2.000" in page and "<td>a.b</td><td>2.000" in page


def test_flips_are_on_the_page_and_the_screen(tmp_path, capsys):
    page, result = write_odd_page(tmp_path, {"a": [0.0] * 3, "b": [0.1] * 3})
    assert "Flips" not in page
    result["differences"][0]["flips"] = {"parsing": {"lost": [[4, 1]], "gained": []}}
    same = [make_sample(dict.fromkeys(SAMPLE_METRICS, 0.5))]
    write_page(tmp_path, result, {"a": same, "b": same})
    assert (
        "<li>b - a, parsing: 1 right -&gt; wrong (row 4); 0 wrong -&gt; right</li>"
        in (tmp_path / "compare.html").read_text()
    )
    print_scores(result)
    assert "flips of=b less=a task=parsing lost=1 gained=0" in capsys.readouterr().out.splitlines()


def test_each_model_is_held_against_the_first_and_gains_are_gains(tmp_path):
    page, _ = write_odd_page(
        tmp_path, {"a": [0.0] * 14, "b": [0.1, -0.2, 0.0, 0.3] + [0.0] * 10, "c": [i / 100 for i in range(1, 15)]}
    )
    assert shown(page) == {
        "Answers in which b gained most on a (R-L)": [(3, "+0.300"), (0, "+0.100")],
        "Answers in which b lost most on a (R-L)": [(1, "-0.200")],
        "Answers in which c gained most on a (R-L)": [(i, f"+{(i + 1) / 100:.3f}") for i in range(13, 3, -1)],
    }
    section = page.split("<section>")[1].split("</section>")[0]
    assert "a&lt;hr&gt;3" in section and "b&lt;hr&gt;3" in section and "c&lt;hr&gt;" not in section
    at = [section.index(f"<h3>{role}</h3><pre>{escape(content)}</pre>") for role, content in TALK]
    assert at == sorted(at)
    page, _ = write_odd_page(tmp_path, {"only": [0.1, 0.3, 0.2]})
    assert shown(page) == {
        "The best answers of only (R-L)": [(1, "0.800"), (2, "0.700")],
        "The worst answers of only (R-L)": [(0, "0.600")],
    }


def test_what_the_figures_mean_is_said_on_the_page_and_in_the_terminal(tmp_path, capsys, monkeypatch):
    data = {"questions": 70, "too_long": ["row 3: ..."], "left_out": {"bad rows": 2, "others": 0}}
    page, result = write_odd_page(tmp_path, {"a": [0.0] * 30, "b": [0.1] * 30}, **data)
    print_scores(result)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["left_out reason=too_long n=1", "left_out reason=bad_rows n=2"]
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "400")
    print_scores(result)
    terminal = capsys.readouterr().out
    for told in ("Left out: 1 too long", "Left out: 2 bad rows", "70 answers in 30 conversations", BOLD, MULTIPLE):
        assert told in terminal and told in page
    assert "0 others" not in terminal + page
    assert "mean of 30 conversations" in terminal
    stopped, difference = "1.0000{}0.8865 to 1.0000", "<b>+0.1000</b> <small>+0.1000 to +0.1000, p &lt; 0.001</small>"
    assert stopped.format(" <small>") in page and stopped.format(" (") in terminal  # 30 of 30
    assert difference in page and "+0.1000 (+0.1000 to +0.1000, p < 0.001)" in terminal
    page, result = write_odd_page(tmp_path, {"a": [0.0] * 5, "b": [0.1] * 5})
    assert "<b>" not in page
    assert "conversations" not in page and "Left out" not in page


def test_metrics_that_no_answer_can_have_are_left_out_and_told(tmp_path, capsys):
    """Of references in Chinese, say: no BLEU and no ROUGE."""
    beyond = dict.fromkeys(["bleu", "rouge1", "rouge2", "rougeL", "rougeLsum"])
    for names in (["only"], ["a", "b"]):
        folder = tmp_path / names[0]
        folder.mkdir()
        page, result = write_odd_page(folder, {name: [0.0] * 12 for name in names}, beyond)
        assert "No score, of 12: BLEU for 12, R-1 for 12, R-2 for 12, R-L for 12, R-Lsum for 12." in page
        assert "(Fuzzy)" in page or len(names) == 2
        assert "<td>BLEU</td>" not in page and "<td>Fuzzy</td>" in page
        print_scores(result)
        assert "no_score metric=bleu n=12" in capsys.readouterr().out

"""prepare of chat data: folders with every answer in them, an account that adds up, and what is shown."""

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from logtrain import prepare
from logtrain.data import chunks
from logtrain.data.pool import Pool
from logtrain.data.shards import CONTEXT, Split
from logtrain.text.chat_template import Turn
from logtrain.text.config import DATE
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import CHATML, SPECIAL, TRIMMING, make_chats, write_tokenizer
from tests.support.preparing import dump

# -- a folder --------------------------------------------------------------------------------------


def arguments(tokenizer: Path, output: Path | None, *inputs: Path, **flags) -> list[str]:
    flags = {"format": "sharegpt", "seq_len": 150, "valid_fraction": 0.2, "workers": 1} | flags
    if flags["format"] in ("sharegpt", "messages", "alpaca"):
        flags = {"too_long": "truncate_content"} | flags
    argv = ["--input", *map(str, inputs), "--tokenizer", str(tokenizer)]
    argv += ["--output", str(output)] if output else []
    for name, value in flags.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return argv


def read(folder: Path) -> list[tuple[tuple[int, int], str, np.ndarray]]:
    """((source, row), split, tokens) of each document."""
    found = []
    for name, of_split in json.loads((folder / "manifest.json").read_text())["splits"].items():
        split = Split.open(folder, name)
        records = np.concatenate([np.load(folder / shard["documents"]) for shard in of_split["shards"]])
        for i, record in enumerate(records):
            tokens = split.read(i, 0, int(split.lengths[i]))
            assert record["targets"] == split.targets[i] == (tokens < CONTEXT).sum()
            found.append(((int(record["source"]), int(record["row"])), name, tokens))
    return found


@pytest.mark.parametrize("too_long", ["drop", "split_turns", "truncate_content"])
def test_a_folder_and_its_account(chat_tokenizer, template, tmp_path, inline, capsys, too_long):
    rows = make_chats(150)
    rows[7] = {"conversations": [{"from": "human", "value": "why"}]}
    rows[9] = {"conversations": [{"from": "human", "value": "why"}, {"from": "tool", "value": "x"}]}
    inputs = [dump(tmp_path / "a.json", rows[:100]), dump(tmp_path / "b.json", rows[100:])]
    prepare.main(arguments(chat_tokenizer, tmp_path / "out", *inputs, too_long=too_long, max_bad_rows=2))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    found, cases = read(tmp_path / "out"), report["conversations"]

    assert report["rows"] == {key: sum(source[key] for source in report["sources"]) for key in report["rows"]}
    assert (report["rows"]["read"], report["rows"]["bad"], report["rows"]["conversations"]) == (150, 2, 148)
    assert [(bad["path"], bad["row"], bad["reason"][:8]) for bad in report["bad_rows"]] == [
        (str(inputs[0]), 7, "no assis"),
        (str(inputs[0]), 9, "turn 1: "),
    ]
    assert report["rows"]["dropped"] == cases["dropped"]["conversations"]
    assert report["rows"]["documents"] == report["total"]["documents"] == cases["total"]["documents"] == len(found)
    assert report["total"]["tokens"] == cases["total"]["tokens"] == sum(len(tokens) for _, _, tokens in found)
    targets = sum(int((tokens < CONTEXT).sum()) for _, _, tokens in found)
    assert report["total"]["targets"] == cases["total"]["targets"] == targets
    assert cases["total"]["conversations"] == 148
    case = {"drop": "dropped", "split_turns": "split", "truncate_content": "truncated"}[too_long]
    assert cases[case]["conversations"] > 20
    assert report["total"]["split_over_rows"] == 0
    for split in report["splits"].values():  # a conversation is never cut by the packer
        assert split["packed"]["pieces"] == split["documents"]

    by_row: dict = {}
    for key, split, tokens in found:
        by_row.setdefault(key, []).append((split, (tokens & ~np.uint32(CONTEXT)).tolist()))
    assert all(len({split for split, _ in of_row}) == 1 for of_row in by_row.values())  # parts stay together
    assert report["total"]["duplicates"] > 2
    whole = 0
    for i, row in enumerate(rows):
        if i in (7, 9):
            continue
        roles = {"human": "user", "gpt": "assistant"}
        turns = [Turn("system", row["system"])] if "system" in row else []
        turns += [Turn(roles[turn["from"]], turn["value"]) for turn in row["conversations"]]
        if len(ids := template.encode(turns)[0]) <= 150:
            assert [tokens for _, tokens in by_row[(i // 100, i % 100)]] == [ids]
            whole += 1
    assert whole == cases["whole"]["conversations"]

    assert manifest["chat"]["template"] == TRIMMING
    assert manifest["chat"]["template_sha256"] == template.sha256
    assert manifest["tokenizer"]["document_end"] == "<|eot|>"
    settings = {name: manifest["settings"][name] for name in ("format", "train_on", "too_long", "date")}
    assert settings == {"format": "sharegpt", "train_on": "all", "too_long": too_long, "date": DATE}
    assert "text_chars" not in manifest["settings"]
    printed = capsys.readouterr().out
    assert "rows read: 150, of them 148 conversations and 2 bad rows" in printed
    assert re.search(rf"^ *{case} +{cases[case]['conversations']} +{cases[case]['read_tokens']:,} ", printed, re.M)


def test_train_on_last(chat_tokenizer, template, tmp_path, inline):
    rows = [{"conversations": row["conversations"]} for row in make_chats(20)]
    path = dump(tmp_path / "a.json", rows)
    prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, train_on="last", seq_len=1000, valid_fraction=0))
    for (_, row), _, tokens in read(tmp_path / "out"):
        last = template.tokenizer.decode(tokens[tokens < CONTEXT].tolist(), skip_special=False)
        assert last == rows[row]["conversations"][-1]["value"] + "<|eot|>"


def test_messages_and_alpaca(chat_tokenizer, template, tmp_path, inline):
    turns = [Turn("user", "why error"), Turn("assistant", "disk")]
    rows = {
        "messages": {"messages": [turn._asdict() for turn in turns]},
        "alpaca": {"instruction": "why error", "input": "", "output": "disk"},
        "sharegpt": {"conversations": [{"from": "human", "value": "why error"}, {"from": "gpt", "value": "disk"}]},
    }
    for format, row in rows.items():
        path, output = dump(tmp_path / f"{format}.json", [row]), tmp_path / format
        prepare.main(arguments(chat_tokenizer, output, path, format=format, valid_fraction=0))
        ((_, _, tokens),) = read(output)
        assert (tokens & ~np.uint32(CONTEXT)).tolist() == template.encode(turns)[0]
        assert np.array_equal(tokens < CONTEXT, template.encode(turns)[1])


def test_too_long_error(chat_tokenizer, tmp_path, inline):
    path = dump(tmp_path / "a.json", make_chats(30))
    with pytest.raises(
        ValueError, match=r"a\.json row \d+: \d+ tokens, more than seq_len; give .* --too_long drop, split"
    ):
        prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, too_long="error"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"no conversation fits in seq_len = 9 tokens; give a greater --seq_len"):
        prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, seq_len=9))
    prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, too_long="error", seq_len=1000))
    assert len(read(tmp_path / "out")) == 30


def test_what_long_chats_lose_is_said_and_more_than_a_tenth_stops(chat_tokenizer, tmp_path, inline, capsys):
    answer = "because " * 1000
    long = [
        {"conversations": [{"from": "human", "value": f"why {i}"}, {"from": "gpt", "value": answer}]} for i in range(3)
    ]
    short = [
        {"conversations": [{"from": "human", "value": f"why {i}"}, {"from": "gpt", "value": f"so {i} " * 9}]}
        for i in range(57)
    ]
    path = dump(tmp_path / "a.json", [*long, *short])
    flags = {"format": "sharegpt", "seq_len": 100, "valid_fraction": 0.01, "too_long": "auto"}
    with pytest.raises(
        ValueError, match=r"\d\d% of the answers' tokens would be lost, .* choose: --too_long truncate_ans"
    ):
        prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, **flags))
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    for too_long, said in (("truncate_answer", "0 are left out, and 3 have a cut answer"), ("drop", "3 are left out")):
        prepare.main(arguments(chat_tokenizer, tmp_path / too_long, path, **(flags | {"too_long": too_long})))
        report = json.loads((tmp_path / too_long / "report.json").read_text())
        assert report["splits"]["valid"]["documents"] >= 1  # of 60 chats
        lost = 1 - report["total"]["targets"] / report["conversations"]["total"]["read_targets"]
        printed = " ".join(capsys.readouterr().out.split())
        assert (
            f"LOST: {lost:.1%} of the answers' tokens, for they do not fit into 100: of 60 conversations {said}"
            in printed
        )
        assert "over 100 tokens" not in printed
    kept = [tokens for (_, row), _, tokens in read(tmp_path / "truncate_answer") if row < 3]
    assert [len(tokens) for tokens in kept] == [100] * 3
    dump(path, short)
    prepare.main(arguments(chat_tokenizer, tmp_path / "short", path, **flags))
    assert "LOST" not in capsys.readouterr().out


def test_what_the_template_refuses_is_a_bad_row(tmp_path, inline, capsys):
    """A row in whose text it stumbles, in a worker, is counted with those that are bad to begin with."""
    source = (
        TRIMMING + "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    )
    folder = write_tokenizer(tmp_path / "tokenizer", source)
    good = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    rows = [{"conversations": good}, {"conversations": good, "system": "s"}, {"conversations": good[:1]}] * 2
    path = dump(tmp_path / "a.json", rows)
    with pytest.raises(
        ValueError, match=r"4 bad rows .*a\.json row 1, .*row 4: turn 1 \(user\): .*System role not supported"
    ):
        prepare.main(arguments(folder, tmp_path / "out", path, max_bad_rows=3, valid_fraction=0))
    prepare.main(arguments(folder, tmp_path / "out", path, max_bad_rows=4, valid_fraction=0))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [bad["row"] for bad in report["bad_rows"]] == [1, 2, 4, 5]
    assert (report["rows"]["read"], report["rows"]["bad"], report["rows"]["documents"]) == (6, 4, 2)


def test_bytes_do_not_depend_on_the_number_of_workers(chat_tokenizer, tmp_path, inline, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CHARS", 2000)
    rows = make_chats(120)
    rows[3] = rows[80] = {"conversations": []}
    path = dump(tmp_path / "a.json", rows)
    flags = {"max_bad_rows": 2, "shard_tokens": 5000}
    prepare.main(arguments(chat_tokenizer, tmp_path / "here", path, **flags))
    monkeypatch.setattr(prepare, "Pool", Pool)
    for workers in (1, 2):
        output = tmp_path / str(workers)
        prepare.main(arguments(chat_tokenizer, output, path, workers=workers, **flags))
        assert {f.name: f.read_bytes() for f in output.iterdir()} == {
            f.name: f.read_bytes() for f in (tmp_path / "here").iterdir()
        }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_on": "last"}, "train_on (all there, last now)"),
        ({"too_long": "drop"}, "too_long (truncate_content there, drop now)"),
        ({"format": "messages"}, "format (sharegpt there, messages now)"),
        ({"format": "alpaca"}, "format (sharegpt there, alpaca now)"),
        ({"template": "other.jinja"}, "other template;"),
        ({"template": "dated.jinja", "date": "2025-01-01"}, f"date ({DATE} there, 2025-01-01 now), template;"),
        ("eos", "named_tokens ("),
    ],
)
def test_prepared_otherwise_is_named(tmp_path, inline, monkeypatch, capsys, changed, message):
    monkeypatch.chdir(tmp_path)
    folder = write_tokenizer(tmp_path / "tokenizer")
    (tmp_path / "same.jinja").write_text(TRIMMING)
    (tmp_path / "other.jinja").write_text(TRIMMING.replace("| trim", ""))
    (tmp_path / "dated.jinja").write_text(TRIMMING.replace("bos_token", "bos_token ~ strftime_now('%Y')"))
    path = dump(tmp_path / "a.json", make_chats(20))
    prepare.main(arguments(folder, tmp_path / "out", path))
    prepare.main(arguments(folder, tmp_path / "out", path, template="same.jinja"))  # where it stands does not matter
    assert "already prepared" in capsys.readouterr().out
    if changed == "eos":
        write_tokenizer(folder, pad_token="<|eot|>")
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare.main(arguments(folder, tmp_path / "out", path, **(changed if isinstance(changed, dict) else {})))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"format": "corpus", "train_on": "last"},
            "train_on = last has no meaning with format = corpus; it is for sharegpt, mes",
        ),
        ({"format": "nlplog", "template": "x"}, "template = x has no meaning with format = nlplog"),
        ({"format": "nlplog", "too_long": "drop"}, "too_long = drop has no meaning with format = nlplog"),
        ({"format": "corpus", "date": "2025-01-01"}, "date = 2025-01-01 has no meaning with format = corpus"),
        (
            {"document_end": "<|eot|>"},
            "document_end = <|eot|> has no meaning with format = sharegpt; it is for auto, nlplog",
        ),
        ({"text_chars": 5}, "text_chars = 5 has no meaning with format = sharegpt"),
        (
            {"format": "chatml"},
            '--format chatml: expected one of "auto", "nlplog", "corpus", "sharegpt", "messages", "alp',
        ),
        ({"train_on": "first"}, '--train_on first: expected one of "all", "last"'),
        ({"date": "26 Jul"}, "date = 26 Jul: not a date as 2024-07-26"),
        ({"date": "2025-01-01"}, "never asks for the date (with strftime_now), so date = 2025-01-01 has no effect"),
        ({"train_on": "last", "too_long": "split_turns"}, "take another of the two"),
        ({"template": "no.jinja"}, "no.jinja: no such file"),
        ({"show": -1}, "show = -1 must be at least 0"),
        (
            {"format": "corpus"},
            "No row is good; they look like sharegpt: give --format sharegpt",
        ),
        ({"format": "auto", "text_chars": 5}, "text_chars = 5 has no meaning with format = sharegpt"),
        ({"format": "messages", "bad_rows": "skip"}, "they look like sharegpt: give --format sharegpt"),
    ],
)
def test_bad_settings(chat_tokenizer, tmp_path, inline, flags, message):
    path = dump(tmp_path / "a.json", make_chats(3))
    with pytest.raises(ValueError) as error:
        prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, **flags))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_output_is_required_but_to_show(chat_tokenizer, tmp_path):
    with pytest.raises(ValueError, match=re.escape("output: required; give --output ..., or set it in a TOML file")):
        prepare.main(arguments(chat_tokenizer, None, dump(tmp_path / "a.json", make_chats(3))))


# -- what is shown ---------------------------------------------------------------------------------


@pytest.fixture
def to_show(tmp_path) -> Path:
    human, gpt = {"from": "human", "value": "why \x1b[31m<|eot|>?"}, {"from": "gpt", "value": "disk\nerror"}
    rows = [{"conversations": [human]}, {"conversations": [human, gpt] * 2}]
    rows.append({"conversations": [human | {"value": "disk " * 500}, gpt]})
    rows.append({"conversations": [human, gpt | {"value": "disk " * 500}]})
    return dump(tmp_path / "a.json", rows + rows)


def test_show(chat_tokenizer, to_show, capsys):
    prepare.main(arguments(chat_tokenizer, None, to_show, show=3))
    shown = capsys.readouterr().out
    question = "<|start|>user<|header|>\n\nwhy \\x1b[31m<|eot|>?<|eot|><|start|>assistant<|header|>\n\n"
    assert f"<|begin|>{question}{{+disk\nerror<|eot|>+}}{question}{{+disk\nerror<|eot|>+}}\n" in shown
    assert f"{to_show} row 0: a bad row: no assistant turn, so nothing to train on\n" in shown
    assert re.search(r"row 2: 1\d\d tokens, \d+ of them targets, truncated, of [\d,]+ tokens\n", shown)
    assert re.search(r"row 3: dropped, of [\d,]+ tokens\n", shown)
    assert "\n[...]\n" in shown
    assert "row 4" not in shown
    assert [file.name for file in to_show.parent.iterdir()] == ["a.json"]


def test_show_of_text(chat_tokenizer, tmp_path, capsys):
    path = dump(tmp_path / "a.json", [{"text": "why error"}, {"text": "disk"}])
    prepare.main(arguments(chat_tokenizer, None, path, show=1, format="auto"))
    said, *lines = capsys.readouterr().out.splitlines()
    assert said.startswith('format: corpus, by the column "text" of ')
    assert lines[0].endswith("a.json row 0: 4 tokens, 3 of them targets")
    assert lines[1:] == ["<|begin|>{+why error<|end_of_text|>+}"]


def test_show_on_a_terminal(chat_tokenizer, to_show):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "logtrain.prepare", *arguments(chat_tokenizer, None, to_show, show=1)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "80"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    plain = shown.decode().replace("\r\n", "\n")
    assert plain.count("\x1b[1;32mdisk\x1b[0m\n\x1b[1;32merror<|eot|>\x1b[0m") == 2
    assert "\x1b[31m" not in plain
    assert "{+" not in plain


# -- real input ------------------------------------------------------------------------------------


def test_real_chats(shared, llama3_tokenizer, tmp_path):
    """Every answer of 4,096 tokens and less is there, whole, whatever was cut of the questions."""
    path = shared / "data" / "chat" / "json_analysis_val.json"
    flags = {"seq_len": 4096, "valid_fraction": 0}
    prepare.main(arguments(llama3_tokenizer, tmp_path / "out", path, **flags))
    tokenizer, rows = Tokenizer.load(llama3_tokenizer), json.loads(path.read_bytes())
    found = read(tmp_path / "out")
    assert [row for (_, row), _, _ in found] == list(range(100))
    for (_, row), _, tokens in found:
        answer = tokenizer.decode(tokens[tokens < CONTEXT].tolist(), skip_special=False)
        assert answer == rows[row]["conversations"][1]["value"].strip() + "<|eot_id|>"
        assert len(tokens) <= 4096
    cases = json.loads((tmp_path / "out" / "report.json").read_text())["conversations"]
    assert cases["truncated"]["conversations"] == 64
    assert 4090 * 64 < cases["truncated"]["tokens"] <= 4096 * 64


def test_chatml_has_no_bos(tmp_path, inline):
    folder = write_tokenizer(tmp_path / "tokenizer", CHATML, bos=False)
    path = dump(tmp_path / "a.json", make_chats(10))
    prepare.main(arguments(folder, tmp_path / "out", path, valid_fraction=0))
    start = Tokenizer.load(folder).token_id(SPECIAL[2])
    assert {int(tokens[0]) & ~CONTEXT for _, _, tokens in read(tmp_path / "out")} == {start}

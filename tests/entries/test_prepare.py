"""prepare, from files to shards: every token in its place, an account that adds up, and what is shown of it."""

import gzip
import itertools
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers

from logtrain import prepare
from logtrain.data import chunks
from logtrain.data.pack import pieces
from logtrain.data.report import Counts
from logtrain.observe import progress
from logtrain.text.tokenizer import Tokenizer
from tests.support.preparing import BOS, END, arguments, dump, make_rows, read_documents, text_of

# -- tokens and splits -------------------------------------------------------------------------------


def test_every_document_is_there_in_order(bytes_tokenizer, tmp_path, inline):
    first, second = make_rows(150), make_rows(50, seed=1)
    lines = "".join(f"line {i} of a log, with <|end_of_text|> in it\r\n" for i in range(100))
    log = tmp_path / "Sys_2k.log.gz"
    log.write_bytes(gzip.compress(lines.encode()))
    inputs = [dump(tmp_path / "a.json", first), log, dump(tmp_path / "b.json", second)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, text_chars=200, shard_tokens=2000))

    tokenizer = Tokenizer.load(bytes_tokenizer)
    texts = [[text_of(row) for row in first], [], [text_of(row) for row in second]]
    cut = lines.splitlines(keepends=True)
    texts[1] = ["".join(cut[i : i + 4]) for i in range(0, 100, 4)]
    assert max(map(len, texts[1])) <= 200 < min(map(len, texts[1])) * 5 / 4

    found = read_documents(tmp_path / "out")
    assert found.keys() == {"train", "valid"}
    everything = sorted(((r["source"], r["row"]), tokens, r) for documents in found.values() for tokens, r in documents)
    assert [key for key, _, _ in everything] == [(s, i) for s, of_file in enumerate(texts) for i in range(len(of_file))]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for (source, row), tokens, record in everything:
        assert tokens == [BOS, *tokenizer.encode(texts[source][row]), END]
        assert (record["length"], record["targets"]) == (len(tokens), len(tokens) - 1)
        domain = ["a", "Sys_2k", "b"][source] if source == 1 else (first, [], second)[source][row]["domain"]
        assert manifest["domains"][record["domain"]] == (domain or "ab"[source // 2])
    for split in found.values():  # the order of the input, and then that of what might have been held out
        order = [(r["source"], r["row"]) for _, r in split]
        assert sum(a > b for a, b in itertools.pairwise(order)) <= (split is found["train"])
    assert len(manifest["splits"]["train"]["shards"]) > 3


def by_split(folder: Path) -> dict[str, set[tuple[int, ...]]]:
    return {name: {tuple(tokens) for tokens, _ in documents} for name, documents in read_documents(folder).items()}


def test_the_split_goes_by_text_and_seed_alone(bytes_tokenizer, tmp_path, inline):
    rows = make_rows(1000)
    whole = dump(tmp_path / "a.json", rows)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "whole", whole))
    sides = by_split(tmp_path / "whole")
    distinct = len({text_of(row) for row in rows})
    assert not sides["train"] & sides["valid"], "a duplicate stands on both sides"
    assert len(sides["train"]) + len(sides["valid"]) == distinct
    assert abs(len(sides["valid"]) - 0.2 * distinct) < 4 * (distinct * 0.2 * 0.8) ** 0.5

    parts = [dump(tmp_path / "y.json", rows[500:]), dump(tmp_path / "x.json", rows[:500])]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "parts", *parts))
    assert by_split(tmp_path / "parts") == sides
    prepare.main(arguments(bytes_tokenizer, tmp_path / "less", whole, valid_fraction=0.1))
    assert by_split(tmp_path / "less")["valid"] < sides["valid"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "seed", whole, seed=1))
    assert by_split(tmp_path / "seed")["valid"] != sides["valid"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "none", whole, valid_fraction=0))
    assert read_documents(tmp_path / "none").keys() == {"train"}


def test_of_few_documents_one_is_held_out(bytes_tokenizer, tmp_path, inline, capsys):
    path = dump(tmp_path / "a.json", make_rows(20))
    chosen = set()
    for seed in range(10):
        output = tmp_path / f"out{seed}"
        prepare.main(arguments(bytes_tokenizer, output, path, valid_fraction=1e-6, seed=seed))
        (document,) = by_split(output)["valid"]
        chosen.add(document)
        assert "these have the lowest hash" in capsys.readouterr().out
        assert json.loads((output / "report.json").read_text())["held_out"]["is_least"] is True
    assert len(chosen) > 4
    twins = dump(tmp_path / "b.json", [{"text": f"error {i} in 0x{i:x}"} for i in range(50)])
    prepare.main(arguments(bytes_tokenizer, tmp_path / "twins", twins, valid_fraction=0.1))
    held_out = json.loads((tmp_path / "twins" / "report.json").read_text())["held_out"]
    assert (held_out["documents"], held_out["near_twins"]) == (5, 5)
    same = dump(tmp_path / "c.json", [{"text": "error"}] * 5)
    with pytest.raises(ValueError, match=r"of 5 documents leaves none for validation, for they are all the same"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "same", same))
    assert not (tmp_path / "same").exists()
    with pytest.raises(ValueError, match=r"leaves none for training; lower it"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "all", path, valid_fraction=0.9999))


def test_without_bos(bytes_tokenizer, tmp_path, inline):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((bytes_tokenizer / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    path = dump(tmp_path / "a.json", [{"text": "ab"}])
    prepare.main(arguments(folder, tmp_path / "out", path, valid_fraction=0, document_end="<|begin_of_text|>"))
    ((tokens, record),) = read_documents(tmp_path / "out")["train"]
    assert tokens == [*Tokenizer.load(folder).encode("ab"), BOS]
    assert record["targets"] == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    facts = {name: manifest["tokenizer"][name] for name in ("bos_id", "document_end", "document_end_id", "vocab_size")}
    assert facts == {"bos_id": None, "document_end": "<|begin_of_text|>", "document_end_id": BOS, "vocab_size": 258}


def test_with_sentencepiece(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    rows = make_rows(60)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text_of(row) for row in rows),
        model_prefix=str(tmp_path / "tokenizer" / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    prepare.main(arguments(tmp_path / "tokenizer", tmp_path / "out", dump(tmp_path / "a.json", rows)))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer" / "tokenizer.model"))
    found = {record["row"]: tokens for split in read_documents(tmp_path / "out").values() for tokens, record in split}
    assert found == {i: [1, *library.encode(text_of(row)), 2] for i, row in enumerate(rows)}


# -- the account -------------------------------------------------------------------------------------


def test_the_account_adds_up(bytes_tokenizer, tmp_path, inline, capsys):
    good = make_rows(300)
    bad = [{"instruction": "Q"}, {"text": ""}, 5, {"text": "a", "label": "b"}, {"text": "\ud800"}]
    rows = good[:100] + bad[:2] + good[100:] + bad[2:]
    inputs = [dump(tmp_path / "a.json", rows), dump(tmp_path / "b.json", [{"text": "x" * 1000}, *make_rows(30)])]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, max_bad_rows=5))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = read_documents(tmp_path / "out")

    assert report["rows"] == {"read": 336, "bad": 5, "documents": 331}
    assert [(s["read"], s["bad"], s["documents"]) for s in report["sources"]] == [(305, 5, 300), (31, 0, 31)]
    assert [(b["path"], b["row"]) for b in report["bad_rows"]] == [
        (str(inputs[0]), row) for row in (100, 101, 302, 303, 304)
    ]
    assert report["bad_rows"][0]["reason"] == 'no "output"'

    counts = Counts._fields
    assert counts == ("documents", "duplicates", "twins", "split_over_rows", "tokens", "targets")
    for count in counts:
        assert report["total"][count] == sum(split[count] for split in report["splits"].values())
        for name, split in report["splits"].items():
            assert split[count] == sum(domain[name][count] for domain in report["domains"].values() if name in domain)
    seen = set()
    for name, split in report["splits"].items():  # and all of it is so of the tokens on the disk
        lengths = [len(tokens) for tokens, _ in found[name]]
        distinct = {tuple(tokens) for tokens, _ in found[name]}
        assert not distinct & seen
        seen |= distinct
        again = len(lengths) - len(distinct)
        expected = (len(lengths), again, again, sum(n > 100 for n in lengths), sum(lengths))
        assert tuple(split[count] for count in counts) == (*expected, sum(lengths) - len(lengths))
        packed, cut = split["packed"], pieces(np.array(lengths), 100)
        assert (packed["pieces"], packed["tokens"]) == (len(cut.length_P), cut.length_P.sum())
        assert packed["tokens"] == split["tokens"] + packed["pieces"] - split["documents"]
        assert packed["rows"] * 100 >= packed["tokens"]
        assert packed["fill"] == packed["tokens"] / (packed["rows"] * 100) > 0.9
    assert report["total"]["duplicates"] > 50
    assert 50 < report["total"]["split_over_rows"] < 300
    assert report["domains"].keys() == {"HDFS", "BGL", "a", "b"}

    printed = capsys.readouterr().out
    assert re.search(
        rf"^ *total +331 +{report['total']['duplicates']} .* {report['total']['targets']:,} *$", printed, re.M
    )
    assert "rows read: 336, of them 331 documents and 5 bad rows" in printed
    assert f'{inputs[0]} row 100: no "output"' in printed
    assert "\x1b" not in printed


def test_many_domains_are_summed_in_print(bytes_tokenizer, tmp_path, inline, capsys):
    rows = [{"text": "x" * (100 - i), "domain": f"[red]d{i}"} for i in range(40)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", rows), valid_fraction=0))
    printed = capsys.readouterr().out
    assert re.search(r"^ *\[red\]d29 +1 +0 +0 +0 +73 +72 *$", printed, re.M)
    assert re.search(rf"^ *\(10 others\) +10 +0 +0 +0 +{sum(100 - i + 2 for i in range(30, 40))} ", printed, re.M)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["domains"]) == 40


def test_too_many_bad_rows_stop_the_run(bytes_tokenizer, tmp_path, inline, capsys):
    rows = [{"text": "a"}, {"text": 1}, {"text": "b"}, *[{"text": ""}] * 4]
    path = dump(tmp_path / "a.json", rows)
    for allowed in (0, 4):
        with pytest.raises(ValueError, match=r"5 bad rows .counting from 0.: ") as error:
            prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=allowed, valid_fraction=0))
        message = str(error.value)
        assert f'{path} row 1: "text" is a number, not a string; {path} row 3, {path} row 4, ' in message
        assert f'{path} row 6: "text" is empty. Mend' in message
        assert message.endswith(". Mend the input, or leave them out with --max_bad_rows 5 or --bad_rows skip")
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=5, valid_fraction=0))
    assert len(read_documents(tmp_path / "out")["train"]) == 2
    prepare.main(arguments(bytes_tokenizer, tmp_path / "skip", path, bad_rows="skip", valid_fraction=0))
    assert len(read_documents(tmp_path / "skip")["train"]) == 2
    assert json.loads((tmp_path / "skip" / "report.json").read_text())["rows"] == {"read": 7, "bad": 5, "documents": 2}
    assert capsys.readouterr().out.count(f"  {path} row ") == 5 + 5
    dump(path, [{"text": f"{i % 2 or ''}"} for i in range(60)])
    with pytest.raises(ValueError, match=r'30 bad rows .* row 18: "text" is empty; and 20 more\. Mend'):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "many", path))
    with pytest.raises(ValueError, match="max_bad_rows = 3 has no meaning with bad_rows = skip"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "many", path, bad_rows="skip", max_bad_rows=3))


def test_nothing_but_allowed_bad_rows(bytes_tokenizer, tmp_path, inline):
    with pytest.raises(ValueError, match="the input holds no document"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", []), max_bad_rows=1))


# -- what is shown -----------------------------------------------------------------------------------


def test_progress_lines(bytes_tokenizer, tmp_path, inline, monkeypatch, capsys):
    monkeypatch.setattr(chunks, "CHUNK_CHARS", 3000)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    inputs = [dump(tmp_path / f"{i}.json", make_rows(60, seed=i)) for i in range(4)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs))
    lines = [dict(pair.split("=") for pair in line.split()[1:]) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) > 5
    percent = [float(line["percent"]) for line in lines]
    assert percent == sorted(percent)
    assert 0 < percent[0] < 50
    assert percent[-1] == 100
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert int(lines[-1]["documents"]) == report["total"]["documents"] == 240
    assert int(lines[-1]["tokens"]) == report["total"]["tokens"]
    assert float(lines[-1]["eta_seconds"]) == 0


def test_on_a_terminal(bytes_tokenizer, tmp_path):
    path = dump(tmp_path / "a.json", make_rows(200))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "logtrain.prepare", *arguments(bytes_tokenizer, tmp_path / "out", path)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
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
    shown = shown.decode()
    total = json.loads((tmp_path / "out" / "report.json").read_text())["total"]
    assert f"{total['tokens']:,} tokens" in shown  # of the bar
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown)
    assert re.search(rf"│ total +│ +200 │ .* {total['targets']:,} │", plain)


# -- real input --------------------------------------------------------------------------------------


def test_real_logs(llama3_tokenizer, shared, tmp_path):
    """Every token on the disk is the tokenizers library's own, and every character of the input is behind one."""
    loglm = shared / "data" / "loglm" / "loglm_instruction_2632.json"
    logs = sorted((shared / "data" / "loghub").glob("*/*.log"))
    prepare.main(
        arguments(llama3_tokenizer, tmp_path / "out", loglm, *logs, seq_len=2048, valid_fraction=0.05, workers=2)
    )
    library = tokenizers.Tokenizer.from_file(str(llama3_tokenizer / "tokenizer.json"))
    library.encode_special_tokens = True
    found = read_documents(tmp_path / "out")
    everything = sorted(((r["source"], r["row"]), tokens) for split in found.values() for tokens, r in split)
    rows = json.loads(loglm.read_bytes())
    texts = [f"Human: {row['instruction']}\n{row['input']}\nAssistant: {row['output']}\n" for row in rows]
    text_of_log = dict.fromkeys(range(1, 13), "")
    for (source, _), tokens in everything[len(texts) :]:
        texts.append(library.decode(tokens[1:-1]))
        text_of_log[source] += texts[-1]
    assert [text_of_log[i + 1].encode() for i in range(12)] == [log.read_bytes() for log in logs]
    expected = library.encode_batch(texts, add_special_tokens=False)
    assert [tokens for _, tokens in everything] == [[128000, *encoding.ids, 128001] for encoding in expected]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"]["bad"] == 0
    assert report["splits"]["train"]["packed"]["fill"] > 0.99

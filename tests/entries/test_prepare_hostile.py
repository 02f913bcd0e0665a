"""prepare with inputs that are meant to hurt: each is a bad row or one line, in time and within memory."""

import json
import re

import pytest
import tokenizers
from tokenizers import models

from logtrain import prepare
from logtrain.data import chunks
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.preparing import arguments, dump, make_rows, read_documents, text_of


def test_a_row_that_is_too_long(bytes_tokenizer, tmp_path, inline):
    rows = [{"text": "a" * length} for length in (10, (1 << 20) - 12, (1 << 20) - 11)]  # 12 bytes of JSON around it
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    flags = {"valid_fraction": 0, "max_row_mb": 1}
    with pytest.raises(
        ValueError, match=r"^1 bad row .*: .*a\.jsonl row 2: longer than 1,048,576 bytes; if it is meant"
    ):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, **flags))
    prepare.main(arguments(bytes_tokenizer, tmp_path / "one", path, **flags, max_bad_rows=1))
    assert [len(tokens) - 2 for tokens, _ in read_documents(tmp_path / "one")["train"]] == [10, (1 << 20) - 12]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "all", path, **flags | {"max_row_mb": 2}))
    assert len(read_documents(tmp_path / "all")["train"]) == 3


def test_a_column_that_is_no_domain(bytes_tokenizer, tmp_path, inline, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_DOMAINS", 4)
    rows = make_rows(30)
    path = dump(tmp_path / "a.json", [row | {"domain": f"request {i}"} for i, row in enumerate(rows)])
    with pytest.raises(ValueError, match="more than 4 domains; leave them out with --ignore_columns domain"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, ignore_columns="domain", valid_fraction=0))
    texts = [Tokenizer.load(bytes_tokenizer).decode(tokens) for tokens, _ in read_documents(tmp_path / "out")["train"]]
    assert texts == list(map(text_of, rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "domain": "d" * 101}, '"domain" has 101 characters, more than 100'),
        ({"c" * 5_000_000: "a"}, "neither text nor instruction and output among its columns (cccc"),
        ({"text": "a", "domain": "\ud800"}, "\\ud800 without its other half is no character"),
        ({"text": "a\udfff"}, "\\udfff without its other half is no character"),
        ({"text": ["a"]}, '"text" is an array, not a string'),
        ({"text": "a", "\ud800": "b"}, 'no rule reads the text in "\ud800"'),
    ],
)
def test_bad_rows_are_named_shortly(bytes_tokenizer, tmp_path, inline, row, message):
    path = dump(tmp_path / "a.json", [{"text": "good"}, row])
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    assert len(str(error.value)) < 1000
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=1, valid_fraction=0))
    (bad,) = json.loads((tmp_path / "out" / "report.json").read_text())["bad_rows"]
    assert bad["row"] == 1
    assert bad["reason"].startswith(message)


@pytest.mark.parametrize("format", ["corpus", "messages"])
def test_characters_that_a_tokenizer_loses(tmp_path, inline, format, capsys):
    tokenizer = json.loads((write_tokenizer(tmp_path) / "tokenizer.json").read_text())
    del tokenizer["model"]["vocab"]["e"], tokenizer["model"]["vocab"]["\u0120"]  # and the space
    tokenizer["model"]["merges"], tokenizer["post_processor"] = [], None  # which would write the id of another token
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    texts = ["ab", "cef e", "ok", "nnn", "éß"]
    chats = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]} for text in texts]
    path = dump(tmp_path / "a.json", [{"text": text} for text in texts] if format == "corpus" else chats)
    flags = {"format": format, "valid_fraction": 0}
    with pytest.raises(
        ValueError, match=r"a\.json row 1: the tokenizer cannot represent ' ' U\+0020, 'e' U\+0065, so t"
    ):
        prepare.main(arguments(tmp_path, tmp_path / "out", path, **flags))
    with pytest.raises(ValueError, match=r"3 of the row's characters would be lost, 3 so far; take another tokenizer"):
        prepare.main(arguments(tmp_path, tmp_path / "out", path, **flags, max_lost_chars=2))
    assert not (tmp_path / "out").exists()
    prepare.main(arguments(tmp_path, tmp_path / "out", path, **flags, max_lost_chars=3))
    assert json.loads((tmp_path / "out" / "report.json").read_text())["lost_chars"] == 3
    assert "lost, for the tokenizer cannot represent them: 3 characters\n" in capsys.readouterr().out


@pytest.mark.parametrize("vocab", [{}, {"<|end_of_text|>": 0}])
def test_a_tokenizer_without_a_vocabulary(tmp_path, inline, vocab):
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<|end_of_text|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = dump(tmp_path / "a.json", make_rows(3))
    with pytest.raises(ValueError, match=rf"{tmp_path}: the tokenizer has no tokens but special ones"):
        prepare.main(arguments(tmp_path, tmp_path / "out", path))


def test_names_that_would_steer_a_terminal(bytes_tokenizer, tmp_path, inline, capsys):
    folder = tmp_path / "\x1b[2J\u202e"
    rows = [{"text": f"{i}", "domain": "\x1b]0;title\x07\nb\u202e"} for i in range(9)]
    path = dump(folder / "a\x1b.json", [*rows, {"text": "", "\x1b[31m": ""}, {"\x1b[31m": ""}])
    flags = {"max_bad_rows": 2, "valid_fraction": 0}
    prepare.main(arguments(bytes_tokenizer, folder / "out", path, **flags))
    prepare.main(arguments(bytes_tokenizer, folder / "out", path, **flags))
    prepare.main(arguments(bytes_tokenizer, folder / "out", path, **flags, show=12))
    found = "".join(capsys.readouterr())
    assert not set(found) & set("\x1b\x07\u202e\udcff")
    for name in (r"\x1b]0;title\x07\nb\u202e", r"a\x1b.json row 9", r"columns (\x1b[31m)", r"out: already"):
        assert name in found


def test_an_empty_file_has_no_document(bytes_tokenizer, tmp_path, inline):
    path = tmp_path / "a.json"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"a\.json row 0: the file holds no row|no document"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=3))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["a.json", "a.csv.gz", "a.log"])
def test_a_file_of_zeros_is_refused_before_it_is_read(bytes_tokenizer, tmp_path, inline, name):
    path = tmp_path / name
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match=rf"^{path}: begins with 1\.05 MB of zeros; restore it$"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, format="corpus"))

"""Columns of other names, and formats that are found by columns."""

import json

import pytest

from logtrain import prepare
from tests.support.chats import make_chats
from tests.support.preparing import arguments, contents, dump, make_rows

RENAMED = {"instruction": "question", "output": "answer"}


def shards(folder) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if name.endswith(".npy")}


def test_columns_of_other_names_give_the_same_shards(bytes_tokenizer, tmp_path, inline):
    rows = make_rows(30)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", rows)))
    other = [{RENAMED.get(name, name): value for name, value in row.items()} for row in rows]
    flags = {"columns": ("question=instruction", "answer=output")}
    prepare.main(arguments(bytes_tokenizer, tmp_path / "other", dump(tmp_path / "b" / "a.json", other), **flags))
    nested = [
        {
            "a.b": row["instruction"],
            "data": {"turns": [{"x": row["output"]}, row["log"]]},
            "of": {"domain": row["domain"]},
        }
        for row in rows
    ]
    flags = {"columns": ("a.b=instruction", "data.turns.0.x=output", "data.turns.1=log", "of.domain=domain")}
    flags["ignore_columns"] = ("data",)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "nested", dump(tmp_path / "c" / "a.json", nested), **flags))
    assert shards(tmp_path / "out") == shards(tmp_path / "other") == shards(tmp_path / "nested")


def test_names_that_change_places_and_the_column_of_a_split(bytes_tokenizer, tmp_path, inline):
    rows = [{"output": f"why {i}", "instruction": f"since {i}", "origin": f"s{i % 4}"} for i in range(40)]
    expected = [{"instruction": row["output"], "output": row["instruction"], "source": row["origin"]} for row in rows]
    flags = {"split_by": "source"}
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", expected), **flags))
    flags["columns"] = ("output=instruction", "instruction=output", "origin=source")
    prepare.main(arguments(bytes_tokenizer, tmp_path / "other", dump(tmp_path / "b" / "a.json", rows), **flags))
    assert shards(tmp_path / "out") == shards(tmp_path / "other")


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"q": "a", "text": "b"}, ("q=text",), 'row 0: "text" stands beside "q", which is to have its name'),
        ({"q": "a", "x": "lost"}, ("q=text",), 'no rule reads the text in "x"; to leave it out, --ignore_columns x'),
        ({"q": {"a": "b", "c": "lost"}}, ("q.a=text",), 'no rule reads the text in "q"'),
        ({"q": "a"}, ("p=text",), "neither text nor instruction and output among its columns (q)"),
        ({"q": 5}, ("q.a.0=text",), "neither text nor instruction and output among its columns (q)"),
        ({"q": "a"}, ("q=txt",), "columns: 'q=txt': expected THEIRS=OURS, ours one of chosen, conversations, domain, "),
        ({"q": "a"}, ("q",), "columns: 'q': expected THEIRS=OURS"),
        ({"q": "a"}, ("q=text", "p=text"), "columns: 'q=text p=text': a name stands twice on one side"),
        ({"q": "a"}, ("q=text", "q=log"), "columns: 'q=text q=log': a name stands twice on one side"),
    ],
)
def test_columns_that_cannot_be(bytes_tokenizer, tmp_path, inline, row, columns, message):
    path = dump(tmp_path / "a.json", [row])
    with pytest.raises(ValueError) as error:
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, columns=columns))
    assert message in str(error.value)


TEXTS, CHATS = "documents of text, for continual pretraining", "chats, for fine-tuning"
TURNS = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so"}]


@pytest.mark.parametrize(
    ("rows", "format", "said"),
    [
        ([{"text": "a"}] * 3, "auto", f'corpus, by the column "text" of {{}}: {TEXTS}'),
        (make_rows(3), "auto", f"nlplog, by the columns instruction, log, output of {{}}: {TEXTS}"),
        (
            [{"instruction": "a", "output": "b"}] * 3,
            "auto",
            f"alpaca, by the columns instruction, output of {{}}: {TEXTS} (--format alpaca makes {CHATS})",
        ),
        (make_chats(3), "sharegpt", f'sharegpt, by the column "conversations" of {{}}: {CHATS}'),
        ([{"messages": TURNS}] * 3, "messages", f'messages, by the column "messages" of {{}}: {CHATS}'),
        ([TURNS] * 3, "messages", f"messages, by the turns of {{}}: {CHATS}"),
    ],
)
def test_the_format_that_is_found_is_said(chat_tokenizer, tmp_path, inline, capsys, rows, format, said):
    path = dump(tmp_path / "a.json", rows)
    flags = {"format": "auto", "seq_len": 2000, "valid_fraction": 0}
    prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, **flags))
    where = f"{path} row 0"
    assert capsys.readouterr().out.startswith(f"format: {said.format(where)}\n")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["settings"]["format"] == format
    prepare.main(arguments(chat_tokenizer, tmp_path / "out", path, **flags))
    assert "already prepared" in capsys.readouterr().out


def test_a_setting_of_chats_is_refused_where_no_chat_is_found(bytes_tokenizer, tmp_path, inline):
    path = dump(tmp_path / "a.json", [{"text": "a"}])
    with pytest.raises(ValueError, match="train_on = last has no meaning with format = auto; it is for sharegpt"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, train_on="last"))

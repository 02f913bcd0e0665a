"""Rows of chat data: which turns they become, and what is refused rather than lost or trained on by mistake."""

import json
import re

import pytest

from logtrain.data.conversations import Conversation, conversations, row_conversation
from logtrain.data.files import BadRow, InputFile
from logtrain.data.rows import Reading
from logtrain.text.chat_template import Turn

H, G, S = ({"from": name, "value": name[0]} for name in ("human", "gpt", "system"))
U, A = {"role": "user", "content": " q\r\n"}, {"role": "assistant", "content": "a "}
USER, ASSISTANT, SYSTEM = Turn("user", "h"), Turn("assistant", "g"), Turn("system", "s")


@pytest.mark.parametrize(
    ("format", "row", "turns"),
    [
        ("sharegpt", {"conversations": [H, G]}, [USER, ASSISTANT]),
        ("sharegpt", {"conversations": [S, H, G, H, G]}, [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]),
        ("sharegpt", {"conversations": [H, G], "system": "s"}, [SYSTEM, USER, ASSISTANT]),
        ("sharegpt", {"conversations": [H, G], "system": " ", "id": 5, "tools": []}, [USER, ASSISTANT]),
        ("sharegpt", {"conversations": [{"from": "user", "value": "h", "name": None}, G]}, [USER, ASSISTANT]),
        ("messages", {"messages": [U, A]}, [Turn("user", " q\r\n"), Turn("assistant", "a ")]),
        ("alpaca", {"instruction": "q", "output": "a"}, [Turn("user", "q"), Turn("assistant", "a")]),
        (
            "alpaca",
            {"instruction": "q", "input": "i\n", "output": "a"},
            [Turn("user", "q\ni\n"), Turn("assistant", "a")],
        ),
        ("alpaca", {"instruction": "h", "input": "", "output": "g", "system": "s"}, [SYSTEM, USER, ASSISTANT]),
    ],
)
def test_rules(format, row, turns):
    assert row_conversation(row | {"domain": " D "}, format) == (tuple(turns), "D")


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        ("sharegpt", 5, "a number, not an object"),
        ("sharegpt", {"messages": [U, A]}, 'no "conversations" among its columns (messages)'),
        ("messages", {"conversations": [H, G]}, 'no "messages" among its columns (conversations)'),
        ("sharegpt", {"conversations": "hi"}, '"conversations" is a string, not an array'),
        ("sharegpt", {"conversations": []}, "no turns"),
        ("sharegpt", {"conversations": [H, "g"]}, "turn 1 is a string, not an object"),
        ("sharegpt", {"conversations": [H]}, "no assistant turn"),
        ("sharegpt", {"conversations": [H, G, H]}, "turn 2 (user) is the last and has no answer"),
        ("sharegpt", {"conversations": [G, H, G]}, "turn 0 (assistant) comes first"),
        ("sharegpt", {"conversations": [H, G, G]}, "turn 2 (assistant) comes after assistant"),
        ("sharegpt", {"conversations": [S, H, G], "system": "s"}, "turn 1 (system) comes after system"),
        ("sharegpt", {"conversations": [H, {"from": "gpt", "value": " \n"}]}, 'turn 1: "value" is empty'),
        ("sharegpt", {"conversations": [H, {"from": "gpt", "value": None}]}, 'turn 1: no "value"'),
        ("sharegpt", {"conversations": [H, {"value": "x"}]}, 'turn 1: no "from"'),
        (
            "sharegpt",
            {"conversations": [H, {"from": "bard", "value": "x"}]},
            "turn 1: unknown from 'bard', not one of hu",
        ),
        (
            "sharegpt",
            {"conversations": [H, {"from": "function_call", "value": "x"}]},
            "'function_call' is a tool's: conv",
        ),
        (
            "messages",
            {"messages": [U, {"role": "tool", "content": "x"}]},
            "turn 1: role 'tool' is a tool's: conversations",
        ),
        ("messages", {"messages": [U, {"role": "assistant", "content": ["x"]}]}, '"content" is an array, not a string'),
        (
            "messages",
            {"messages": [U, A | {"tool_calls": [{}]}]},
            'turn 1: no rule reads "tool_calls"; to leave it out',
        ),
        ("messages", {"messages": [U, A | {"weight": 0}]}, 'turn 1: no rule reads "weight"'),
        (
            "messages",
            {"messages": [U, A], "system": "s"},
            'no rule reads "system"; to leave it out, --ignore_columns system',
        ),
        ("sharegpt", {"conversations": [H, G], "id": "a", "tools": "t"}, "--ignore_columns id tools"),
        ("sharegpt", {"conversations": [H, G], "system": 5}, '"system" is a number, not a string'),
        ("alpaca", {"instruction": "q"}, 'no "output"'),
        ("alpaca", {"instruction": "q", "log": "l", "output": "a"}, 'no rule reads "log"'),
        ("alpaca", {"instruction": "q", "output": "\ud800"}, "\\ud800 without its other half is no character"),
    ],
)
def test_bad_rows(format, row, reason):
    with pytest.raises(BadRow) as error:
        row_conversation(row, format)
    assert reason in str(error.value)


def test_ignored_columns_are_not_there():
    row = {"messages": [U | {"weight": 0}, A | {"tool_calls": "x"}], "id": "a"}
    assert len(row_conversation(row, "messages", Reading(["weight", "tool_calls", "id"]))[0]) == 2


def test_bad_rows_stand_in_their_place(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join([json.dumps({"conversations": [H, G]}), "{", "", json.dumps({"conversations": [H]})]))
    found = list(conversations(InputFile(path), "sharegpt"))
    assert found[0] == Conversation(0, (USER, ASSISTANT), "chat")
    assert [(bad.row, str(bad).split(",")[0]) for bad in found[1:]] == [
        (1, "not JSON on one line (Expecting property name enclosed in double quotes"),
        (3, "no assistant turn"),
    ]
    path.write_text("")
    assert [str(bad) for bad in conversations(InputFile(path), "sharegpt")] == ["the file holds no row"]
    (tmp_path / "a.log").write_text("a\n")
    with pytest.raises(ValueError, match=re.escape("a text file has no alpaca rows; use --format auto")):
        list(conversations(InputFile(tmp_path / "a.log"), "alpaca"))

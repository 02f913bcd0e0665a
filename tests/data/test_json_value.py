"""A line of JSON, read the quick way and the long one."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logtrain.data import json_value
from logtrain.data.json_value import RowDecoder

VALUES = [
    '"b"',
    '""',
    '"\\":"',
    '"\\ud83d"',
    '"{\\"a\\" : 1}"',
    "1",
    "-0",
    "-0.0",
    "1e2",
    "7" * 19,
    "7" * 41,
    "NaN",
    "null",
]
VALUES += ["[1]", '{"a": 2}', "tru"]
pairs = st.tuples(
    st.sampled_from(["a", "b", "", "\\u0061"]), st.sampled_from(["", " ", "\t\r"]), st.sampled_from(VALUES)
)


@given(st.lists(pairs, max_size=3), st.sampled_from(["", " ", "\x1e"]), st.sampled_from(["\n", "", "}\n", " 1"]))
def test_a_line_that_is_read_the_quick_way_is_what_it_is_the_long_way(pairs, before, after):
    line = before + "{" + ", ".join(f'"{key}"{blank}: {value}' for key, blank, value in pairs) + "}" + after
    with pytest.MonkeyPatch.context() as patch:
        found = RowDecoder().values_of(line)
        patch.setattr(json_value, "flat_object", lambda _: None)
        expected = RowDecoder().values_of(line)
    assert list(map(repr, found)) == list(map(repr, expected))  # by their types and signs, too, and NaN


def test_most_lines_are_read_the_quick_way():
    rows = [{"text": 'it said "no" {why}', "id": 7, "domain": None}, {"text": "磁盘 \U0001f600", "is_new": True}, {}]
    assert list(map(json_value.flat_object, map(json.dumps, rows))) == rows
    twice = '{"a": "1", "a" : "2"}', '{"a": 1, "a": 2}', '{"a": "x", "a": null}'
    assert list(map(json_value.flat_object, (*twice, "[1]", '{"a": 1.5}', "{"))) == [None] * 6

"""A folded log fits, keeps what matters, and every line of it can be had again."""

import random
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from logtrain.conversation.folding import fold

WORDS = "block open close read write user disk node cache lease queue worker reply update remove scan".split()  # noqa: SIM905
LINES = st.lists(
    st.one_of(
        st.text(alphabet=st.characters(blacklist_characters="\n"), max_size=60),
        st.sampled_from(
            ["", "ERROR disk 7 failed", "INFO read block 12 of 99", "[L2-L9]", "T1 3 lines L1-L9: a", "L5 x"]
        ),
        st.integers(0, 10**12).map(lambda n: f"INFO open file {n}"),
    ),
    min_size=1,
    max_size=120,
)
ERRORS = [
    "{time} ERROR dfs.DataNode: disk /dev/sd{letter} failed",
    "{time} INFO dfs.Scanner: Verification failed for blk_{number}",
    "{time} FATAL java.lang.OutOfMemoryError: Java heap space",
    "{time} kernel: BUG: soft lockup - CPU#{digit} stuck for {number}s!",
    "{time} INFO worker: task {number} done, exit code 13{digit}",
    '10.0.0.{digit} - - [{time}] "GET /index.html HTTP/1.1" 50{digit} {number}',
]


def num_tokens(text: str) -> int:
    return len(re.findall(r"\w{1,4}|[^\w\s]|\s", text))


def log_of(count: int, draw: random.Random) -> list[str]:
    """Lines of some 40 templates, some of them errors that are common."""
    kinds = [" ".join(draw.choices(WORDS, k=draw.randint(3, 8))) for _ in range(38)]
    weights = [1 / (at + 1) for at in range(len(kinds))]
    lines = [
        f"{100000 + at} {'WARN' if len(kind) % 7 == 0 else 'INFO'} app.{kind} {draw.randrange(10**6)} /10.1.{at % 99}.7"
        for at, kind in enumerate(draw.choices(kinds, weights, k=count))
    ]
    for at in range(0, count, 11):
        lines[at] = f"{100000 + at} INFO dfs.Scanner: Verification succeeded for blk_{draw.randrange(10**9)}"
    for at in range(3, count, 11):
        lines[at] = f"{100000 + at} INFO worker: task {at} done, exit code 0"
    for at in range(5, count, 11):
        lines[at] = f'10.0.0.{at % 9} - - [{100000 + at}] "GET /index.html HTTP/1.1" {200 + at % 2 * 104} {at}'
    return lines


@given(LINES, st.integers(60, 3000), st.integers(1, 10**6))
def test_what_is_folded_fits_and_is_all_there(lines, most, first):
    try:
        folded = fold(lines, most, num_tokens, first=first)
    except ValueError as error:
        assert re.search(rf"a folded log takes more than the {most:,} tokens", str(error))
        assert num_tokens("\n".join(lines)) > most
        return
    assert folded.num_tokens == num_tokens(folded.text) <= most
    assert folded.unfolded() == lines
    assert folded.is_folded == (num_tokens("\n".join(lines)) > most) or len(folded.shown) == len(lines)
    hidden = [number for start, stop in folded.gaps for number in range(start, stop + 1)]
    assert sorted([*hidden, *(at + first for at in folded.shown)]) == list(range(first, first + len(lines)))
    by_group = [number for group in folded.groups for number in folded.numbers_of(group.name)]
    assert sorted(by_group) == list(range(first, first + len(lines)))


@pytest.mark.parametrize("error", ERRORS)
def test_a_rare_error_is_always_kept(error):
    draw = random.Random(error)
    for _ in range(3):
        lines, at = log_of(4000, draw), draw.randrange(4000)
        known = {"time": 100000 + at, "letter": draw.choice("abc"), "digit": draw.randrange(1, 9), "number": 4711}
        lines[at] = error.format(**known)
        folded = fold(lines, 1500, num_tokens)
        assert f"L{at + 1} {lines[at]}" in folded.text.splitlines()


def test_what_the_text_says_is_right():
    lines = log_of(3000, random.Random(5))
    folded = fold(lines, 2000, num_tokens, first=101)
    head, *rest = folded.text.splitlines()
    assert head.startswith("[3,000 log lines, folded.")
    groups = [re.fullmatch(r"(T\d+) ([\d,]+) lines L(\d+)-L(\d+): (.*)", line) for line in rest if line[0] == "T"]
    assert len(groups) > 5
    for group in groups:
        numbers = folded.numbers_of(group[1])
        assert (f"{len(numbers):,}", str(numbers[0]), str(numbers[-1])) == group.groups()[1:4]
        pattern = re.escape(group[5]).replace(re.escape("<*>"), ".*").replace(r"\ ", r"\s+")
        assert all(re.fullmatch(pattern, lines[number - 101]) for number in numbers)
    whole = {int(line[1:].split()[0]): line.split(" ", 1)[1] for line in rest if line[0] == "L"}
    assert whole == {at + 101: lines[at] for at in folded.shown}
    assert {101, 3100} <= whole.keys()
    gaps = [tuple(map(int, re.findall(r"\d+", line))) for line in rest if line.startswith("[L")]
    assert [(gap[0], gap[-1]) for gap in gaps] == folded.gaps


def test_lines_that_are_asked_for_are_whole():
    lines = log_of(3000, random.Random(6))
    folded = fold(lines, 1500, num_tokens, first=11, show=[(500, 503), (2999, 2999)])
    for number in (500, 501, 502, 503, 2999):
        assert f"L{number} {lines[number - 11]}" in folded.text.splitlines()
    for show, message in (
        ([(10, 12)], "lines 10-12: the log has lines 11-3010"),
        ([(11, 3000)], "the lines to show take more than the 1,500 tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            fold(lines, 1500, num_tokens, first=11, show=show)
    with pytest.raises(ValueError, match="lines 5-6: the log has lines 11-3010"):
        folded.unfold(5, 6)


def test_a_line_that_is_longer_than_the_room_is_cut_and_says_so():
    lines = ["x" * 50_000, *["INFO read block 7"] * 500]
    folded = fold(lines, 300, num_tokens)
    (cut,) = [line for line in folded.text.splitlines() if line.startswith("L1 ")]
    kept, more = re.fullmatch(r"L1 (x+) \[and ([\d,]+) more characters\]", cut).groups()
    assert len(kept) + int(more.replace(",", "")) == 50_000
    assert folded.unfold(1, 1) == lines[:1]


@pytest.mark.alone
@pytest.mark.slow
def test_real_logs_of_100_000_lines(shared):
    """Into 6,000 tokens in 2 seconds of one core."""
    draw = random.Random(1309)
    for system in ("HDFS", "BGL", "OpenSSH", "Linux"):
        text = (shared / "data" / "loghub" / system / f"{system}_2k.log").read_text(encoding="utf-8", errors="replace")
        digits = re.compile(r"\d+")
        vary = lambda found: str(draw.randrange(10 ** len(found[0]))).zfill(len(found[0]))  # noqa: E731
        lines = [digits.sub(vary, line) for line in text.splitlines() * 50]
        at = draw.randrange(len(lines))
        lines[at] = draw.choice(ERRORS[:4]).format(time="Jun 14 15:16:01", letter="b", digit=3, number=4711)
        began = time.process_time()
        folded = fold(lines, 6000, num_tokens)
        assert time.process_time() - began < 2
        assert folded.num_tokens <= 6000
        assert f"L{at + 1} {lines[at]}" in folded.text.splitlines()
        assert folded.unfolded() == lines

"""Packing: every token exactly once, no row overfull, hardly a slot empty, C++ equal to Python."""

import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.packing import fill, lognormal_lengths, share_between_rows
from logtrain.data import pack as packing
from logtrain.data.pack import PackedRows, look_ahead_fit, look_ahead_fit_reference, pack, pieces

needs_cpp = pytest.mark.skipif(not packing.USES_CPP, reason="the C++ packer is not built (no compiler at install time)")


@st.composite
def packable(draw, max_capacity: int = 5000) -> tuple[np.ndarray, int]:
    """Lengths and a capacity that holds each. Few distinct lengths are as likely as many, so ties are common."""
    capacity = draw(st.integers(1, max_capacity))
    longest = draw(st.integers(1, capacity))
    return np.array(draw(st.lists(st.integers(1, longest), max_size=150)), np.int32), capacity


def nlplog_lengths(num_documents: int) -> np.ndarray:
    """Token counts as of NLPLog: 444 on average, a long tail (lognormal), the longest beyond a row of 8,192."""
    sigma = 0.9
    random = np.random.default_rng(1309)
    return np.maximum(2, random.lognormal(np.log(444) - sigma**2 / 2, sigma, num_documents)).astype(np.int64)


# Cutting documents into pieces


@given(st.lists(st.integers(1, 60), max_size=30), st.integers(2, 70))
def test_every_token_but_a_documents_first_is_predicted_in_exactly_one_piece(lengths, seq_len):
    cut = pieces(np.array(lengths, np.int64), seq_len)
    predicted = [[0] * length for length in lengths]
    read = [[0] * length for length in lengths]
    for document, start, length in zip(*(column.tolist() for column in cut), strict=True):
        assert 1 <= length <= seq_len
        for position in range(start, start + length):
            read[document][position] += 1
            predicted[document][position] += position > start
    assert predicted == [[0] + [1] * (length - 1) for length in lengths]
    assert all(count >= 1 for counts in read for count in counts)  # one-token documents too
    assert sum(map(sum, read)) == sum(lengths) + len(cut.length_P) - len(lengths)  # one token of overlap a cut


def test_pieces_of_documents_around_the_row_length():
    cut = pieces(np.array([1, 9, 10, 11, 19, 20, 28, 29]), seq_len=10)
    assert cut.document_P.tolist() == [0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 7]
    assert cut.start_P.tolist() == [0, 0, 0, 0, 9, 0, 9, 0, 9, 18, 0, 9, 18, 0, 9, 18, 27]
    assert cut.length_P.tolist() == [1, 9, 10, 10, 2, 10, 10, 10, 10, 2, 10, 10, 10, 10, 10, 10, 2]
    assert [column.dtype for column in cut] == [np.int32, np.int32, np.int32]


def test_no_document_gives_no_piece_and_no_row():
    cut = pieces(np.array([], np.int64), 8)
    assert [len(column) for column in cut] == [0, 0, 0]
    rows = pack(cut.length_P, 8, seed=0, epoch=0)
    assert (rows.piece_P.tolist(), rows.row_start_R1.tolist()) == ([], [0])


def test_documents_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="document 2 has 0 tokens"):
        pieces(np.array([5, 7, 0, 0]), 8)
    with pytest.raises(ValueError, match="seq_len is 1"):
        pieces(np.array([5]), 1)


# Which pieces share a row


def look_ahead_fit_naive(lengths: list[int], capacity: int) -> list[int]:
    """The documented rules with no data structure at all: every piece without a row is looked at for every choice."""
    row_P, left = [-1] * len(lengths), list(range(len(lengths)))

    def longest(space: int) -> int | None:
        window = left[: min(1024, max(64, len(left) // 2))]
        return max((piece for piece in window if lengths[piece] <= space), key=lambda p: (lengths[p], -p), default=None)

    row = 0
    while left:
        space, piece, in_order = capacity, longest(capacity), True
        while piece is not None:
            row_P[piece], space = row, space - lengths[piece]
            left.remove(piece)
            in_order = in_order and bool(left) and lengths[left[0]] <= space
            piece = left[0] if in_order else longest(space)
        row += 1
    return row_P


@given(packable())
def test_reference_follows_the_documented_rules(case):
    lengths, capacity = case
    expected = look_ahead_fit_naive(lengths.tolist(), capacity)
    assert look_ahead_fit_reference(lengths, capacity).tolist() == expected


@needs_cpp
@given(packable())
@settings(max_examples=500)
def test_cpp_equals_reference(case):
    lengths, capacity = case
    expected = look_ahead_fit_reference(lengths, capacity)
    np.testing.assert_array_equal(look_ahead_fit(lengths, capacity), expected)


@needs_cpp
@pytest.mark.parametrize("capacity", [1, 62, 63, 64, 4095, 4096, 8192, 262143, 262144])  # where the bitmap grows
def test_cpp_equals_reference_on_many_pieces(capacity):
    random = np.random.default_rng(capacity)
    for longest in (capacity, max(1, capacity // 16)):
        lengths = random.integers(1, longest, 4000, np.int32, endpoint=True)
        expected = look_ahead_fit_reference(lengths, capacity)
        np.testing.assert_array_equal(look_ahead_fit(lengths, capacity), expected)


def test_reference_follows_the_documented_rules_where_the_window_grows_and_shrinks():
    lengths = np.random.default_rng(5).integers(1, 600, 3000, np.int32)
    assert look_ahead_fit_reference(lengths, 1000).tolist() == look_ahead_fit_naive(lengths.tolist(), 1000)


@pytest.mark.parametrize("function", [look_ahead_fit, look_ahead_fit_reference])
def test_pieces_of_exactly_the_capacity_fill_a_row_each(function):
    assert function(np.array([8, 1, 8, 7, 1], np.int32), 8).tolist() == [
        0,
        2,
        1,
        2,
        3,
    ]  # row 2: the longest left, then the first


def test_lengths_that_fit_no_row_are_refused():
    for length in (0, -1, 9, 2**40):
        with pytest.raises(ValueError, match=f"piece 1 has {length} tokens: it must have 1..8"):
            look_ahead_fit(np.array([8, length]), 8)
    for capacity in (0, -8, 2**31):
        with pytest.raises(ValueError, match=f"capacity of a row is {capacity} tokens"):
            look_ahead_fit(np.array([], np.int32), capacity)


@needs_cpp
def test_cpp_checks_its_own_input():
    fit = packing._pack.look_ahead_fit
    ones, rows = np.ones(4, np.int32), np.full(4, -1, np.int32)
    read_only = rows.copy()
    read_only.flags.writeable = False
    for lengths, capacity, out, message in [
        (np.array([1, 0, 1, 1], np.int32), 8, rows, r"piece 1 has length 0, outside 1\.\.8"),
        (np.array([1, 1, 1, 9], np.int32), 8, rows, r"piece 3 has length 9, outside 1\.\.8"),
        (ones, 0, rows, "capacity is 0"),
        (ones, 8, rows[:3], "row_of_piece holds 3 items, lengths 4"),
        (ones.astype(np.int64), 8, rows, "lengths must be a one-dimensional int32 array"),
        (ones.astype(np.float32), 8, rows, "lengths must be a one-dimensional int32 array"),
        (ones.reshape(2, 2), 8, rows, "lengths must be a one-dimensional int32 array"),
        (ones, 8, rows.astype(np.uint32), "row_of_piece must be a one-dimensional int32 array"),
        (np.ones(8, np.int32)[::2], 8, rows, "contiguous"),
        (ones, 8, read_only, "read-only"),
    ]:
        with pytest.raises(ValueError, match=message):
            fit(lengths, capacity, out)
    assert rows.tolist() == [-1] * 4  # nothing was written
    assert fit(ones, 8, rows) == 1
    assert rows.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("found", "words"),
    [("None", "halted"), ("types.SimpleNamespace(__file__='_pack.so')", "_pack.so is of another version")],
)
def test_without_the_extension_it_says_so_in_one_line_and_packs_the_same(found, words):
    """`found`: what an import gives where there was no compiler, and where another version has left its own."""
    program = (
        f"import sys, types; sys.modules['logtrain._pack'] = {found}\n"
        "import numpy as np\nfrom logtrain.data.pack import USES_CPP, pack\n"
        "rows = [pack(np.arange(1, 50, dtype=np.int32), 64, 7, epoch) for epoch in (0, 1)]\n"
        "print(USES_CPP, [column.tolist() for row in rows for column in row])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    rows = [pack(np.arange(1, 50, dtype=np.int32), 64, 7, epoch) for epoch in (0, 1)]
    assert done.stdout.strip() == f"False {[column.tolist() for row in rows for column in row]}"
    assert len(done.stderr.splitlines()) == 1
    assert "C++ packer is not built" in done.stderr
    assert words in done.stderr


# Rows


@given(packable(), st.integers(0, 2**64), st.integers(0, 3))
def test_every_piece_is_in_exactly_one_row_and_no_row_is_overfull(case, seed, epoch):
    lengths, capacity = case
    rows = pack(lengths, capacity, seed, epoch)
    assert sorted(rows.piece_P.tolist()) == list(range(len(lengths)))
    assert (rows.row_start_R1[0], rows.row_start_R1[-1]) == (0, len(lengths))
    assert (np.diff(rows.row_start_R1) >= 1).all()
    tokens_R = np.diff(np.concatenate([[0], np.cumsum(lengths[rows.piece_P])])[rows.row_start_R1])
    assert (tokens_R <= capacity).all()
    assert tokens_R.sum() == lengths.sum()


def test_rows_depend_on_seed_and_epoch_alone():
    length_P = pieces(nlplog_lengths(20_000), 8192).length_P
    first = pack(length_P, 8192, seed=1309, epoch=0)
    again = pack(length_P.copy(), 8192, seed=1309, epoch=0)
    np.testing.assert_array_equal(first.piece_P, again.piece_P)
    np.testing.assert_array_equal(first.row_start_R1, again.row_start_R1)

    def row_mates(rows: PackedRows) -> set[frozenset[int]]:
        return {frozenset(row.tolist()) for row in np.split(rows.piece_P, rows.row_start_R1[1:-1])}

    for seed, epoch in ((1309, 1), (1310, 0)):
        other = pack(length_P, 8192, seed, epoch)
        assert (first.piece_P == other.piece_P).mean() < 0.01
        assert len(row_mates(first) & row_mates(other)) < 0.2 * len(row_mates(first))  # not the same rows reordered


def test_rows_and_the_pieces_in_them_are_not_in_order_of_length():
    length_P = pieces(nlplog_lengths(20_000), 8192).length_P
    rows = pack(length_P, 8192, seed=1309, epoch=0)
    starts = rows.row_start_R1[:-1][np.diff(rows.row_start_R1) > 1]
    first, second = length_P[rows.piece_P[starts]], length_P[rows.piece_P[starts + 1]]
    assert abs((first > second).mean() - (first < second).mean()) < 0.08  # 2.6 standard errors of 1,100 rows or more
    longest_R = np.maximum.reduceat(length_P[rows.piece_P], rows.row_start_R1[:-1])
    assert abs(np.corrcoef(longest_R, np.arange(len(longest_R)))[0, 1]) < 0.1


def test_rows_never_change_with_the_numpy_release():
    """A resumed run must see the rows it began with: a change of this digest breaks the resume of every run."""
    length_P = (np.arange(1, 5001, dtype=np.int64) * 7919 % 1999 + 1).astype(np.int32)
    digest = hashlib.sha256()
    for epoch in (0, 1):
        for column in pack(length_P, 2048, seed=1309, epoch=epoch):
            digest.update(column.astype("<i8").tobytes())
    assert digest.hexdigest() == "7d0a67dda1d7468b38413cd897a73b14777babfc155fe2094aceaa2930ba2047"


def test_a_negative_seed_or_epoch_is_refused():
    for seed, epoch in ((-1, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"must not be negative, they are {seed} and {epoch}"):
            pack(np.ones(3, np.int32), 8, seed, epoch)


# How well and how fast


@pytest.mark.parametrize(
    ("mean", "sigma", "seq_len", "most_between", "least_fill"),
    [(444, 0.4, 8192, 0.15, 0.994), (444, 0.8, 8192, 0.15, 0.997), (600, 0.9, 4096, 0.30, 0.995)],
)
def test_a_row_is_a_sample_of_all_lengths_and_is_full(mean, sigma, seq_len, most_between, least_fill):
    length_P = pieces(lognormal_lengths(mean, sigma, 30_000), seq_len).length_P
    for epoch in (0, 1):
        rows = pack(length_P, seq_len, seed=1309, epoch=epoch)
        assert share_between_rows(rows, length_P) <= most_between
        assert fill(rows, length_P, seq_len) >= least_fill


def test_documents_longer_than_half_a_row_still_leave_few_slots_empty():
    length_P = pieces(lognormal_lengths(5000, 0.5, 5000), 8192).length_P
    assert fill(pack(length_P, 8192, seed=1309, epoch=0), length_P, 8192) >= 0.955


def test_the_last_rows_are_like_the_first():
    """Were the window not to shrink with what is left, the last rows would hold what no other row wanted."""
    length_P = pieces(lognormal_lengths(444, 0.8, 30_000), 8192).length_P.astype(np.int64)
    row_P = look_ahead_fit(length_P, 8192)
    num_rows = int(row_P.max()) + 1
    late = length_P[row_P >= 0.9 * num_rows]
    assert late.mean() == pytest.approx(length_P.mean(), rel=0.15)


def test_a_million_nlplog_like_documents_fill_their_rows():
    lengths = nlplog_lengths(1_000_000)
    assert 440 < lengths.mean() < 448
    assert lengths.max() > 8192
    length_P = pieces(lengths, 8192).length_P
    assert fill(pack(length_P, 8192, seed=1309, epoch=0), length_P, 8192) >= 0.995


def test_loglm_takes_the_fewest_rows_of_2048_there_can_be(shared, llama3_tokenizer):
    tokenizers = pytest.importorskip("tokenizers")
    records = json.loads((shared / "data/loglm/loglm_instruction_2632.json").read_text(encoding="utf-8"))
    texts = ["Human: {instruction}\n{input}\nAssistant: {output}\n".format_map(record) for record in records]
    tokenizer = tokenizers.Tokenizer.from_file(str(llama3_tokenizer / "tokenizer.json"))
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    length_P = pieces(np.array([len(document.ids) + 2 for document in encoded]), 2048).length_P  # 2: begin and end
    rows = pack(length_P, 2048, seed=1309, epoch=0)
    tokens_R = np.add.reduceat(length_P[rows.piece_P], rows.row_start_R1[:-1])
    assert share_between_rows(rows, length_P) <= 0.15
    # 278,639 tokens are 136.05 rows. The 137th can only be nearly empty, which alone holds the whole at 99.31%.
    assert len(tokens_R) == -(-length_P.sum() // 2048)
    assert np.sort(tokens_R)[1:].mean() >= 0.995 * 2048


@needs_cpp
def test_ten_million_lengths_pack_in_five_seconds():
    length_P = np.tile(pieces(nlplog_lengths(1_000_000), 8192).length_P, 10)[:10_000_000]
    start = time.process_time()  # on one core, whatever else the machine does
    rows = pack(length_P, 8192, seed=1309, epoch=0)
    assert time.process_time() - start <= 5.0
    assert fill(rows, length_P, 8192) >= 0.995

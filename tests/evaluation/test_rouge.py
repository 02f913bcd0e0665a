"""ROUGE-Lsum's hits in C++, in Python and by rouge_score are the same."""

import subprocess
import sys

import hypothesis
import hypothesis.strategies as st
import pytest
from rouge_score.rouge_scorer import RougeScorer

from logtrain.evaluation import rouge as rouge_module
from logtrain.evaluation.rouge import rouge, union_lcs_hits, union_lcs_hits_reference

needs_cpp = pytest.mark.skipif(not rouge_module.USES_CPP, reason="the extension is not built (no compiler)")
ORACLE = RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=False)

# A few tokens, so that they repeat and many subsequences are equally long; empty lines and texts among them.
texts = st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6)


def as_text(lines: list[list[int]]) -> str:
    return "\n".join(" ".join(f"t{token}" for token in line) for line in lines)


@needs_cpp
@hypothesis.settings(max_examples=1000)
@hypothesis.given(texts, texts)
def test_cpp_is_the_reference(prediction, reference):
    assert union_lcs_hits(prediction, reference) == union_lcs_hits_reference(prediction, reference)


@hypothesis.settings(max_examples=500)
@hypothesis.given(texts, texts)
def test_the_reference_is_rouge_score(prediction, reference):
    theirs = ORACLE.score(as_text(reference), as_text(prediction))["rougeLsum"]
    hits = union_lcs_hits_reference(prediction, reference)
    assert theirs.recall == pytest.approx(hits / max(1, sum(map(len, reference))), abs=1e-12)
    assert theirs.precision == pytest.approx(hits / max(1, sum(map(len, prediction))), abs=1e-12)


def test_by_hand():
    """One line of the reference against two: b c and d are in a LCS, so three tokens; each counts once for each use."""
    for hits in (union_lcs_hits, union_lcs_hits_reference):
        assert hits([[2, 3, 9], [4, 8]], [[1, 2, 3, 4]]) == 3
        assert hits([[1]], [[1], [1]]) == 1, "the prediction has it once"
        assert hits([[1, 1]], [[1], [1]]) == 2
        assert hits([], [[1]]) == hits([[1]], []) == hits([[], [1]], [[]]) == 0


@needs_cpp
def test_the_extension_refuses_what_is_no_list_of_lines():
    for lines in ([1, 2], ((1,),), [["a"]], [[1.0]], None):
        with pytest.raises(TypeError):
            rouge_module._rouge.union_lcs_hits(lines, [[1]])
        with pytest.raises(TypeError):
            rouge_module._rouge.union_lcs_hits([[1]], lines)
    with pytest.raises(OverflowError):
        rouge_module._rouge.union_lcs_hits([[2**70]], [[1]])


@pytest.mark.parametrize("found", ["None", "types.SimpleNamespace(__file__='_rouge.so')"])
def test_without_the_extension_it_says_so_once_and_scores_the_same(found):
    """`found`: what an import gives where there was no compiler, and where another version has left its own."""
    program = (
        f"import sys, types; sys.modules['logtrain._rouge'] = {found}\n"
        "from logtrain.evaluation import rouge, scoring\n"
        "scoring.score_all([('a b', 'b')])\nscoring.score_all([('a b', 'b')])\n"
        "print(rouge.USES_CPP, rouge.rouge('b a c\\na', 'a b\\nc a'))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    expected = rouge("b a c\na", "a b\nc a")
    assert done.stdout.strip() == f"False {expected}"
    assert len(done.stderr.splitlines()) == 1
    assert "C++ part of ROUGE is not built" in done.stderr

"""What C++ makes of texts is what numpy makes of them."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from logtrain.data import twins
from logtrain.data.near_twins import SIGNATURE
from logtrain.data.twins import Twins, masked_and_signed, masked_and_signed_reference
from logtrain.text.masked import DATE_HASHES, KIND, MOST_BYTES

needs_cpp = pytest.mark.skipif(not twins.USES_CPP, reason="the extension is not built (no compiler at install time)")
PIECES = [
    *" \t-+.:/,_%!?\x00\x01\n0189afAFgzZ",
    "::",
    "Nov",
    "Sun",
    "may",
    "PM",
    "wednesday",
    "é",
    "日",
    "\ud800",
    "ab:",
]
TEXTS = st.lists(st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text(max_size=20), max_size=8)


@needs_cpp
@given(TEXTS)
@example([])
@example(["", "5", "-5", "+5", "a+5", "Sun Nov 9", "Sun Nov", "\x01 5 \x01"])
@example(["deadbee", "deadbeef", "aa:bb", "aa:bb:cc", "aa::bb::cc", "aa-bb:cc", "12345678-ab-cd"])
@example(["x" * 63 + "5", "x" * 64 + "5", "x" * 80 + "5" + "y" * 80, "x" * 80 + "z", "ab" * 32, "ab" * 33 + "g"])
def test_cpp_equals_the_reference(texts):
    (masked, signatures), (same, expected) = masked_and_signed(texts), masked_and_signed_reference(texts)
    assert masked == same
    assert signatures.dtype == expected.dtype and np.array_equal(signatures, expected)
    assert signatures.shape == (len(texts), SIGNATURE)


@needs_cpp
def test_what_is_behind_the_beginning_of_a_text_does_not_count():
    for text in ("x5 " * MOST_BYTES, "é" * MOST_BYTES, "9" * (MOST_BYTES - 1) + "é"):
        (masked, signatures), (same, expected) = (
            masked_and_signed([text, "b"]),
            masked_and_signed_reference([text, "b"]),
        )
        assert masked == same and np.array_equal(signatures, expected)
        assert len(masked[0]) <= MOST_BYTES and masked[1] == b"b"


@needs_cpp
def test_cpp_checks_its_own_input():
    kind, dates = KIND.tobytes(), DATE_HASHES.tobytes()
    sign = twins._twins.mask_and_sign
    for arguments in (([b"a"], kind, dates), ((b"a", "b"), kind, dates), ((b"a",), "kind", dates)):
        with pytest.raises(TypeError):
            sign(*arguments)
    for wrong in (kind[:-1], bytes(256), b"\1" * 256):
        with pytest.raises(ValueError, match="kind must hold"):
            sign((b"a",), wrong, dates)
    assert sign((b"a 5",), kind, dates)[0] == [b"a #"]


@pytest.mark.parametrize("found", ["None", "types.SimpleNamespace(__file__='_twins.so')"])
def test_without_the_extension_the_twins_are_the_same(found):
    """`found`: what an import gives where there was no compiler, and where another version has left its own."""
    texts = ["Jul  5 sshd[2380]: from 10.1.1.150", "sshd failed", ""]
    program = (
        f"import sys, types; sys.modules['logtrain._twins'] = {found}\n"
        "from logtrain.data import twins\n"
        f"print(twins.USES_CPP, *map(lambda array: array.tolist(), twins.Twins.of({texts}, b'key')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    here = Twins.of(texts, b"key")
    assert done.stdout.strip() == f"False {here.hashes_I.tolist()} {here.signatures_I.tolist()}"
    assert done.stderr == ""

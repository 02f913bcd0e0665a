"""A test marked alone has the machine for itself, and is not kept waiting by tests that begin after it has asked."""

import multiprocessing
import time
import uuid

from tests.support.alone import in_turn

FORK = multiprocessing.get_context("fork")


def work(is_alone: bool, entered, leave) -> None:
    with in_turn(is_alone):
        entered.set()
        leave.wait()


def test_one_that_is_alone_waits_for_those_before_it_and_those_after_it_wait_for_it(monkeypatch):
    monkeypatch.setenv("PYTEST_XDIST_TESTRUNUID", uuid.uuid4().hex)
    entered, leave = ([FORK.Event() for _ in range(4)] for _ in range(2))
    for number, is_alone in enumerate((False, False, True, False)):
        FORK.Process(target=work, args=(is_alone, entered[number], leave[number]), daemon=True).start()
        if not is_alone and number < 2:
            assert entered[number].wait(10), "those that are not alone run beside each other"
        else:
            time.sleep(0.3)
    assert not entered[2].is_set(), "others are there"
    leave[0].set()
    assert not entered[2].wait(0.3), "one is there still"
    assert not entered[3].is_set(), "it has come after one that waits"
    leave[1].set()
    assert entered[2].wait(10)
    assert not entered[3].wait(0.3), "one is alone there"
    leave[2].set()
    assert entered[3].wait(10)
    leave[3].set()

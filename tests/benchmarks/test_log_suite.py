"""The sets of the suite: whole systems stay out of training, and so does every line that is asked."""

import json
from collections import Counter

from benchmarks.log_suite import ANOMALY, PARSING, UNSEEN, sets_of, training_rows


def test_systems_and_lines_are_kept_apart(shared):
    rows = json.loads((shared / "data" / "loglm" / "loglm_instruction_2632.json").read_text())
    sets = sets_of(rows, 12)
    assert Counter(row["system"] for row in sets["anomaly"]) == {"Spirit": 12, "BGL": 12}
    assert {row["output"] for row in sets["anomaly"]} == {"normal", "abnormal"}
    assert set(Counter(row["system"] for row in sets["parsing"]).values()) == {12} and len(sets["parsing"]) == 7 * 12
    train = training_rows(rows, sets)
    inputs = {row["input"] for row in train}
    assert not inputs & {row["input"] for of_set in sets.values() for row in of_set}
    unseen = [
        rows[i]
        for name, places in (("anomaly", ANOMALY), ("parsing", PARSING))
        for s in UNSEEN[name]
        for i in places[s]
    ]
    assert len(unseen) == 138 + 400
    assert not {row["output"] for row in unseen if "Convert" in row["instruction"]} & {row["output"] for row in train}
    assert any("Convert" in row["instruction"] for row in train) and any(
        "Classify" in row["instruction"] for row in train
    )
    assert sets_of(rows, 12) == sets, "the same every time"

"""What is said of a stage that takes long: its last note, every five seconds, and nothing of steps with records."""

from logtrain.core.still import Still


def said(notes: list[tuple[float, str]], until: float) -> list[tuple[float, str]]:
    """What is said until a time, if the notes change at the times that stand before them."""
    still = Still(enabled=False)
    still.since = still.said = 0.0
    found = []
    for tick in range(int(2 * until)):
        now = tick / 2
        doing = [note for when, note in notes if when <= now][-1]
        if text := still.look(doing, now):
            found.append((now, text))
    return found


def test_a_stage_of_many_pieces_is_told_every_five_seconds():
    notes = [(second, f"reading model.layers.{second}.weight") for second in range(12)]
    assert said(notes, 12) == [
        (5.0, "reading model.layers.5.weight: 5 s"),
        (10.0, "reading model.layers.10.weight: 10 s"),
    ]


def test_a_piece_that_stands_still_is_told_too_and_a_short_one_is_not():
    assert said([(0, "packing /data"), (3, "verifying /data/a"), (9, "its end")], 11) == [
        (8.0, "verifying /data/a: 5 s")
    ]


def test_only_the_first_step_is_told():
    steps = [
        (0, "the rows of step 41"),
        (1, "step 41"),
        (14, "the rows of step 42"),
        (14.5, "step 42"),
        (28, "step 43"),
    ]
    assert [text for _, text in said(steps, 40)] == ["step 41: 5 s", "step 41: 10 s"]
    assert [text for _, text in said([(0, "validation, step 1 of 9"), (6, "validation, step 2 of 9")], 7)] == [
        "validation, step 1 of 9: 5 s"
    ]

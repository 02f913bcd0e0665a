"""No recipe's step gets dearer unnoticed: see benchmarks/ledger.py."""

import json

import pytest

from benchmarks import ledger
from tests.support import RECIPES

WORSE = "worse than recorded; python -m benchmarks.ledger --accept records it:\n"


def recorded(recipe: str) -> dict[str, float]:
    return json.loads(ledger.path_of(recipe).read_text())


@pytest.mark.slow
def test_no_figure_of_the_main_recipe_is_worse():
    found = ledger.worse(ledger.figures("cpt_8xh100"), recorded("cpt_8xh100"))
    assert not found, WORSE + "\n".join(found)


@pytest.mark.parametrize("recipe", ledger.RECIPES)
@pytest.mark.slow
def test_no_figure_is_worse(recipe: str):
    """The depth of the model is what takes long: these figures are those of the whole model, within rounding."""
    now, before = ledger.figures_by_block(recipe), recorded(recipe)
    del before["reserved_memory_gib"]
    assert now.keys() == before.keys()
    found = ledger.worse(now, before)
    assert not found, WORSE + "\n".join(found)


def test_every_recipe_is_on_record():
    assert {ledger.VARIANTS.get(recipe, recipe) for recipe in ledger.RECIPES} == {
        path.stem for path in RECIPES.glob("*.toml")
    }


def test_what_is_worse():
    before = {"launches": 1000, "host_syncs": 0, "tokens_per_second_per_gpu": 100.0}
    assert ledger.worse(before, before) == []
    assert ledger.worse({**before, "launches": 1009, "tokens_per_second_per_gpu": 150.0}, before) == []
    slower = {"launches": 1011, "host_syncs": 1, "tokens_per_second_per_gpu": 98.0, "all_gather_count": 1}
    assert [line.split(":")[0] for line in ledger.worse(slower, before)] == sorted(slower)

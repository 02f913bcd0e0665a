"""No recipe's step gets dearer unnoticed: see benchmarks/ledger.py."""

import json

import pytest

from benchmarks import ledger
from tests.support import RECIPES


@pytest.mark.parametrize("recipe", ledger.RECIPES)
@pytest.mark.slow
def test_no_figure_is_worse(recipe: str):
    recorded = json.loads(ledger.path_of(recipe).read_text())
    found = ledger.worse(ledger.figures(recipe), recorded)
    assert not found, "worse than recorded; python -m benchmarks.ledger --accept records it:\n" + "\n".join(found)


def test_every_recipe_is_on_record():
    assert {ledger.VARIANTS.get(recipe, recipe) for recipe in ledger.RECIPES} == {
        path.stem for path in RECIPES.glob("*.toml")
    }


def test_what_is_worse():
    recorded = {"launches": 1000, "host_syncs": 0, "tokens_per_second_per_gpu": 100.0}
    assert ledger.worse(recorded, recorded) == []
    assert ledger.worse({**recorded, "launches": 1009, "tokens_per_second_per_gpu": 150.0}, recorded) == []
    slower = {"launches": 1011, "host_syncs": 1, "tokens_per_second_per_gpu": 98.0, "all_gather_count": 1}
    assert [line.split(":")[0] for line in ledger.worse(slower, recorded)] == sorted(slower)

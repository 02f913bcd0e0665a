"""The recipes in launch/ are configs as they stand, and the published one is what was published."""

import re

import pytest

from logtrain.core import config
from logtrain.core.run_folder import flatten
from logtrain.cpt import CptConfig
from logtrain.dpo import DpoConfig
from logtrain.sft import SftConfig
from logtrain.training.facts import odd_rate
from tests.support import RECIPES

# By the first word of the file's name.
ENTRIES = {"cpt": CptConfig, "demo": CptConfig, "sft": SftConfig, "dpo": DpoConfig}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_recipe_is_a_config(path, tmp_path):
    cls = ENTRIES[path.stem.split("_")[0]]
    recipe = config.load(cls, [str(path)])  # an unknown key, a wrong type or value is a ValueError
    resolved = tmp_path / "config.toml"
    resolved.write_text(config.dump(recipe))
    assert config.load(cls, [str(resolved)]) == recipe


def test_the_published_recipe():
    recipe = config.load(CptConfig, [str(RECIPES / "cpt_8xh100.toml")])
    assert (recipe.init, recipe.seed, recipe.dtype) == ("pretrained", 1309, "bfloat16")
    assert (recipe.loader.seq_len, recipe.loader.rows_per_step) == (8192, 128)
    assert recipe.loader.accumulation(world_size=8) == 8
    assert (recipe.optim.lr, recipe.optim.schedule) == (1e-5, "cosine")
    assert (recipe.optim.warmup_ratio, recipe.optim.weight_decay) == (0.1, 0.01)
    assert (recipe.optim.beta1, recipe.optim.beta2, recipe.optim.eps) == (0.9, 0.999, 1e-8)
    assert (recipe.trainer.epochs, recipe.trainer.max_steps) == (1, 0)
    assert (recipe.trainer.max_grad_norm, recipe.trainer.log_every, recipe.trainer.save_every) == (1.0, 10, 0)


def test_the_recommended_recipe_is_the_published_one_with_replay_and_a_budget():
    names = "cpt_8xh100", "cpt_8xh100_replay"
    plain, ours = (flatten(config.load(CptConfig, [str(RECIPES / f"{name}.toml")])) for name in names)
    other = {key for key in plain | ours if plain.get(key) != ours.get(key)}
    assert other == {
        *("name", "data", "mix", "valid", "roles", "loader.rows_per_batch"),
        *("trainer.valid_every", "trainer.keep_best", "trainer.forget_budget", "trainer.replay_bounds"),
    }
    assert sum(ours["mix"].values()) == pytest.approx(1) and 0 < ours["trainer.forget_budget"] <= 0.01


def test_the_published_fine_tuning():
    recipe = config.load(SftConfig, [str(RECIPES / "sft_lora_4xh100.toml")])
    lora = recipe.lora
    assert (lora.rank, lora.alpha, lora.dropout, len(lora.targets)) == (16, 32.0, 0.05, 7)
    assert (recipe.optim.lr, recipe.optim.schedule, recipe.optim.warmup_ratio) == (5e-5, "linear", 0.1)
    assert (recipe.optim.weight_decay, recipe.trainer.max_grad_norm) == (0.01, 1.0)
    assert (recipe.trainer.epochs, recipe.trainer.valid_every, recipe.seed) == (3, 0, 1309)
    assert (recipe.loader.seq_len, recipe.loader.documents_per_step, recipe.dtype) == (8192, 64, "bfloat16")
    assert recipe.parallel.shard_ranks == 1  # whole copies: DDP
    full = config.load(SftConfig, [str(RECIPES / "sft_full_8xh100.toml")])
    assert (full.lora.rank, full.parallel.shard_ranks) == (0, 0)


def test_the_recipe_of_preferences_is_the_practice_of_others():
    """Its comments say whose; a run by it is warned of nothing."""
    recipe = config.load(DpoConfig, [str(RECIPES / "dpo_lora_8xh100.toml")])
    assert (recipe.dpo.beta, recipe.dpo.label_smoothing, recipe.trainer.epochs) == (0.1, 0.0, 1)
    assert (recipe.lora.rank, recipe.lora.dropout, len(recipe.lora.targets)) == (16, 0.0, 7)
    assert (recipe.optim.lr, recipe.optim.schedule, recipe.optim.warmup_ratio) == (5e-6, "cosine", 0.1)
    assert (recipe.loader.seq_len, recipe.loader.documents_per_step) == (8192, 64)
    assert odd_rate(recipe, 8 * 10**9) == []


@pytest.mark.parametrize("name", ["cpt_8xh100", "sft_lora_4xh100"])
def test_a_recipe_and_the_readme_predict_the_same_rate(name):
    """So that a new figure of the plan, which the ledger's test tells of, goes into both."""
    told = re.search(r"([\d,]+) tokens/s", (RECIPES / f"{name}.toml").read_text())
    lines = (RECIPES.parent.parent / "README.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and f"`logtrain plan launch/recipes/{name}.toml`" in line]
    assert told and len(rows) == 1
    assert f"{told[1]} (" in rows[0]

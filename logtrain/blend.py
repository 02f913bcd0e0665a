"""Averages, interpolates or adds up the weights of models, checkpoints or adapters.

    logtrain blend RUN:step-000060 RUN:step-000080 RUN:step-000100 --output DIR           the average of checkpoints
    logtrain blend BASE TRAINED --kind interpolate --alpha 0.7 --output DIR
    logtrain blend CPT INSTRUCT BASE --kind residual --alpha 1 --output DIR
    logtrain blend BASE TRAINED --kind interpolate --choose alpha --sets domain=DATA general=DATA --output DIR
    logtrain blend ADAPTER ADAPTER --kind sum --weights 1 -0.5 --output DIR
    launch/run.sh blend ...                               for files of several ranks

Memory stays flat, whatever the size of the models: pieces of 32 MiB of each are in memory at a time.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from logtrain.core.config import load, words_first
from logtrain.core.entry import run
from logtrain.core.kinds import NONE_BY_DEFAULT, Config
from logtrain.core.location import FOLDER, MODEL, OUTPUT, told

GRID = tuple(tenth / 10 for tenth in range(11))


@dataclass(frozen=True, kw_only=True)
class BlendConfig(Config):
    """Blend models, checkpoints or adapters into one, by arithmetic on their weights."""

    models: Annotated[tuple[str, ...], MODEL]
    """Hugging Face folders, checkpoints as RUN:step-000040, or adapters in PEFT's format; words before the first
    flag count as these.
    """
    output: Annotated[str, OUTPUT]
    """Folder to write, which must not exist."""
    kind: Literal["average", "interpolate", "residual", "sum"] = "average"
    """average: of all, by weights; interpolate: BASE TRAINED; residual: CPT INSTRUCT BASE, the first and alpha times
    what the second has learned over the third; sum: of adapters, by weights.
    """
    alpha: float = 0.5
    """interpolate: 0 is BASE, 1 is TRAINED; residual: 0 is CPT."""
    weights: Annotated[tuple[float, ...], NONE_BY_DEFAULT] = ()
    """average, sum: a number for each model, all 1 without; an average is divided by their sum."""
    choose: Literal["none", "alpha"] = "none"
    """alpha: the one of alphas with the lowest mean of the losses on the sets; choice.json and choice.png tell all."""
    alphas: tuple[float, ...] = GRID
    """The values of alpha that are tried."""
    sets: Annotated[tuple[str, ...], NONE_BY_DEFAULT, FOLDER] = ()
    """Sets to choose by, each as NAME=FOLDER of prepared data, of which the valid split is read."""
    documents: int = 0
    """Reads so many documents of each set at most, evenly spread. 0: all."""
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Precision of the output. auto: that of the models (checkpoints are float32), float32 where they differ."""
    like: Annotated[str, MODEL] = ""
    """Folder whose config.json, tokenizer and chat template the output gets. Without it: those of the first model, of
    TRAINED or INSTRUCT; all must have one tokenizer then.
    """

    def __post_init__(self):
        super().__post_init__()
        if self.choose == "alpha" and (self.kind not in ("interpolate", "residual") or not self.sets):
            raise ValueError("choose = alpha: needs --sets NAME=FOLDER, and --kind interpolate or residual")
        if self.choose == "none" and self.sets:
            raise ValueError(f"sets = {' '.join(self.sets)}: read only with --choose alpha")
        for name in ("alphas", "documents") if self.choose == "none" else ():
            if getattr(self, name) != getattr(BlendConfig, name):
                raise ValueError(f"{name} = {getattr(self, name)}: read only with --choose alpha")
        if self.alpha != BlendConfig.alpha and (self.choose == "alpha" or self.kind in ("average", "sum")):
            other = "--choose alpha finds it" if self.choose == "alpha" else f"--kind {self.kind} goes by --weights"
            raise ValueError(f"alpha = {self.alpha}: not read, for {other}; leave one of the two out")
        if not all(map(math.isfinite, self.alphas)):
            raise ValueError(f"alphas = {self.alphas}: expected finite numbers")
        if len(set(self.alphas)) < max(2, len(self.alphas)):
            raise ValueError(f"alphas = {self.alphas}: expected two values or more, each once")
        names = [text.partition("=") for text in self.sets]
        if any(not (name and equals and folder) for name, equals, folder in names) or len(
            {name for name, _, _ in names}
        ) < len(names):
            raise ValueError(f"sets = {' '.join(self.sets)}: expected NAME=FOLDER, each name once")
        if self.documents < 0 or self.documents == 1:
            raise ValueError(f"documents = {self.documents}: expected 0, or 2 or more, for an interval")


def main(argv: list[str]) -> int:
    """Blend as the flags say; -> the exit status."""
    config = load(BlendConfig, words_first(argv, "--models"))
    # After the flags: --help and a mistyped one need no torch.
    from logtrain.model.blending import Blend
    from logtrain.model.peft import CONFIG

    output = Path(config.output)
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another --output")
    blend = Blend(config.kind, config.alpha, config.weights)
    blend.check(len(config.models))
    are_adapters = [(Path(name) / CONFIG).exists() for name in config.models]
    if any(are_adapters) or config.kind == "sum":
        if not all(are_adapters):
            other = config.models[are_adapters.index(False)]
            raise ValueError(f"{other}: no adapter ({CONFIG}); adapters are blended with adapters, models with models")
        return blend_adapters(config, blend)
    return blend_models(config, blend)


def blend_adapters(config: BlendConfig, blend) -> int:
    """Write the blend of adapters, as their weighted sum; -> the exit status."""
    from logtrain.model.adapter_sum import add_adapters_up

    if config.choose != "none" or config.like or config.dtype != "auto":
        raise ValueError("choose, like, dtype: of models alone; logtrain merge makes a model of each adapter")
    factors = blend.factors(len(config.models))
    settings = {"kind": config.kind, "models": list(config.models), "weights": list(factors)}
    rank = add_adapters_up(Path(config.output), [Path(name) for name in config.models], factors, settings)
    print(told(f"{config.output}: an adapter of rank {rank}, the sum of {len(factors)}"))
    return 0


def blend_models(config: BlendConfig, blend) -> int:
    """Write the blend of models; -> the exit status. Every rank calls this."""
    from logtrain.core.still import Still
    from logtrain.core.world import World
    from logtrain.evaluation.blend_choice import Choice, choose_alpha, open_sets
    from logtrain.training.blend_input import open_inputs
    from logtrain.training.blending import dress_of, dtype_of, publish_blend

    with Still():
        world = World()
        inputs = open_inputs(config.models, (world.rank, world.size), world.note)
        dress, choice = dress_of(inputs, blend, config.like), None
        if config.choose == "alpha":
            sets = open_sets(config.sets, config.documents, inputs[0], world)
            choice = choose_alpha(blend, config.alphas, inputs, sets, world)
            blend = replace(blend, alpha=choice.alpha)
        dtype = dtype_of(inputs, config.dtype)
        add = choice.write if isinstance(choice, Choice) else lambda aside: {}
        odd = publish_blend(Path(config.output), inputs, blend, dress, dtype, world, add)
        if world.is_main:
            for line in choice.told() if choice else ():
                print(line)
            print(told(f"{config.output} ({str(dtype).removeprefix('torch.')}): {blend.kind} of {len(inputs)} models"))
            for line in odd:
                print(line)
        world.close()
    return 0


if __name__ == "__main__":
    run(main)

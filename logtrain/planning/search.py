"""Finds the settings with which a job is fastest, or fits at all, by planning it with each of them."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Literal, get_args

from logtrain.model.config import Recompute
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import read_corpus
from logtrain.planning.prediction import Plan, make_plan

MARGIN = 0.05  # share of the available memory that a search leaves free, for memory that the trace does not see
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)  # the later, the less memory


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a job that a search varies, by their names in its JSON."""

    rows: int
    """Rows of a micro-batch (loader.rows_per_batch)."""
    recompute: Recompute
    """Activations that are computed again."""
    reduce_dtype: Literal["float32", "bfloat16"]
    """Precision in which gradients are summed."""
    reshard_after_forward: bool
    """Whether gathered weights are freed after a block's forward."""

    def applied_to(self, config: PlanConfig) -> PlanConfig:
        """The job with these settings."""
        parallel = replace(
            config.parallel, reduce_dtype=self.reduce_dtype, reshard_after_forward=self.reshard_after_forward
        )
        return replace(varied(config, self.rows, self.recompute), parallel=parallel)

    @property
    def is_smallest(self) -> bool:
        """Whether no other reduce dtype and resharding takes less memory."""
        return self.reduce_dtype == "bfloat16" and self.reshard_after_forward


@dataclass(frozen=True)
class Variant:
    """A job with other settings, and its plan."""

    settings: Settings
    """The settings."""
    plan: Plan | None
    """The plan; None if the settings were not tried."""
    why_not: str
    """Why it is not the fastest that fits; empty if it is."""

    def to_json(self) -> dict[str, object]:
        """One flat object of the settings, `why_not` and, if there is a plan, its figures."""
        return {**asdict(self.settings), "why_not": self.why_not, **(self.plan.result if self.plan else {})}


def varied(config: PlanConfig, rows: int, recompute: Recompute) -> PlanConfig:
    """The job with `rows` rows in a micro-batch, and this recomputation."""
    return replace(config, recompute=recompute, loader=replace(config.loader, rows_per_batch=rows))


def settings_of(config: PlanConfig) -> Iterator[Settings]:
    """All settings that a search tries, those that take less memory before those that take more."""
    rows_per_gpu = config.loader.rows_per_step // config.gpus
    for recompute in reversed(RECOMPUTE):
        for rows in (n for n in (1, 2, 4, 8) if rows_per_gpu % n == 0):
            for reduce_dtype, reshard in product(("bfloat16", "float32"), (True, False)):
                yield Settings(rows=rows, recompute=recompute, reduce_dtype=reduce_dtype, reshard_after_forward=reshard)


def search(config: PlanConfig) -> list[Variant]:
    """Every variant of the job: those that fit, the fastest first, and then the others. Raises ValueError for a job
    that is impossible.
    """
    corpus = read_corpus(config)
    fitting: list[tuple[Settings, Plan]] = []
    rejected: list[Variant] = []
    too_many_rows: dict[Recompute, float] = {}
    for settings in settings_of(config):
        if settings.rows >= too_many_rows.get(settings.recompute, math.inf):
            rejected.append(Variant(settings, None, "does not fit, nor does a smaller variant"))
            continue
        plan = make_plan(settings.applied_to(config), corpus)
        need, have = plan.result["reserved_memory_gib"], plan.result["available_memory_gib"] * (1 - MARGIN)
        if need <= have:
            fitting.append((settings, plan))
            continue
        rejected.append(Variant(settings, plan, f"does not fit: {need:.1f} of {have:.1f} GiB"))
        if settings.is_smallest:
            too_many_rows[settings.recompute] = settings.rows
    fitting.sort(key=lambda pair: -speed(pair[1]))
    rejected.sort(key=lambda variant: -speed(variant.plan) if variant.plan else 0)
    why_not = ["", *(slower(plan, fitting[0][1]) for _, plan in fitting[1:])]
    return [Variant(settings, plan, why) for (settings, plan), why in zip(fitting, why_not, strict=False)] + rejected


def speed(plan: Plan) -> float:
    """Tokens that a GPU trains on in a second."""
    return plan.result["tokens_per_second_per_gpu"]


def slower(plan: Plan, best: Plan) -> str:
    """The two parts of a step by which it is most slower than the best one, in words."""
    mine, its = plan.result["step_seconds_by"], best.result["step_seconds_by"]
    more = sorted(((mine[name] - its[name], name) for name in mine), reverse=True)
    return ", ".join(f"{name} +{seconds:.2f} s" for seconds, name in more[:2] if seconds > 0.005) or "no faster"


def remedy(plan: Plan) -> str:
    """The smallest change that makes a job fit which does not, in words."""
    config = plan.config
    rows, recompute = config.loader.rows_per_batch, config.recompute
    one_row = "loader.rows_per_batch = 1"
    changes = [(one_row, varied(config, 1, recompute))] if rows > 1 else []
    stronger = RECOMPUTE[RECOMPUTE.index(recompute) + 1 :]
    changes += [(f"recompute = {name}", varied(config, rows, name)) for name in stronger]
    changes += [(f"recompute = {name} and {one_row}", varied(config, 1, name)) for name in stronger]
    for change, changed in changes:
        result = make_plan(changed, plan.corpus).result
        if result["fits"]:
            return f"{change} makes it fit ({result['reserved_memory_gib']:.1f} GiB)"
    return "not even full recomputation with one row makes it fit; take more GPUs, or larger ones"

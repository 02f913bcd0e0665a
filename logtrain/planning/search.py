"""Finds the settings with which a job is fastest, or fits at all: by an estimate of each, and a plan of the best."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Literal, get_args

from logtrain.model.config import Recompute
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import read_corpus
from logtrain.planning.estimate import Estimate, estimate
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.prediction import GIB, Plan, make_plan
from logtrain.planning.result import as_json

REFINED = 2  # pairs of rows and recomputation of which every reduce dtype and resharding is tried
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)  # the later, the less memory
SLOWER_IN_ANY = "not tried: slower than the best in its smallest form"
LARGER = "does not fit, nor does a smaller variant"


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


@dataclass(frozen=True)
class Variant:
    """A job with other settings, and what it takes."""

    settings: Settings
    """The settings."""
    estimate: Estimate | None
    """What a step takes; None if the settings were not tried."""
    why_not: str
    """Why it is not the fastest that fits; empty if it is."""
    plan: Plan | None = None
    """The plan, of the best alone."""

    def to_json(self) -> dict[str, object]:
        """One flat object of the settings, `why_not` and what is known of the figures."""
        found: dict[str, object] = {**asdict(self.settings), "why_not": self.why_not}
        if self.estimate:
            found["reserved_memory_gib"] = self.estimate.reserved_gib
            if not self.why_not.startswith("does not fit"):
                found["tokens_per_second_per_gpu"] = self.estimate.tokens_per_second
        return {**found, **(as_json(self.plan.result) if self.plan else {})}


def varied(config: PlanConfig, rows: int, recompute: Recompute) -> PlanConfig:
    """The job with `rows` rows in a micro-batch, and this recomputation."""
    return replace(config, recompute=recompute, loader=replace(config.loader, rows_per_batch=rows))


def forms_of(rows: int, recompute: Recompute) -> Iterator[Settings]:
    """Every reduce dtype and resharding, the smallest first."""
    dtypes: tuple[Literal["bfloat16", "float32"], ...] = ("bfloat16", "float32")
    for reduce_dtype, reshard in product(dtypes, (True, False)):
        yield Settings(rows=rows, recompute=recompute, reduce_dtype=reduce_dtype, reshard_after_forward=reshard)


class Search:
    """A search under way. tried: what was estimated so far; why_not: of what does not fit or was not tried."""

    def __init__(self, config: PlanConfig, tell: Callable[[str], None]):
        """`tell` is called with a line after each estimate."""
        self.config, self.corpus, self.tell = config, read_corpus(config), tell
        self.gpu = read_gpu(config.gpu)
        self.tried: dict[Settings, Estimate] = {}
        self.why_not: dict[Settings, str] = {}
        rows_per_gpu = config.loader.rows_per_step // config.gpus
        self.rows = [rows for rows in (1, 2, 4, 8) if rows_per_gpu % rows == 0]

    def run(self) -> list[Variant]:
        """Every variant: those that fit, the fastest first, and then the others."""
        pairs: list[tuple[int, Recompute]] = [(rows, recompute) for recompute in RECOMPUTE for rows in self.rows]
        too_many: dict[Recompute, int] = {}
        for rows, recompute in pairs:
            smallest, *others = forms_of(rows, recompute)
            if rows >= too_many.get(recompute, rows + 1):
                self.why_not |= dict.fromkeys((smallest, *others), LARGER)
            elif not self.fits(smallest):
                too_many[recompute] = rows
                self.why_not |= dict.fromkeys(others, LARGER)
        promising = self.fitting()[:REFINED]
        for rows, recompute in pairs:
            smallest, *others = forms_of(rows, recompute)
            for settings in others:
                if smallest in promising:
                    self.fits(settings)
                else:
                    self.why_not.setdefault(settings, SLOWER_IN_ANY)
        return self.variants()

    def fits(self, settings: Settings) -> bool:
        """Estimate a variant, and tell of it."""
        found = self.tried[settings] = estimate(settings.applied_to(self.config), self.corpus)
        if not found.fits(self.gpu):
            have = self.gpu.surely_available / GIB
            self.why_not[settings] = f"does not fit: at most {found.most_gib:.1f} of at least {have:.1f} GiB"
        best = next(iter(self.fitting()), None)
        so_far = f"best so far {in_words(best)}: {rounded(self.speed(best))} tokens/s/GPU" if best else "none fits yet"
        self.tell(f"{in_words(settings)}: {self.why_not.get(settings, 'fits')}; {so_far}")
        return found.fits(self.gpu)

    def fitting(self) -> list[Settings]:
        """What was tried and fits, the fastest first."""
        return sorted((s for s in self.tried if s not in self.why_not), key=lambda s: -self.speed(s))

    def speed(self, settings: Settings) -> float:
        """Tokens that a GPU trains on in a second."""
        return self.tried[settings].tokens_per_second

    def variants(self) -> list[Variant]:
        """The variants in their order, the best with its plan: one whose plan does not fit is no longer the best."""
        plan = None
        while plan is None and (fitting := self.fitting()):
            plan = make_plan(fitting[0].applied_to(self.config), self.corpus)
            if not plan.result["fits"]:
                self.why_not[fitting[0]] = f"does not fit: at most {plan.memory.high:.1f} GiB by its plan"
                plan = None
        fitting = self.fitting()
        found = [Variant(fitting[0], self.tried[fitting[0]], "", plan)] if fitting else []
        found += [Variant(s, self.tried[s], slower(self.tried[s], self.tried[fitting[0]])) for s in fitting[1:]]
        rest = sorted(self.why_not, key=lambda s: -self.speed(s) if s in self.tried else 0.0)
        return found + [Variant(s, self.tried.get(s), self.why_not[s]) for s in rest]


def search(config: PlanConfig, tell: Callable[[str], None] = lambda _line: None) -> list[Variant]:
    """Every variant of the job: those that fit, the fastest first, and then the others; `tell` hears of each that was
    tried, and of the best so far. Raises ValueError for a job that is impossible.
    """
    return Search(config, tell).run()


def rounded(speed: float) -> str:
    """Tokens a second in three digits."""
    return f"{float(f'{speed:.3g}'):,.0f}"


def in_words(settings: Settings) -> str:
    """Settings, in a few words."""
    reshard = "" if settings.reshard_after_forward else ", weights kept"
    return f"rows {settings.rows}, recompute {settings.recompute}, sums in {settings.reduce_dtype}{reshard}"


def slower(mine: Estimate, best: Estimate) -> str:
    """The two parts of a step by which one is most slower than the best one, in words."""
    more = sorted(((mine.seconds_by[name] - best.seconds_by[name], name) for name in mine.seconds_by), reverse=True)
    return ", ".join(f"{name} +{seconds:.2f} s" for seconds, name in more[:2] if seconds > 0.005) or "no faster"


def remedy(plan: Plan) -> str:
    """The smallest change that makes a job fit which does not, in words."""
    for change, changed in changes_of(plan.config):
        if estimate(changed, plan.corpus).fits(plan.gpu):
            made = make_plan(changed, plan.corpus)
            if made.result["fits"]:
                return f"{change} makes it fit (at most {made.memory.high:.1f} GiB)"
    return "not even full recomputation with one row makes it fit; take more GPUs, or larger ones"


def changes_of(config: PlanConfig) -> Iterator[tuple[str, PlanConfig]]:
    """Changes that make a job smaller, the smallest first: half the rows and again half, more recomputation, both."""
    rows, recompute = config.loader.rows_per_batch, config.recompute
    fewer = [rows >> halvings for halvings in range(1, rows.bit_length())]
    stronger = RECOMPUTE[RECOMPUTE.index(recompute) + 1 :]
    for fewer_rows in fewer:
        yield f"loader.rows_per_batch = {fewer_rows}", varied(config, fewer_rows, recompute)
    for name in stronger:
        yield f"recompute = {name}", varied(config, rows, name)
    for name, fewer_rows in product(stronger, fewer):
        yield f"recompute = {name} and loader.rows_per_batch = {fewer_rows}", varied(config, fewer_rows, name)

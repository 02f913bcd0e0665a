"""How much a run forgets, and the budget that the trainer keeps it within.

A validation set has a role. By the budget no set of the role general or chat may rise by more than a share of its loss
before the first step. Three things keep it:

    steer    after each validation the share of replay is multiplied by up to 2 or 1/2, by how far the rise, as it would
             be at the next validation if it went on, is from MARGIN of the budget
    judge    the best step is the one of the lowest domain loss among those within the budget
    told     at the end every set before and after, with an interval

Decisions go by losses over all ranks, take effect in the first step that no rank has laid out, and are stored in the
checkpoint, so a step's rows stay a pure function of what the checkpoint holds.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from logtrain.core.atomic import write_file
from logtrain.core.origin import sealed_in
from logtrain.core.student_t import student_t
from logtrain.core.world import World
from logtrain.data.loader import Loader
from logtrain.data.mixture import MixtureLoader
from logtrain.data.pairs import PairLoader
from logtrain.observe.metrics import Metrics
from logtrain.training.config import RunConfig
from logtrain.training.state import RowLosses, ShareChange, TrainState, set_key
from logtrain.training.step import Validation

MARGIN = 0.8  # of the budget: what is aimed at, so that noise and the next steps do not exceed it
FILE = "forgetting.json"


class Forgetting:
    """The validation sets of a run by role, and its budget. Every rank makes one and calls the same methods."""

    def __init__(self, config: RunConfig, train: Loader, valid: Mapping[str, Loader], world: World, metrics: Metrics):
        """`valid`: the sets by name, of which the first is of the domain unless `config.roles` says otherwise."""
        self.trainer, self.train, self.valid, self.world, self.metrics = config.trainer, train, valid, world, metrics
        self.roles = {name: config.roles.get(name, "" if i else "domain") for i, name in enumerate(valid)}
        self.watched = [name for name, role in self.roles.items() if role in ("general", "chat")]

    def judge(self, found: Mapping[str, Validation], state: TrainState, is_last: bool) -> None:
        """Take note of a validation: whether its step is the best, and the share of replay that follows from it."""
        rows = {
            set_key(self.valid[name].split): RowLosses([*of.losses_R], [*of.targets_R]) for name, of in found.items()
        }
        if state.step == 0:
            state.start_rows = rows
            return
        rise = self.world.from_main(self.rise(found, state))
        is_within = not self.trainer.forget_budget or (rise is not None and rise <= self.trainer.forget_budget)
        losses, best = [of.loss for of in found.values()], state.best_loss
        if losses and is_within and (best is None or losses[0] < best):
            state.best_loss, state.best_step, state.validations_since_best = losses[0], state.step, 0
        elif losses:
            state.validations_since_best += 1
        if not self.trainer.keep_best or state.best_step in (0, state.step):
            state.kept_rows = rows
        if self.trainer.forget_budget and rise is not None and not is_last:
            self.steer(rise, state)

    def rise(self, found: Mapping[str, Validation], state: TrainState) -> float | None:
        """The greatest rise of a general or chat set's loss, as a share of that before the first step; None where there
        is no such set, or a resumed run has added all of them.
        """
        starts = {name: state.start_losses.get(set_key(self.valid[name].split)) for name in self.watched}
        return max((found[name].loss / start - 1 for name, start in starts.items() if start), default=None)

    def steer(self, rise: float, state: TrainState) -> None:
        """Decide on the share of replay after a validation."""
        trainer, changes = self.trainer, state.share_changes
        assert isinstance(self.train, MixtureLoader), "a budget needs a source of replay"
        share = changes[-1].share if changes else self.train.token_shares[trainer.replay_source]
        ahead = rise + max(0.0, rise - (changes[-1].rise if changes else 0.0))
        wanted = share * factor(ahead, trainer.forget_budget)
        change = ShareChange(
            self.train.next_free(state.step), min(trainer.replay_bounds[1], max(trainer.replay_bounds[0], wanted)), rise
        )
        changes.append(change)
        self.train.change(change.step, self.train.with_share(trainer.replay_source, change.share))
        self.metrics.info(
            f"step {state.step}: the general loss has risen by {rise:.2%} of a budget of {trainer.forget_budget:.2%}: "
            f"share of {trainer.replay_source} {share:.2%} -> {change.share:.2%} from step {change.step + 1}"
        )

    # ---- at the end

    def told(self, state: TrainState) -> list[str]:
        """A line for each set before and after, and what became of the budget."""
        rows = list(self.rows(state))
        lines = [row.line() for row in rows]
        budget = self.trainer.forget_budget
        if budget and not state.best_step:
            lines.append(
                f"no validation was within the forget budget of {budget:.2%}: the last step is exported; give more "
                f"replay (trainer.replay_bounds), a lower optim.lr, or a greater budget"
            )
        elif budget:
            worst = max((row.rise for row in rows if row.role in ("general", "chat")), default=0.0)
            lines.append(f"forget budget {budget:.2%}: step {state.best_step} is within it, {worst:+.2%}")
        return lines

    def write(self, folder: Path, state: TrainState) -> None:
        """Write what `told` says into forgetting.json, for the report, where there is anything to tell."""
        if rows := list(self.rows(state)):
            facts: dict[str, Any] = {
                "budget": self.trainer.forget_budget,
                "step": state.best_step if self.trainer.keep_best and state.best_step else state.step,
                "is_within": bool(state.best_step) if self.trainer.forget_budget else None,
                "sets": [row.facts() for row in rows],
                "shares": [
                    {"step": change.step, "share": change.share, "rise": change.rise} for change in state.share_changes
                ],
            }
            write_file(folder / FILE, sealed_in(folder / FILE, "forgetting", facts))

    def rows(self, state: TrainState) -> Iterator["BeforeAndAfter"]:
        """Every set before the first step and at the one that is exported, where both are known."""
        for name, loader in self.valid.items():
            start, kept = (of.get(set_key(loader.split)) for of in (state.start_rows, state.kept_rows))
            if start and kept and start.targets == kept.targets and sum(start.targets):
                yield compared(name, self.roles[name], start, kept)._replace(measure=measure_of(loader))


class BeforeAndAfter(NamedTuple):
    """A validation set before and after a run; losses in nats a target, which of pairs is a pair."""

    name: str
    role: str
    before: float
    after: float
    low: float
    """Lower end of the 95% interval of after - before, paired by row."""
    high: float
    """Its upper end."""
    rows: int
    targets: int
    measure: str = "loss"
    """What was measured, in words: a set of pairs has the loss of preferences, which tells nothing of a language."""

    @property
    def rise(self) -> float:
        """The change as a share of the loss before."""
        return self.after / self.before - 1

    def facts(self) -> dict[str, Any]:
        """The same as JSON, where ends that are not finite, those of a single row, are null."""
        ends = {name: end if math.isfinite(end) else None for name, end in (("low", self.low), ("high", self.high))}
        return {**self._asdict(), **ends, "rise": self.rise}

    def line(self) -> str:
        """In words."""
        what = f"{self.name} ({self.role})" if self.role else self.name
        change = f"{self.after - self.before:+.4f} ({self.low:+.4f} to {self.high:+.4f}), {self.rise:+.2%}"
        return f"{what}: {self.measure} {self.before:.4f} -> {self.after:.4f}, {change}, {self.rows:,} rows"


def measure_of(loader: Loader) -> str:
    """What is measured on a validation set, in words."""
    return "DPO loss" if isinstance(loader, PairLoader) else "loss"


def restore_shares(train: Loader, replay_source: str, state: TrainState) -> None:
    """Let a loader take the shares of replay that a checkpoint's run has decided on, and no others."""
    if isinstance(train, MixtureLoader):
        del train.phases[1:]
        for change in state.share_changes:
            train.change(change.step, train.with_share(replay_source, change.share))


def factor(ahead: float, budget: float) -> float:
    """What a share of replay is multiplied by, 1/2 to 2. `ahead`: the rise that is expected."""
    return 2.0 ** min(1.0, max(-1.0, ahead / (MARGIN * budget) - 1))


def compared(name: str, role: str, start: RowLosses, kept: RowLosses) -> BeforeAndAfter:
    """A set before and after. The interval is that of a ratio of sums over rows (Cochran, Sampling Techniques, 1977,
    section 6.3), with Student's t.
    """
    pairs = [pair for pair in zip(start.losses, kept.losses, start.targets, strict=True) if pair[2]]
    count, targets = len(pairs), sum(pair[2] for pair in pairs)
    before, after = (sum(pair[i] for pair in pairs) / targets for i in (0, 1))
    squares = sum((b - a - (after - before) * n) ** 2 for a, b, n in pairs)
    error = math.sqrt(count / (count - 1) * squares) / targets if count > 1 else math.inf
    half = student_t(count - 1) * error if count > 1 else math.inf
    change = after - before
    return BeforeAndAfter(name, role, before, after, change - half, change + half, count, targets)

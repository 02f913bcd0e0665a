"""What a job takes, in seconds instead of tens of seconds: its blocks are alike, so a plan of two and one of three
blocks say what each further block adds to the time and to the memory of a step.

At full depth the time agrees within 0.1% and the tensors' memory exactly, as long as the peak is at the same moment of
the step; whoever decides by an estimate confirms it with a plan.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from logtrain.model.llama import LlamaConfig
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import Corpus
from logtrain.planning.gpu import Gpu
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.memory import at_most
from logtrain.planning.prediction import GIB, Plan, plan_of
from logtrain.planning.shape import read_shape
from logtrain.planning.timeline import breakdown

FEW, MORE = 2, 3  # blocks; with one, the first is also the last, which FSDP treats in another way


@dataclass(frozen=True)
class Estimate:
    """What a step of a job takes on a GPU."""

    tokens_per_second: float
    """Tokens of documents; padding does not count."""
    seconds_by: Mapping[str, float]
    """The parts of a step's time."""
    reserved_gib: float
    """Memory that the allocator takes."""
    most_gib: float
    """The most that it may take."""

    def fits(self, gpu: Gpu) -> bool:
        """Whether the most is available where context and libraries take the most that is known."""
        return self.most_gib <= gpu.surely_available / GIB


def estimate(config: PlanConfig, corpus: Corpus) -> Estimate:
    """The estimate of a job. Raises ValueError for a job that is impossible."""
    shape = read_shape(config.model)
    if shape.num_layers <= MORE:
        return of_plan(plan_of(config, read_gpu(config.gpu), shape, corpus))
    few, more = (of_blocks(config, shape, corpus, blocks) for blocks in (FEW, MORE))

    def at_full_depth(of_few: float, of_more: float) -> float:
        return of_more + (of_more - of_few) * (shape.num_layers - MORE)

    parts = [breakdown(plan.trace.ops, plan.trace.repeats, plan.timeline)[1] for plan in (few, more)]
    seconds_by = {name: at_full_depth(parts[0][name], parts[1][name]) for name in parts[0]}
    gaps = more.trace.peak.reserved - more.trace.peak.total  # of the allocator: the same at any depth
    reserved = (at_full_depth(few.trace.peak.total, more.trace.peak.total) + gaps) / GIB
    return Estimate(more.tokens / sum(seconds_by.values()), seconds_by, reserved, at_most(reserved, config.compile))


def of_blocks(config: PlanConfig, shape: LlamaConfig, corpus: Corpus, blocks: int) -> Plan:
    """The plan of the job with a model of so many blocks."""
    return plan_of(config, read_gpu(config.gpu), replace(shape, num_layers=blocks), corpus)


def of_plan(plan: Plan) -> Estimate:
    """What a plan says, as an estimate."""
    seconds, seconds_by = breakdown(plan.trace.ops, plan.trace.repeats, plan.timeline)
    return Estimate(plan.tokens / seconds, seconds_by, plan.memory.middle, plan.memory.high)

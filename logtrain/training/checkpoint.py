"""Checkpoints of a run: model, optimizer and the trainer's few numbers, sharded over the ranks, resumable on any number
of them.

    checkpoints/step-000100/      a complete checkpoint, which got this name after its last byte
        rank-00000.safetensors ...  the rows of every tensor that the rank owned (tensor_files.py)
        checkpoint.json             the trainer's state, size and CRC-32 of every file, and a SHA-256 of all that
    checkpoints/.step-000200.partial/   one that is being written, or that a killed run left: it is never read, and
                                  removed at the next start

A save copies the shards to host memory and returns; a thread of each rank writes the rank's own. Everything else that
a run needs is a pure function of the step (learning rate, rows, random numbers), so the state is small. Nothing is
pickled, because a checkpoint may come from others.
"""

import copy
import dataclasses
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from logtrain.core.atomic import sync, write_file
from logtrain.core.checksums import FileFacts, find_damage
from logtrain.core.origin import check_origin, origin
from logtrain.core.shared_folder import listing, wait_until_seen
from logtrain.core.untrusted import OtherFields, from_json, read_sealed, sealed
from logtrain.core.world import host_group
from logtrain.model.weights import fill_rows, local_rows
from logtrain.training.optim import MOMENTS, create_moments, trained_parameters
from logtrain.training.state import TrainState
from logtrain.training.tensor_files import MOMENT, TensorFiles, TensorRows, write_tensors

FACTS, KIND = "checkpoint.json", "checkpoint"
T = TypeVar("T")


@dataclass(frozen=True)
class CheckpointFacts:
    """The content of checkpoint.json."""

    state: TrainState
    """The trainer's state at the step of the checkpoint."""
    files: dict[str, FileFacts]
    """Size and checksum of each file of tensors, by the file's name."""


class Checkpoints:
    """The checkpoints of one run. Every rank makes one and calls the same methods; rank 0 names, checks and prunes
    the folders.
    """

    def __init__(
        self, folder: Path, keep: int = 0, keep_best: bool = False, note: Callable[[str], None] = lambda _: None
    ):
        """`keep`: how many of the newest checkpoints stay; 0 keeps all. `keep_best`: whether the one of
        `state.best_step` stays too. `note`: a function that is called with each piece of a long work, in words.
        """
        self.folder, self.keep, self.keep_best, self.note = folder, keep, keep_best, note
        self.rank = dist.get_rank()
        self.group = host_group()  # the writing thread's own: its messages must not meet the training's
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: Future | None = None
        self.seconds = 0.0  # that the last complete save took; 0 before one
        self.buffers: dict[str, Tensor] = {}

    def clean(self) -> None:
        """Remove what a killed run left behind. The run that owns the folder calls this before its first save. Raises
        ValueError where the ranks do not share the folder.
        """
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):
                shutil.rmtree(left)
        dist.barrier(self.group)
        wait_until_seen(self.folder, {}, self.note)

    # ---- saving

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Begin to write `step-<state.step>`. The call waits only for the copy to host memory, and for an earlier save
        that is still being written; it raises ValueError where that one failed.
        """
        self.wait()
        tensors = {
            name: TensorRows(first, self.copied(name, local))
            for name, tensor in tensors_of(model, optimizer).items()
            if is_written_here(tensor)
            for first, local in [local_rows(tensor)]
            if len(local)
        }
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.writing = self.thread.submit(self.write, tensors, copy.deepcopy(state))

    def copied(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of a tensor in host memory; for a GPU that is page-locked memory, kept for the next save."""
        if tensor.device.type == "cpu":
            return tensor.clone()
        if name not in self.buffers:
            self.buffers[name] = torch.empty_like(tensor, device="cpu", pin_memory=True)
        return self.buffers[name].copy_(tensor, non_blocking=True)

    def write(self, tensors: dict[str, TensorRows], state: TrainState) -> None:
        """The work of the writing thread: every rank writes its file, then rank 0 gives the checkpoint its name. Raises
        OSError on all ranks where one of them fails.

        No rank returns before the rename: one that went on could end its process, and torchrun would then end rank 0
        just before the rename.
        """
        name, began = f"step-{state.step:06d}", time.monotonic()
        aside, file = self.folder / f".{name}.partial", f"rank-{self.rank:05d}.safetensors"
        files: dict[str, FileFacts] = {}
        problem = None
        try:
            if tensors:
                aside.mkdir(exist_ok=True)
                files = {file: write_tensors(aside / file, tensors, self.note)}
        except OSError as error:
            problem = error
        every = self.gathered((files, problem))
        problem = next((found for _, found in every if found), None)
        if self.rank == 0 and not problem:
            try:
                facts = CheckpointFacts(state, {name: facts for files, _ in every for name, facts in files.items()})
                self.complete_folder(aside, name, facts)
            except OSError as error:
                problem = error
        problem = next((found for found in self.gathered(problem) if found), None)
        if problem:
            raise problem
        self.seconds = time.monotonic() - began

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks, on every rank; the GPU takes no part."""
        found: list[T] = [value] * dist.get_world_size()
        dist.all_gather_object(found, value, group=self.group)
        return found

    def complete_folder(self, aside: Path, name: str, facts: CheckpointFacts) -> None:
        """Write checkpoint.json, give the checkpoint its name, and remove the oldest beyond `keep`."""
        write_file(aside / FACTS, sealed(dataclasses.asdict(facts) | origin(self.folder.parent, KIND)))
        os.rename(aside, self.folder / name)
        sync(self.folder)
        if self.keep:
            best = facts.state.best_step if self.keep_best else None
            for old in (path for path in self.complete()[: -self.keep] if step_of(path) != best):
                doomed = self.folder / f".{old.name}.partial"
                os.rename(old, doomed)  # a kill between the two leaves no half checkpoint under its name
                shutil.rmtree(doomed, ignore_errors=True)  # what is still being read goes at the next start

    def amend(self, state: TrainState) -> None:
        """Let the checkpoint of this step, which is saved, know what its validation gave since. Raises OSError."""
        folder = self.folder / f"step-{state.step:06d}"
        if self.rank == 0:
            facts = dataclasses.replace(read_facts(folder), state=state)
            write_file(folder / FACTS, sealed(dataclasses.asdict(facts) | origin(self.folder.parent, KIND)))

    def wait(self) -> None:
        """Wait until the save under way is complete on this rank. Raises ValueError where it failed."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        try:
            writing.result()
        except OSError as error:
            full = "; free some and resume" if shutil.disk_usage(self.folder).free < 1 << 20 else ""
            raise ValueError(f"{self.folder}: checkpoint not saved: {error.strerror or error}{full}") from error

    def failed(self) -> bool:
        """Whether the save under way has failed so far, without waiting for it. `wait` raises the error."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def close(self) -> None:
        """Wait for the save under way, and end the writing thread."""
        self.wait()
        self.thread.shutdown()

    # ---- finding and loading

    def complete(self) -> list[Path]:
        """The folders of the complete checkpoints, the oldest first."""
        return complete_in(self.folder)

    def at(self, step: int) -> Path:
        """The complete checkpoint of a step, the same on every rank; 0 stands for the newest. Raises ValueError where
        there is none.
        """
        found = {step_of(path): path for path in self.gathered(self.complete())[0]}
        if not found or (step and step not in found):
            wanted = f"no checkpoint of step {step}" if step else "no complete checkpoint"
            raise ValueError(f"{self.folder}: {wanted}; there are: {', '.join(map(str, found)) or 'none'}")
        return found[step or max(found)]

    def newest(self) -> Path | None:
        """The newest complete checkpoint, or None; the same on every rank."""
        return self.gathered(next(reversed(self.complete()), None))[0]

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> TrainState:
        """Fill the model, and the optimizer if one is given, in place from the checkpoint `path`; -> the state that was
        saved with them. Raises ValueError for a checkpoint that is damaged or of another model.
        """
        wait_until_seen(path, self.gathered(listing(path) if self.rank == 0 else {})[0], self.note)
        facts = read_facts(path)
        mine = list(facts.files.items())[self.rank :: dist.get_world_size()]
        damage = None
        for name, of_file in mine:
            self.note(f"verifying {path / name}")
            damage = damage or find_damage(path / name, of_file)
        if damage := next((found for found in self.gathered(damage) if found), None):
            raise ValueError(f"{path}: corrupt checkpoint: {damage}; remove it to resume from an older one")
        if optimizer is not None:
            create_moments(model, optimizer, facts.state.step - facts.state.skipped)
        wanted = tensors_of(model, optimizer)
        try:
            source = TensorFiles(path, sorted(facts.files))
            moments = source.moments if optimizer is None else MOMENTS[type(optimizer)]
            source.check({name: tensor.shape for name, tensor in stored_with(model, moments).items()})
        except ValueError as error:
            raise ValueError(f"{path}: does not fit this model: {error}") from None
        for name, tensor in wanted.items():
            fill_rows(tensor, name, source)
        return facts.state


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """The tensors that a checkpoint holds, by name: the trained weights and, of an optimizer, its moments. They are
    sharded as the model is, and share its memory. Frozen weights are in no checkpoint.
    """
    tensors = {}
    for name, parameter in trained_parameters(model):
        tensors[f"model.{name}"] = parameter.detach()
        if optimizer is not None:
            moments = optimizer.state[parameter]
            tensors |= {f"{MOMENT}{key}.{name}": moments[key] for key in MOMENTS[type(optimizer)]}
    return tensors


def stored_with(model: nn.Module, moments: Iterable[str]) -> dict[str, Tensor]:
    """Tensors with the names and shapes of those in a checkpoint of this model; a parameter stands for its moments.
    `moments`: which the optimizer keeps of each, as in MOMENTS, or which a checkpoint has.
    """
    found = {}
    for name, parameter in trained_parameters(model):
        found |= {f"model.{name}": parameter, **{f"{MOMENT}{key}.{name}": parameter for key in moments}}
    return found


def is_written_here(tensor: Tensor) -> bool:
    """Whether this rank writes its rows of a tensor, fp32 [rows, ...]; of several copies of a model (HSDP) only the
    first is written.
    """
    if not isinstance(tensor, DTensor):
        return dist.get_rank() == 0
    mesh = tensor.device_mesh
    coordinate, names = mesh.get_coordinate(), mesh.mesh_dim_names
    assert coordinate is not None and names is not None
    return "replica" not in names or coordinate[names.index("replica")] == 0


def complete_in(folder: Path) -> list[Path]:
    """The complete checkpoints in the folder of a run's checkpoints, the oldest first."""
    named = (path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return sorted(named, key=step_of)


def step_of(path: Path) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(path.name.removeprefix("step-"))


def read_facts(path: Path) -> CheckpointFacts:
    """The content of a checkpoint's checkpoint.json. Raises ValueError where it is missing, damaged or not true."""
    file = path / FACTS
    if not file.exists():
        raise ValueError(f"{path}: not a complete checkpoint (no {FACTS})")
    try:
        content = check_origin(file, read_sealed(file), origin(path.parent.parent, KIND))
        facts = from_json(CheckpointFacts, content)
        if facts.state.step != step_of(path):
            raise ValueError(f"is of step {facts.state.step}")
        if outside := next((name for name in facts.files if Path(name).name != name or name == FACTS), None):
            raise ValueError(f"names the file {outside!r}")
    except OtherFields as other:  # the seal fits, so it is as it was written
        raise ValueError(f"{file}: {other.told()}; go on with that version, or start a new run") from None
    except ValueError as error:
        what = str(error).removeprefix(f"{file}: ")
        raise ValueError(f"{file}: damaged ({what}); remove the checkpoint to resume from an older one") from None
    return facts

"""Checkpoints of a run: model, optimizer and the trainer's few numbers, sharded over the ranks (torch DCP), resumable
on any number of them.

    checkpoints/step-000100/      complete: it was renamed to this after its last byte
        __0_0.distcp ...          each rank's shards
        .metadata                 DCP's index
        checkpoint.json           the trainer's state, and size and CRC-32 of every file
    checkpoints/.step-000200.partial/   being written, or left by a killed run: ignored, and removed at the next start

A save copies the shards to host memory and returns; writing goes on in a thread. Everything else that a run needs is
a pure function of the step (learning rate, rows, random numbers), so the state is small.
"""

import dataclasses
import os
import pickle
import platform
import shutil
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import orjson
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from logtrain.core.untrusted import from_json
from logtrain.core.world import host_group
from logtrain.training.optim import MOMENTS, create_moments, trained_parameters
from logtrain.training.state import TrainState

FACTS = "checkpoint.json"
INDEX = ".metadata"  # DCP's own, a pickle; `IndexReader` says what may be in it
INDEX_MAY_NAME = {
    "torch": {"Size", *(str(t).removeprefix("torch.") for t in vars(torch).values() if isinstance(t, torch.dtype))},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "MetadataIndex", "StorageMeta", "TensorStorageMetadata", "BytesStorageMetadata"),
        *("ChunkStorageMetadata", "TensorProperties", "_MEM_FORMAT_ENCODING"),
    },
    "pathlib": {"PosixPath"},
}


class Checkpoints:
    """The checkpoints of one run. Every rank makes one and calls the same methods; rank 0 names, checks and prunes
    the folders.
    """

    def __init__(self, folder: Path, keep: int = 0, keep_best: bool = False):
        """`keep`: how many of the newest stay; 0 keeps all. `keep_best`: and that of state["best_step"]."""
        self.folder, self.keep, self.keep_best = folder, keep, keep_best
        self.is_main = dist.get_rank() == 0
        # The writing thread's own: its messages must not meet the training's, and disks may be slow.
        self.group = host_group()
        self.thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self.writing: Future | None = None

    def clean(self) -> None:
        """Remove what a killed run left behind; for the run that owns the folder, before its first save."""
        if self.is_main:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.partial"):
                shutil.rmtree(left)
        dist.barrier(self.group)
        if not self.folder.is_dir():
            raise ValueError(
                f"{self.folder}: not there on {platform.node()}; --runs must lie on a disk all nodes share"
            )

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainState) -> None:
        """Begin to write `step-<state.step>`; waits only for the copy to host memory and for an earlier save still
        being written.
        """
        self.wait()
        name = f"step-{state.step:06d}"
        aside = self.folder / f".{name}.partial"
        written = async_save(tensors_of(model, optimizer), checkpoint_id=aside, process_group=self.group)
        assert isinstance(written, Future)
        self.writing = self.thread.submit(self.finish, written, aside, name, dataclasses.replace(state))

    def finish(self, written: Future, aside: Path, name: str, state: TrainState) -> None:
        """In the writing thread: rank 0 gives the checkpoint its name once every rank has written its shards.

        No rank returns before that, and all raise if it fails: one that went on could end its process, and torchrun
        would end rank 0 over it, just before the rename.
        """
        written.result()  # what failed on one rank is raised on all
        problem = [None]
        if self.is_main:
            try:
                self.complete_folder(aside, name, state)
            except OSError as error:
                problem = [error]
        dist.broadcast_object_list(problem, src=0, group=self.group)
        if problem[0]:
            raise problem[0]

    def complete_folder(self, aside: Path, name: str, state: TrainState) -> None:
        facts = {"state": dataclasses.asdict(state), "ranks": dist.get_world_size(), "files": checksums(aside)}
        with open(aside / FACTS, "wb") as file:
            file.write(orjson.dumps(facts, option=orjson.OPT_INDENT_2))
            file.flush()
            os.fsync(file.fileno())
        sync_folder(aside)
        os.rename(aside, self.folder / name)
        sync_folder(self.folder)
        if self.keep:
            best = state.best_step if self.keep_best else None
            for old in (path for path in self.complete()[: -self.keep] if step_of(path) != best):
                doomed = self.folder / f".{old.name}.partial"
                os.rename(old, doomed)  # a kill between the two leaves no half checkpoint under its name
                shutil.rmtree(doomed, ignore_errors=True)  # what is still being read goes at the next start

    def wait(self) -> None:
        """Until the save under way is complete on this rank; its error, if any, is raised here."""
        if self.writing is None:
            return
        writing, self.writing = self.writing, None
        try:
            writing.result()
        except (OSError, CheckpointException) as error:
            # torch calls it "unexpected pos" when a disk is full; what was written until then fills it still.
            full = "No space left" in reason(error) or shutil.disk_usage(self.folder).free < 1 << 20
            why = "no space left on the device; free some and resume" if full else reason(error)
            raise ValueError(f"{self.folder}: checkpoint not saved: {why}") from error

    def failed(self) -> bool:
        """Whether the save under way has failed; does not wait for it. `wait` raises the error."""
        return self.writing is not None and self.writing.done() and self.writing.exception() is not None

    def at(self, step: int) -> Path:
        """The complete checkpoint of a step; 0: the newest."""
        found = {step_of(path): path for path in self.complete()}
        if not found or (step and step not in found):
            wanted = f"no checkpoint of step {step}" if step else "no complete checkpoint"
            raise ValueError(f"{self.folder}: {wanted}; there are: {', '.join(map(str, found)) or 'none'}")
        return found[step or max(found)]

    def complete(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        named = (path for path in self.folder.glob("step-*") if path.name.removeprefix("step-").isdecimal())
        return sorted(named, key=step_of)

    def newest(self) -> Path | None:
        """The newest complete checkpoint, the same on every rank."""
        box = [next(reversed(self.complete()), None)]
        dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> TrainState:
        """Fill the model (and the optimizer) in place from `path`; -> the state given to `save`. ValueError where
        anything is damaged.
        """
        state, files = read_facts(path)
        damage = find_damage(path, files) if self.is_main else None
        box = [damage]
        dist.broadcast_object_list(box, src=0, group=self.group)
        if box[0]:
            raise ValueError(f"{path}: corrupt checkpoint: {box[0]}; remove it to resume from an older one")
        if optimizer is not None:
            create_moments(model, optimizer, state.step)
        try:
            load(tensors_of(model, optimizer), checkpoint_id=path, process_group=self.group)
        except CheckpointException as error:
            raise ValueError(f"{path}: does not fit this model: {reason(error)}") from error
        return state

    def close(self) -> None:
        self.wait()
        self.thread.shutdown()


def tensors_of(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """Names -> this rank's shards of trained weights and of the optimizer's moments, sharing memory with them. Frozen
    weights come from where they came from before.
    """
    tensors = {}
    for name, parameter in trained_parameters(model):
        tensors[f"model.{name}"] = parameter.detach()
        if optimizer is not None:
            moments = optimizer.state[parameter]
            tensors |= {f"optimizer.{key}.{name}": moments[key] for key in MOMENTS}
    return tensors


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def read_facts(path: Path) -> tuple[TrainState, dict[str, dict]]:
    """What checkpoint.json says: the state of the run, and size and checksum of each file."""
    try:
        facts = orjson.loads((path / FACTS).read_bytes())
        state, files = from_json(TrainState, facts["state"]), facts["files"]
        if state.step >= 0 and files:
            return state, files
    except FileNotFoundError:
        raise ValueError(f"{path}: not a complete checkpoint (no {FACTS})") from None
    except (orjson.JSONDecodeError, ValueError, KeyError, TypeError):
        pass
    raise ValueError(f"{path / FACTS}: damaged; remove the checkpoint to resume from an older one")


def checksums(folder: Path) -> dict[str, dict]:
    """Size and CRC-32 of every file in the folder; 8 threads read about 8 GB/s, so 96 GB (8B parameters) take 12 s
    off the training's path.
    """
    files = sorted(path for path in folder.iterdir() if path.name != FACTS)
    with ThreadPoolExecutor(8) as threads:
        sums = threads.map(crc32, files)
        return {
            path.name: {"bytes": path.stat().st_size, "crc32": total} for path, total in zip(files, sums, strict=True)
        }


def crc32(path: Path) -> int:
    total = 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 24):
            total = zlib.crc32(chunk, total)
    return total


def find_damage(path: Path, expected: dict[str, dict]) -> str | None:
    for name, fact in expected.items():
        if not (path / name).exists():
            return f"{name} is missing"
        if (size := (path / name).stat().st_size) != fact["bytes"]:
            return f"{name} has {size} bytes instead of {fact['bytes']}"
    found = checksums(path)
    if changed := [name for name in expected if found[name] != expected[name]]:
        return f"{changed[0]} has another checksum"
    try:
        with open(path / INDEX, "rb") as file:
            IndexReader(file).load()
    except Exception as error:  # whatever a damaged pickle comes to
        return f"{INDEX}: {error}"
    return None


class IndexReader(pickle.Unpickler):
    """Reads DCP's index before DCP does, and refuses one that would run anything: checkpoints may come from others."""

    def find_class(self, module: str, name: str) -> object:
        if name not in INDEX_MAY_NAME.get(module, ()):
            raise pickle.UnpicklingError(f"names {module}.{name}, which no checkpoint holds")
        return super().find_class(module, name)


def reason(error: BaseException) -> str:
    """The first cause of a DCP failure, in words."""
    causes = [error]
    if isinstance(error, CheckpointException):
        causes = [cause for cause, _ in error.failures.values()]
    cause = next((cause for cause in causes if isinstance(cause, OSError)), causes[0])
    return f"{type(cause).__name__}: {str(cause).splitlines()[0] if str(cause) else ''}"


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)

"""The reference of a run on pairs: what the model finds of every answer before it is trained, computed once.

    reference-<key>-train.npy     beside the shards of a split: fp32 [D, 2], the log-probabilities of the chosen and
                                  of the rejected answer of each pair, in nats
    reference-<key>-train.json    sealed: hash of the model, precision, fingerprint of the data, checksum of the numbers

The key stands for the model's weights and the precision, so that another run of the same model on the same data finds
them, and one of another model computes its own. A resumed run must find those that it began with.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from logtrain.core.atomic import write_file
from logtrain.core.untrusted import read_bytes, read_sealed, sealed
from logtrain.data.pairs import PairLoader
from logtrain.model.base import weights_sha256
from logtrain.model.llama import Llama
from logtrain.training.preference import log_probabilities
from logtrain.training.setup import RunSetup
from logtrain.training.sharding import free_gathered


def give_references(run: RunSetup, model: Llama, *, is_new: bool) -> list[str]:
    """Give every loader of a run the reference of its pairs; -> what was done, in sentences. Every rank calls this.

    `model`: with the weights that the run starts from, if `is_new`. Raises ValueError where a run that is resumed does
    not find its reference, and for one that is damaged or of other data.
    """
    digest = run.world.from_main(weights_sha256(Path(run.config.model)) if run.world.is_main else None)
    told = []
    for loader in (run.data.train, *run.data.valid.values()):
        assert isinstance(loader, PairLoader)
        told.append(give_reference(run, model, loader, digest, is_new))
    return told


def give_reference(run: RunSetup, model: Llama, loader: PairLoader, digest: str, is_new: bool) -> str:
    """The same for one loader."""
    split, dtype = loader.split, precision_of(run)
    start = "new" if run.config.init == "pretrained" else f"random {run.config.seed}"
    facts = {"model_sha256": digest, "start": start, "dtype": dtype, "data": split.manifest["fingerprint"]}
    key = hashlib.sha256(f"{digest} {start} {dtype}".encode()).hexdigest()[:16]
    file = split.folder / f"reference-{key}-{split.name}.npy"
    is_there = run.world.from_main(file.with_suffix(".json").exists() if run.world.is_main else None)
    if not is_there:
        if not is_new:
            raise ValueError(
                f"{file}: missing, and this run has left the model that it began with, or {run.config.model} is "
                f"another model by now, or {dtype} another precision; restore it, or start a new run"
            )
        found_D2 = computed(run, model, loader)
        if len(lost := np.flatnonzero(~np.isfinite(found_D2).all(1))):
            path, row, _ = split.origin(int(lost[0]))
            raise ValueError(
                f"{run.config.model}: gives no finite log-probability for {len(lost):,} of {len(found_D2):,} pairs, "
                f"first {path} row {row}; the model is damaged, or {dtype} too narrow for it"
            )
        if run.world.is_main:
            content = io.BytesIO()
            np.save(content, found_D2)
            write_file(file, content.getvalue())
            of_file = {"pairs": len(found_D2), "sha256_of_numbers": hashlib.sha256(content.getvalue()).hexdigest()}
            write_file(file.with_suffix(".json"), sealed(facts | of_file))
    loader.reference_D2 = run.world.from_main(
        read(file, facts, len(loader.reference_D2)) if run.world.is_main else None
    )
    return f"reference log-probabilities of {len(loader.reference_D2):,} pairs: {'from' if is_there else 'in'} {file}"


def precision_of(run: RunSetup) -> str:
    """In which precision the model answers, in words."""
    dtype, fp8 = str(run.dtype).removeprefix("torch."), run.config.fp8
    return f"{dtype} with float8 {fp8.recipe} but {list(fp8.keep)}" if run.config.precision == "fp8" else dtype


def read(file: Path, facts: dict[str, Any], count: int) -> np.ndarray:
    """The numbers of a file, fp32 [count, 2]. Raises ValueError where they are damaged, or of another model or data
    than `facts` says.
    """
    try:
        there, content = read_sealed(file.with_suffix(".json")), read_bytes(file, 1 << 34)
    except ValueError as error:
        raise ValueError(f"{error}; delete {file.stem}.* to compute it anew") from None
    for name, value in {**facts, "pairs": count}.items():
        if there.get(name) != value:
            raise ValueError(
                f"{file}: is the reference of another {name} than this run has; delete it to compute it anew"
            )
    if hashlib.sha256(content).hexdigest() != there.get("sha256_of_numbers"):
        raise ValueError(f"{file}: damaged; delete it and {file.with_suffix('.json').name} to compute it anew")
    found_D2 = np.load(io.BytesIO(content), allow_pickle=False)
    if found_D2.shape != (count, 2) or found_D2.dtype != np.float32 or not np.isfinite(found_D2).all():
        raise ValueError(f"{file}: not {count} pairs of finite float32; delete it to compute it anew")
    return found_D2


@torch.no_grad()
def computed(run: RunSetup, model: Llama, loader: PairLoader) -> np.ndarray:
    """fp32 [D, 2]: what the model finds of every pair, each rank of those in its rows, added up over the ranks."""
    world, sums_D2 = run.world, torch.zeros(loader.reference_D2.shape)
    for number in range(loader.steps_per_epoch):
        world.note(f"reference log-probabilities, step {number + 1} of {loader.steps_per_epoch}")
        for batch in loader.at(number).batches:
            found, is_pair_P = log_probabilities(model, batch.to(world.device))
            assert batch.pairs_P3 is not None
            places = batch.pairs_P3[is_pair_P.cpu(), 2].cpu()
            sums_D2[places] = found[is_pair_P].float().cpu()
    free_gathered(model)
    dist.all_reduce(sums_D2, group=world.control)
    return sums_D2.numpy()

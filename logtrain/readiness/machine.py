"""What a run needs of a machine beside its disk: shared memory, a folder for temporary files, memory, ports."""

import tempfile
from pathlib import Path
from shutil import disk_usage

from logtrain.core.units import size
from logtrain.model.llama import LlamaConfig
from logtrain.model.lora import num_adapter_parameters
from logtrain.readiness import container
from logtrain.training.config import RunConfig

SHARED = Path("/dev/shm")
SHARED_OF_GPUS = 1 << 30  # bytes that NVIDIA asks for where several GPUs of a machine talk through NCCL
SHARED_AT_LEAST = 1 << 20  # for semaphores
OF_TRAINED, OF_FROZEN = 16, 4  # bytes a parameter, fp32: the weight, its gradient and two moments; the weight alone


def check_shared_memory(gpus: int, folder: Path = SHARED) -> str:
    """The room in shared memory, in words. `gpus`: ranks on GPUs of this machine. Raises ValueError for too little."""
    if not folder.is_dir():
        return "no /dev/shm"
    free, need = disk_usage(folder).free, SHARED_OF_GPUS if gpus > 1 else SHARED_AT_LEAST
    if free < need:
        raise ValueError(
            f"{folder}: {size(free)} free, {size(need)} needed; remove what is left there, or start the container "
            f"with --shm-size=8g"
        )
    return f"{size(free)} free in {folder}"


def check_temporary(ranks: int, documents: int = 0) -> str:
    """The room for temporary files, in words: the ranks of a machine share a packed epoch there. Raises ValueError
    where nothing can be written, or not enough.
    """
    need = (1 << 20) + (64 * documents if ranks > 1 else 0)
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise ValueError(f"{error.strerror}; set TMPDIR to a folder that can be written to") from None
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 12))
            file.flush()
    except OSError as error:
        raise ValueError(f"{folder}: {error.strerror}; set TMPDIR to a folder that can be written to") from None
    if (free := disk_usage(folder).free) < need:
        raise ValueError(f"{folder}: {size(free)} free for temporary files, {size(need)} needed; set TMPDIR elsewhere")
    return f"{size(free)} free in {folder}"


def memory_of_machine() -> int:
    """Bytes of memory that are to be had on this machine now, or in this container."""
    return container.memory()[1]


def bytes_of_state(config: RunConfig, shape: LlamaConfig) -> int:
    """Bytes that weights, gradients and moments take over all ranks, in fp32: the least that a run needs."""
    adapters = num_adapter_parameters(shape, config.lora)
    if adapters:
        return OF_TRAINED * adapters + OF_FROZEN * shape.num_parameters
    return OF_TRAINED * shape.num_parameters


def check_memory(need: float, have: float, where: str) -> str:
    """Whether what a run surely needs there is to be had, in words. Raises ValueError where it is not."""
    if need > have:
        raise ValueError(
            f"weights, gradients and moments alone take {size(need)} {where}, {size(have)} are free; use more ranks, "
            f"adapters (--lora.rank 16), or a smaller model"
        )
    return f"weights, gradients and moments take {size(need)} of {size(have)} free {where}"

"""Merging: one model folder is made of a model folder and an adapter folder, and compared with the two before it gets
its name.
"""

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from logtrain.core.atomic import new_folder
from logtrain.core.batch import Batch
from logtrain.core.checksums import check_folder, write_checksums
from logtrain.core.lineage import parent_of, write_lineage
from logtrain.core.still import note
from logtrain.model import hf, published
from logtrain.model.adapter import BY_MERGE, Adapter, NotComputed
from logtrain.model.base import read_base, read_reference
from logtrain.model.card import write_card
from logtrain.model.llama import Llama, LlamaConfig
from logtrain.model.peft_merge import PeftMerge
from logtrain.model.weights import read_model
from logtrain.text import template_source
from logtrain.text.template_source import TemplateSource, tokenizer_file

CPU = torch.device("cpu")
TOKENS = 256  # for the comparison
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest logit; rounding W to bf16 moves them by 1%
REMEDY = {torch.float32: "", torch.bfloat16: "; --dtype float32 rounds less"}


class MergeResult(NamedTuple):
    """What is known of a model that has been merged."""

    difference: float
    """The largest difference of its logits from those of model and adapter, as a share of the largest logit."""
    odd: list[str]
    """What is odd about its files, in sentences for the user."""
    dtype: str
    """Precision of its weights, by its name in torch."""


def merge_folders(source: Path, adapter: Path, output: Path, dtype_name: str) -> MergeResult:
    """Write `output`, the model of `source` with the adapter in its weights, in the dtype of that name in torch;
    "auto": the one in which the adapter's run has exported, else bfloat16.

    Raises ValueError for folders that do not belong together, an `output` that exists, and where the logits differ by
    more than TOLERANCE.
    """
    if output.exists():
        raise ValueError(f"{output}: exists already; choose another --output")
    recorded = read_reference(adapter).get("dtype")
    if dtype_name == "auto":
        dtype_name = recorded if isinstance(recorded, str) and recorded in ("float32", "bfloat16") else "bfloat16"
    dtype = getattr(torch, dtype_name)
    for folder in (source, adapter):
        check_folder(folder)
    base_shape = hf.read_config(source)
    published.check_source(source, base_shape)
    published.read_generation(adapter / published.GENERATION)
    note(f"reading {source}")
    shape, tensors, reference = merged(source, adapter, base_shape)
    files = published.read_tokenizer(adapter if tokenizer_file(adapter) else source, shape).files
    template = template_source.template_of(adapter)
    with new_folder(output) as aside:
        note(f"writing {output}")
        hf.save(aside, shape, tensors, dtype, source=source, tokenizer_files=files)
        copy_learned_files(adapter, aside, template)
        write_card(aside, output.name, "merge", read_base(source))
        write_lineage(aside, [parent_of("model", source), parent_of("adapter", adapter)], {"dtype": dtype_name})
        note("comparing the logits")
        before = reference()
        after = logits(read_model(shape, hf.Weights(aside, shape), CPU, torch.float32))
        difference = ((after - before).abs().max() / before.abs().max()).item()
        write_checksums(aside)
        if not difference <= TOLERANCE[dtype]:
            raise ValueError(
                f"{output}: logits differ by {difference:.1e} of the largest from those of model and adapter, more "
                f"than {TOLERANCE[dtype]:.0e}; not written{REMEDY[dtype]}"
            )
        with published.called(aside, output):
            odd = published.check_model(aside, trained_template=template is not None)
    return MergeResult(difference, [line.replace(str(aside), str(output)) for line in odd], dtype_name)


class Merged(NamedTuple):
    """A model with an adapter in its weights, before they are written."""

    shape: LlamaConfig
    """Sizes of the model, which the adapter may have changed."""
    tensors: Iterable[tuple[str, Tensor]]
    """Our names and full tensors, in order."""
    logits: Callable[[], Tensor]
    """Gives what it should compute of the tokens of `logits`."""


def merged(source: Path, adapter: Path, shape: LlamaConfig) -> Merged:
    """Merges the adapter into the model in `source`, which has this shape; by PEFT, what is not computed here."""
    try:
        learned = Adapter(adapter, shape)
    except NotComputed as error:
        by_peft = PeftMerge(source, adapter, shape, tokens_of(shape.vocab_size), str(error).removesuffix(BY_MERGE))
        return Merged(by_peft.shape, by_peft.tensors(), lambda: by_peft.logits)
    shape, weights = learned.shape, learned.merged(hf.Weights(source, shape))
    tensors = ((name, torch.cat(list(weights.rows(name, 0, sys.maxsize)))) for name in hf.published_tensors(shape))
    return Merged(shape, tensors, lambda: logits(read_model(shape, weights, CPU, torch.float32)))


def tokens_of(vocab_size: int) -> Tensor:
    """Returns fixed random tokens: int64 [TOKENS]."""
    return torch.randint(vocab_size, (TOKENS,), generator=torch.Generator().manual_seed(0))


def copy_learned_files(adapter: Path, folder: Path, template: TemplateSource | None) -> None:
    """Copy the settings of chat and generation to the model in `folder` from an adapter that has learned others."""
    for name in (template_source.CONFIG, published.GENERATION):
        if os.path.lexists(adapter / name):
            hf.copy(adapter / name, folder)
    if template:
        (folder / template_source.FILE).write_text(template.text, encoding="utf-8")
        if not os.path.lexists(adapter / published.GENERATION):  # as others leave it out
            published.add_end(folder)
    hf.leave_one_template(folder)


@torch.no_grad()
def logits(model: Llama) -> Tensor:
    """Returns the logits, fp32 [TOKENS, V], of fixed random tokens, which are one document."""
    tokens = tokens_of(model.config.vocab_size)
    positions, bounds = torch.arange(TOKENS, dtype=torch.int32), torch.tensor([0, TOKENS], dtype=torch.int32)
    return model(Batch(tokens, None, positions, bounds, TOKENS))

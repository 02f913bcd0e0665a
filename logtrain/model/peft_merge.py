"""Adapters that are merged by PEFT itself: what adapter.py does not compute (LoHa, LoKr, IA3, OFT, PiSSA, ...).

PEFT and transformers are optional (`pip install logtrain[peft]`), and take a model folder and an adapter's safetensors,
as adapter.py does. What they make is not believed: the adapter must hold what its file holds, another load of it must
compute the same, and the merged weights, as they are written, must compute what model and adapter compute apart.
"""

import contextlib
import json
import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logtrain.core.untrusted import shown
from logtrain.model import peft
from logtrain.model.hf_layout import published_tensors
from logtrain.model.llama import LlamaConfig

ELSEWHERE = ("XLORA",)  # methods that load other adapters, from wherever their files say
UNUSED = re.compile(r"\.(original_module|base_layer)\.")  # of the model itself, which PEFT stores beside some adapters
CLOSE = 1e-4  # of the largest logit, in fp32


class PeftMerge:
    """A model with an adapter that PEFT has merged into it. shape: of what it is now. logits: [T, V] of `tokens_T`, by
    model and adapter apart.
    """

    def __init__(self, base: Path, folder: Path, shape: LlamaConfig, tokens_T: Tensor, why: str):
        """`base`: the folder of the model, of this shape. `why`: what adapter.py says of the adapter. Raises ValueError
        where PEFT is not installed, does not merge it, or does not compute the same twice.
        """
        file, facts = folder / peft.CONFIG, peft.read_facts(folder)
        if facts.get("peft_type") in ELSEWHERE:
            raise ValueError(f"{why}, nor merged: it is several adapters, which lie elsewhere")
        peft.read_tensors(folder)  # which says what is wrong with them
        try:
            import peft as theirs
            import transformers
        except ImportError:
            raise ValueError(f"{why} here; PEFT can merge it: pip install logtrain[peft], and again") from None
        transformers.utils.logging.disable_progress_bar()
        with in_one_line(file):
            again = logits(adapted(theirs, transformers, base, folder, seed=1), tokens_T)
            model = adapted(theirs, transformers, base, folder, seed=2)
            self.logits = logits(model, tokens_T)
            if not (self.logits - again).abs().max() <= CLOSE * again.abs().max():
                raise ValueError("what it computes is drawn at random whenever it is loaded")
            if not hasattr(model, "merge_and_unload"):
                raise ValueError("what this method computes is no weight of a Llama")
            self._tensors: dict[str, Tensor] = model.merge_and_unload().state_dict()
            self.shape = self._checked(shape)

    def _checked(self, shape: LlamaConfig) -> LlamaConfig:
        """Returns the shape of the merged model, which is tied no more where its two matrices differ."""
        head, embedding = self._tensors["lm_head.weight"], self._tensors["model.embed_tokens.weight"]
        shape = replace(shape, tied=shape.tied and torch.equal(head, embedding))
        known = {
            part.name: part.shape for parts in published_tensors(replace(shape, tied=False)).values() for part in parts
        }
        for name in known.keys() | self._tensors.keys():
            if name not in known or known[name] != tuple(self._tensors[name].shape):
                raise ValueError(f"it leaves {name}, which is no tensor of this Llama")
        return shape

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yields our names and full tensors, in order."""
        for name, parts in published_tensors(self.shape).items():
            yield name, torch.cat([self._tensors[part.name] for part in parts])


def adapted(theirs: Any, transformers: Any, base: Path, folder: Path, seed: int) -> Any:
    """Returns PEFT's model of a model and an adapter, fp32. `seed`: of what PEFT draws. Raises ValueError where it does
    not hold what the adapter's file holds.
    """
    torch.manual_seed(seed)
    plain = transformers.LlamaForCausalLM.from_pretrained(
        base, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    model = theirs.PeftModel.from_pretrained(plain, folder, local_files_only=True, autocast_adapter_dtype=True).eval()
    given = {name: tensor for name, tensor in peft.read_tensors(folder).items() if not UNUSED.search(name)}
    taken = theirs.get_peft_model_state_dict(model, save_embedding_layers=False)
    wrong = sorted(given.keys() ^ taken.keys()) or [
        n for n in given if not torch.equal(given[n].float(), taken[n].float())
    ]
    if wrong:
        raise ValueError(f"its tensor {wrong[0][:99]} does not get into the model")
    return model


@torch.no_grad()
def logits(model: Any, tokens_T: Tensor) -> Tensor:
    """Returns what a model of transformers or PEFT computes of int64 tokens: logits [T, V] in its dtype."""
    return model(tokens_T[None]).logits[0]


@contextlib.contextmanager
def in_one_line(file: Path) -> Iterator[None]:
    """Whatever PEFT raises of an adapter becomes a ValueError of one line; what it tells besides is left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        kind = shown(json.loads(file.read_bytes()).get("peft_type"))
        what = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{file}: peft_type = {kind}: not merged by PEFT: {what}") from None

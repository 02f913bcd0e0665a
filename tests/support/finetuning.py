"""Fine-tuning runs for tests: their settings, what they leave, and the same run by PEFT."""

import json
import math
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.prepared import sha256_of
from logtrain.data.shards import Split
from logtrain.model import hf
from logtrain.model.config import LoraConfig
from logtrain.model.lora import InitialAdapters
from logtrain.text.config import DATE
from logtrain_kernels import dropout_steps
from logtrain_kernels.dropout import kept_reference, kept_scale
from tests.support.lora import in_peft, with_adapters
from tests.support.synthetic import change_manifest
from tests.support.training import records

SEQ_LEN, ROWS_PER_STEP, STEPS, LR, DROPOUT = 48, 8, 10, 3e-2, 0.2
LORA, DROP = LoraConfig(rank=3, alpha=8.0, dropout=DROPOUT), dropout_steps(DROPOUT)
# No matrix has a multiple of 4 rows, and 3 is the rank: over 4 ranks they are uneven, one holds nothing of some.
SHAPE = {"vocab_size": 131, "hidden_size": 30, "intermediate_size": 53, "num_attention_heads": 3}
EXACT = ("step", "epoch", "loss", "grad_norm", "lr", "tokens", "targets", "set", "valid_loss", "valid_targets")
SFT = "logtrain.sft"


class Masked(nn.Module):
    """In place of PEFT's dropout: what we drop of the document under way."""

    def __init__(self, name: str, width: int, now: SimpleNamespace):
        super().__init__()
        self.salt = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), signed=True)
        self.width, self.now = width, now

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * kept_reference(self.now.seeds, self.salt, DROP, self.width) * kept_scale(DROP)


def as_chats(data: Path) -> Path:
    """A prepared folder whose documents pass for chats, by a template for the tokenizer of synthetic models."""
    source = "{{ bos_token }}{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    chat = {"template_path": "", "template": source, "template_sha256": sha256_of(source), "named_tokens": {}}
    settings = json.loads((data / "manifest.json").read_text())["settings"] | {"date": DATE}
    change_manifest(data, chat=chat, settings=settings)
    return data


OURS = {"q_proj": "attention.qkv", "k_proj": "attention.qkv", "v_proj": "attention.qkv", "o_proj": "attention.out"}
OURS |= {"gate_proj": "feed_forward.gate_up", "up_proj": "feed_forward.gate_up", "down_proj": "feed_forward.down"}


def pefts_run(folder: Path, model: Path, data: Path) -> SimpleNamespace:
    """10 steps by transformers, PEFT and torch's AdamW on one document at a time, from our initial adapters."""
    shape, now = hf.read_config(model), SimpleNamespace()
    initial = InitialAdapters(hf.Weights(model, shape), shape, LORA, seed=1309)
    ours = with_adapters(model, LORA, initial)
    theirs = in_peft(ours, model, LORA, folder / "initial")
    for name, layer in theirs.named_modules():
        if hasattr(layer, "lora_dropout"):
            _, block, _, target = name.split("layers.")[1].rpartition(".")[0], *name.split(".")[-3:]
            layer.lora_dropout["default"] = Masked(f"blocks.{block}.{OURS[target]}", layer.in_features, now)
    loader, valid = (
        Loader(Split.open(data, split), LoaderConfig(seq_len=SEQ_LEN, rows_per_step=rows), seed=1309, pad_id=1)
        for split, rows in (("train", ROWS_PER_STEP), ("valid", 1))
    )
    assert loader.steps_per_epoch < STEPS < 2 * loader.steps_per_epoch, "10 steps are to reach into a second epoch"
    numbers = {len(loader.rows(step)) for step in range(STEPS)}
    assert numbers - {ROWS_PER_STEP}, f"some steps are to have other numbers of rows than {numbers}"

    def summed(step) -> Tensor:
        total = torch.zeros(())
        for batch in step.batches:
            for start, end in pairwise(batch.cu_seqlens.unique().tolist()):
                now.seeds = batch.seeds_T[start:end]
                logits = theirs(batch.tokens_T[None, start:end]).logits[0]
                labels = batch.labels_T[start:end]
                total = total + F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        return total

    def validate() -> float:
        theirs.eval()
        steps = [valid.at(i) for i in range(valid.steps_per_epoch)]
        with torch.no_grad():
            return sum(summed(step).item() for step in steps) / sum(step.targets for step in steps)

    trained = [p for p in theirs.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=0.01, fused=False, foreach=False)
    losses, norms, valid_losses = [], [], [validate()]
    for i in range(STEPS):
        if i == loader.steps_per_epoch:
            valid_losses.append(validate())
        theirs.train()
        step = loader.at(i)
        loss = summed(step) / step.targets
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(trained, 1.0).item())
        losses.append(loss.item())
        progress = max(0, i - 1) / (STEPS - 2)
        for group in optimizer.param_groups:
            group["lr"] = LR * (1 if i < 1 else 0.5 + 0.5 * math.cos(math.pi * progress))
        optimizer.step()
        optimizer.zero_grad()
    valid_losses.append(validate())
    return SimpleNamespace(losses=losses, grad_norms=norms, valid_losses=valid_losses, model=theirs)


def series(run: Path) -> list[dict]:
    """What the steps gave, without what the clock and the machine gave."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: record[key] for key in EXACT if key in record} for record in lines]


def written(run: Path) -> list[bytes]:
    return [(run / name).read_bytes() for name in ("export/model.safetensors", "adapter/adapter_model.safetensors")]


def valid_losses(run: Path) -> list[float]:
    """After steps 1, 2, ..."""
    return [record["valid_loss"] for record in records(run, "valid_loss")][1:]


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())

"""What a job is given, checked before anything large is loaded: a device that can run the model, and data, tokenizer
and model that belong together.
"""

from pathlib import Path

import torch

from logtrain.data.shards import Split
from logtrain.model.llama import AttentionBackend, LlamaConfig, use_attention
from logtrain.text.tokenizer import Tokenizer


def check_device(
    device: torch.device, dtype: torch.dtype, model: str, llama: LlamaConfig, backend: AttentionBackend
) -> None:
    """What attention on a GPU asks for, before anything large is loaded."""
    if device.type != "cuda":
        if backend != "torch":
            raise ValueError(f"attention_backend = {backend}: only for GPUs, and none was found; leave it at torch")
        return
    if dtype == torch.float32:
        raise ValueError("dtype = float32: attention on GPUs computes in bfloat16; set dtype to bfloat16 or auto")
    if llama.head_dim % 8 or llama.head_dim > 256:
        raise ValueError(f"{model}: heads of size {llama.head_dim}; on GPUs a multiple of 8 up to 256")
    if torch.cuda.get_device_capability(device) < (8, 0):
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"{name}: attention needs an Ampere GPU (A100) or a newer one")
    use_attention(backend)


def matching_tokenizer(split: Split, data: str, model: str, llama: LlamaConfig, seq_len: int) -> Tokenizer:
    """The tokenizer of the prepared data, after making sure that data, tokenizer and model belong together."""
    facts, prepared = split.manifest["tokenizer"], split.manifest["settings"]["seq_len"]
    if facts["vocab_size"] > llama.vocab_size:
        raise ValueError(
            f"{data}: its tokenizer has {facts['vocab_size']} ids, the model {model} only {llama.vocab_size}; "
            f"prepare the data with the model's own tokenizer"
        )
    if seq_len > llama.max_positions:
        raise ValueError(f"loader.seq_len = {seq_len}: the model {model} knows {llama.max_positions} positions")
    if seq_len != prepared:
        raise ValueError(f"loader.seq_len = {seq_len}, but {data} was prepared for {prepared}; set one to the other")
    has_own = any((Path(model) / name).exists() for name in ("tokenizer.json", "tokenizer.model"))
    own = model if has_own else facts["path"]
    tokenizer = Tokenizer.load(own)
    if tokenizer.sha256 != facts["sha256"] and own == facts["path"]:
        raise ValueError(f"{own}: the tokenizer has changed since {data} was prepared; prepare it again")
    if tokenizer.sha256 != facts["sha256"]:
        raise ValueError(
            f"{data}: was prepared with another tokenizer than that of {own}; prepare it with --tokenizer {own}"
        )
    return tokenizer


def valid_splits(train: Split, data: str, named: tuple[str, ...], verify: bool) -> dict[str, Split]:
    """The data's own validation split as "valid" (if it has one), then the named ones."""
    splits = {}
    if "valid" in train.manifest["splits"]:
        splits["valid"] = Split.open(data, "valid", verify)
    for text in named:
        name, equals, folder = text.partition("=")
        if not equals or not name or name in splits:
            raise ValueError(
                f"valid = {text!r}: expected NAME=FOLDER, each name once" + ' and not "valid"' * (name == "valid")
            )
        splits[name] = Split.open(folder, "valid", verify)
        if splits[name].manifest["tokenizer"]["sha256"] != train.manifest["tokenizer"]["sha256"]:
            raise ValueError(f"{folder}: was prepared with another tokenizer than {data}")
    return splits

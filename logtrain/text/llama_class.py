"""What Llama's class of tokenizers (`tokenizer_class`) makes of a tokenizer.json: transformers takes only vocabulary
and merges of the file, and how spaces are written from tokenizer_config.json.

The file itself may say otherwise: those that were converted by older versions put a space before every stretch of text
between two special tokens, also where the class puts one only before the first (`legacy` false). A file of byte-level
tokens (Llama 3, DeepSeek-R1-Distill) is taken as it is, whatever the class.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, pre_tokenizers

from logtrain.text.template_source import CONFIG, LLAMA_CLASSES, read_config

SPACE = "\u2581"


def as_its_class(tokenizer: tokenizers.Tokenizer, folder: Path) -> str:
    """Changes an opened tokenizer to what its class makes of it; returns what decides the ids, "" for a file that is
    taken as it is.
    """
    config = read_config(folder / CONFIG)
    if config.get("tokenizer_class") not in LLAMA_CLASSES or not isinstance(tokenizer.model, tokenizers.models.BPE):
        return ""
    parts = (tokenizer.pre_tokenizer, tokenizer.decoder)
    if any('"ByteLevel"' in json.dumps(json.loads(part.__getstate__())) for part in parts if part is not None):
        return ""
    puts_space = config.get("add_prefix_space") is not False
    is_legacy = config.get("legacy") is True and not config["tokenizer_class"].startswith("Code")
    scheme = "never" if not puts_space else "always" if is_legacy else "first"
    tokenizer.normalizer = None
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, prepend_scheme=scheme, split=False)
    ends = [decoders.Strip(" ", 1, 0)] if puts_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *ends]
    )
    tokenizer.model.fuse_unk, tokenizer.model.byte_fallback, tokenizer.model.unk_token = True, True, None
    return f"Metaspace, {scheme}"

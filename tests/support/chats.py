"""A small tokenizer with a chat template of its own, for tests that need no downloaded one."""

import json
import random
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

SPECIAL = ["<|begin|>", "<|end_of_text|>", "<|start|>", "<|header|>", "<|eot|>"]
WORDS = ["error", "disk", "sshd[24499]:", "Failed", "why", "because", "é", "10.0.0.1", "\n", "\n\n", "  ", "user"]

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EOS = {"__type": "AddedToken", "content": "<|eot|>", "lstrip": False, "rstrip": False, "normalized": False}
EOS |= {"single_word": False, "special": True}  # as older versions of transformers save it

TRIMMING = """{{- bos_token }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|header|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|header|>\n\n' }}
{%- endif %}
"""  # as Llama 3's
CHATML = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] + '<|eot|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)  # as SmolLM2's; needs a tokenizer without bos_token


def write_tokenizer(folder: Path, template: str | None = TRIMMING, bos: bool = True, **config) -> Path:
    """`config`: more of tokenizer_config.json."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    random_ = random.Random(0)
    tokenizer.train_from_iterator([" ".join(random_.choices(WORDS, k=12)) for _ in range(300)], trainer)
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.add_tokens(["<thought>"])
    if bos:
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, writing(tokenizer, "<|begin|>")])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    config |= {"bos_token": "<|begin|>"} if bos else {}
    config |= {} if template is None else {"chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def writing(tokenizer: tokenizers.Tokenizer, bos: str) -> processors.TemplateProcessing:
    """What writes a token before every text."""
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


def make_chats(num_rows: int) -> list[dict]:
    """Rows of sharegpt, a tenth of them seen before."""
    random_ = random.Random(0)

    def text(most: int) -> str:
        return " ".join(random_.choices(["error", "disk", "why", "é", "<|eot|>"], k=random_.randint(1, most)))

    rows = []
    for i in range(num_rows):
        if i and random_.random() < 0.1:
            rows.append(random_.choice(rows))
            continue
        turns = [{"from": name, "value": text(20)} for _ in range(random_.randint(1, 4)) for name in ("human", "gpt")]
        rows.append({"conversations": turns, "domain": random_.choice(["A", "B"])})
        if i % 3 == 0:
            rows[-1]["system"] = "sshd " + text(4)
    return rows

"""Generation beside transformers: `python -m benchmarks.decode [--model DIR] [--rounds 3] [--json]` (extra "bench").

Both answer the same 8 prompts of unequal length greedily, on the CPU in fp32 with the same threads, taking turns in one
process: transformers' `generate` pads them to one batch. Without --model a Llama of SmolLM2-135M's shape with random
weights answers random prompts. Prefill is the time to the first token of all, decode the rest; medians over the
rounds. Answers must agree, for fast wrong ones count for nothing.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from logtrain.generate import Generator, Request
from logtrain.pretrained import load_pretrained

LENGTHS = (283, 264, 148, 135, 112, 153, 139, 268)  # of the first questions of a set of log instructions
SMOLLM2_135M = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}


def write_model(folder: Path) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M, initializer_range=0.05)).save_pretrained(folder)
    vocab = {f"w{i}": i for i in range(SMOLLM2_135M["vocab_size"])}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


class Ours:
    def __init__(self, folder: Path):
        loaded = load_pretrained(folder, torch.device("cpu"), len(LENGTHS))
        self.generator = Generator(loaded.model, loaded.tokenizer, max_sequences=len(LENGTHS))

    def answers(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        requests = [Request(prompt=ids, max_new_tokens=new_tokens, ignore_stop_ids=True) for ids in prompts]
        return [answer.ids for _, answer in sorted(self.generator.run(requests))]


class Transformers:
    def __init__(self, folder: Path):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answers(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        options = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        return self.model.generate(ids, attention_mask=mask, **options)[:, longest:].tolist()


def timed(contestant: Ours | Transformers, prompts: list[list[int]], new_tokens: int) -> tuple[float, list]:
    """(seconds, answers)"""
    began = time.perf_counter()
    answers = contestant.answers(prompts, new_tokens)
    return time.perf_counter() - began, answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new_tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one object a line instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prefill, decode, answers = {}, {}, {}
    with tempfile.TemporaryDirectory() as name:
        folder = options.model or write_model(Path(name))
        contestants = {"logtrain": Ours(folder), "transformers": Transformers(folder)}
    random = np.random.default_rng(0)
    size = contestants["transformers"].model.config.vocab_size
    prompts = [random.integers(10, size, length).tolist() for length in LENGTHS]
    for contestant in contestants.values():
        contestant.answers(prompts, 2)  # what only a first call does
    for _ in range(options.rounds):
        for library, contestant in contestants.items():
            first, _ = timed(contestant, prompts, 1)
            whole, answers[library] = timed(contestant, prompts, options.new_tokens)
            prefill.setdefault(library, []).append(sum(LENGTHS) / first)
            decode.setdefault(library, []).append(len(LENGTHS) * (options.new_tokens - 1) / (whole - first))
    same = sum(ours == theirs for ours, theirs in zip(answers["logtrain"], answers["transformers"], strict=True))
    rows = [
        {
            "library": library,
            "prefill_tokens_per_second": statistics.median(prefill[library]),
            "decode_tokens_per_second": statistics.median(decode[library]),
            "equal_answers": same,
        }
        for library in contestants
    ]
    if options.json:
        print("\n".join(map(json.dumps, rows)))
        return
    print(f"{'':14} {'prefill':>9} {'decode':>9}  tokens/s; {same} of {len(LENGTHS)} answers are equal")
    for row in rows:
        print(f"{row['library']:14} {row['prefill_tokens_per_second']:9,.0f} {row['decode_tokens_per_second']:9,.1f}")
    ours, theirs = rows
    ratios = (ours[key] / theirs[key] for key in ("prefill_tokens_per_second", "decode_tokens_per_second"))
    print("{:14} {:9.2f} {:9.2f}".format("ratio", *ratios))


if __name__ == "__main__":
    main()

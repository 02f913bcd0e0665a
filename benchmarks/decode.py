"""Generation beside transformers: `python -m benchmarks.decode [--model DIR] [--rounds 5] [--json]` (extra "bench").

Both answer the same prompts of unequal length greedily, 8 at once, on the CPU in fp32 with the same threads, taking
turns in one process; transformers' `generate` pads 8 prompts to one batch. Without --model a Llama of SmolLM2-135M's
shape with random weights is asked random prompts. Two loads:

    equal     8 prompts, every answer of --new_tokens tokens. Prefill is the time to the first tokens, decode the rest
    unequal   24 prompts, answers of 0.2 to 1.8 times as many tokens, as answers that end by themselves have: a batch of
              transformers' goes on to its longest one, ours takes the next prompt. All the time counts

Medians over the rounds. Answers must agree, for fast wrong ones count for nothing.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from logtrain.generation.generator import Generator, Request
from logtrain.generation.load import load_pretrained

AT_ONCE = 8
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
        loaded = load_pretrained(folder, torch.device("cpu"), AT_ONCE)
        self.generator = Generator(loaded.model, loaded.tokenizer, max_sequences=AT_ONCE)

    def answers(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], float]:
        """(answers, when the first tokens of the first prompts were there)"""
        keys = [
            self.generator.submit(Request(prompt=ids, max_new_tokens=length, ignore_stop_ids=True))
            for ids, length in zip(prompts, lengths, strict=True)
        ]
        events = self.generator.step()
        first, done = time.perf_counter(), {}
        while len(done) < len(prompts):
            done |= {event.key: event.answer.ids for event in events if event.answer}
            events = self.generator.step()
        return [done[key] for key in keys], first


class Transformers:
    def __init__(self, folder: Path):
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answers(self, prompts: list[list[int]], lengths: list[int]) -> tuple[list[list[int]], float]:
        done, ticks = [], []

        def tick(ids: torch.Tensor, _scores: object, **_) -> torch.Tensor:
            ticks.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        for start in range(0, len(prompts), AT_ONCE):
            batch, wanted = prompts[start : start + AT_ONCE], lengths[start : start + AT_ONCE]
            longest, most = max(map(len, batch)), max(wanted)
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
            out = self.model.generate(ids, attention_mask=mask, stopping_criteria=[tick], **options)
            done += [row[:length] for row, length in zip(out[:, longest:].tolist(), wanted, strict=True)]
        return done, ticks[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--new_tokens", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="an object instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = options.model or write_model(Path(name))
        contestants = {"logtrain": Ours(folder), "transformers": Transformers(folder)}
    random = np.random.default_rng(0)
    size = contestants["transformers"].model.config.vocab_size
    prompts = [random.integers(10, size, length).tolist() for length in LENGTHS * 3]
    lengths = {
        "equal": [options.new_tokens] * AT_ONCE,
        "unequal": (random.uniform(0.2, 1.8, len(prompts)) * options.new_tokens).astype(int).clip(2).tolist(),
    }
    for contestant in contestants.values():
        contestant.answers(prompts[:AT_ONCE], [2] * AT_ONCE)  # what only a first call does
    rates: dict[tuple[str, str], list[float]] = {}
    answers = {}
    for _ in range(options.rounds):
        for load, (library, contestant) in itertools.product(lengths, contestants.items()):
            asked, wanted = prompts[: len(lengths[load])], lengths[load]
            began = time.perf_counter()
            answers[load, library], first = contestant.answers(asked, wanted)
            ended = time.perf_counter()
            if load == "equal":
                rates.setdefault(("prefill", library), []).append(sum(map(len, asked)) / (first - began))
                rates.setdefault(("decode", library), []).append(sum(n - 1 for n in wanted) / (ended - first))
            else:
                rates.setdefault(("unequal", library), []).append(sum(wanted) / (ended - began))
    differing = [
        load
        for load in lengths
        for ours, theirs in zip(answers[load, "logtrain"], answers[load, "transformers"], strict=True)
        if ours != theirs
    ]
    medians = {key: statistics.median(found) for key, found in rates.items()}
    result = {
        name: {library: medians[name, library] for library in contestants}
        | {"ratio": medians[name, "logtrain"] / medians[name, "transformers"]}
        for name in ("prefill", "decode", "unequal")
    }
    if options.json:
        print(json.dumps({**result, "differing_answers": len(differing)}))
        return
    print(f"{'tokens/s':10} {'logtrain':>12} {'transformers':>14} {'ratio':>7}")
    for name, row in result.items():
        print(f"{name:10} {row['logtrain']:12,.1f} {row['transformers']:14,.1f} {row['ratio']:7.2f}")
    print(f"answers that differ: {len(differing)} of {sum(map(len, lengths.values()))}")


if __name__ == "__main__":
    main()

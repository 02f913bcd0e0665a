"""Generation beside transformers: `python -m benchmarks.decode [--model DIR] [--rounds 5] [--json]` (extra "bench").

Both libraries answer the same prompts of unequal length greedily, 8 at once, on the CPU in fp32 with the same threads,
taking turns in one process; transformers' `generate` pads 8 prompts to one batch. Without --model a Llama of
SmolLM2-135M's shape with random weights is asked random prompts. There are two loads:

    equal     8 prompts, every answer of --new_tokens tokens. Prefill is the time to the first tokens, decode the rest
    unequal   24 prompts, answers of 0.2 to 1.8 times as many tokens, as answers that end by themselves have: a batch of
              transformers' goes on to its longest one, ours takes the next prompt. All the time counts

Rates are medians over the rounds. Answers must agree, for fast wrong ones count for nothing.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import tokenizers
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request

AT_ONCE = 8
LENGTHS = (283, 264, 148, 135, 112, 153, 139, 268)  # of the first questions of a set of log instructions
VOCABULARY = 49_152
SMOLLM2_135M = {
    "vocab_size": VOCABULARY,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rope_theta": 100_000.0,
    "tie_word_embeddings": True,
}
PHASES = ("prefill", "decode", "unequal")  # what is measured


class Load(NamedTuple):
    """Prompts to answer, and how long each answer is to be."""

    prompts: list[list[int]]
    lengths: list[int]
    """tokens of each answer"""


class Answers(NamedTuple):
    """What a library says to a load."""

    ids: list[list[int]]
    first: float
    """when the first tokens of the first prompts were there, in seconds of `time.perf_counter`"""


class Library(Protocol):
    """One of those that are compared."""

    def answers(self, load: Load) -> Answers:
        """Answer every prompt, 8 at once."""
        ...


class Ours:
    """logtrain's generator."""

    def __init__(self, folder: ModelFolder):
        loaded = folder.load(torch.device("cpu"), AT_ONCE)
        self.generator = Generator(loaded.model, folder.tokenizer, max_sequences=AT_ONCE)

    def answers(self, load: Load) -> Answers:
        request_ids = [
            self.generator.submit(Request(prompt=ids, max_new_tokens=length, ignore_stop_ids=True))
            for ids, length in zip(load.prompts, load.lengths, strict=True)
        ]
        events = self.generator.step()
        first, done = time.perf_counter(), {}
        while len(done) < len(load.prompts):
            done |= {event.request_id: event.answer.ids for event in events if event.answer}
            events = self.generator.step()
        return Answers([done[request_id] for request_id in request_ids], first)


class Transformers:
    """transformers' `generate`, a batch of padded prompts at a time."""

    def __init__(self, folder: Path):
        self.model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def answers(self, load: Load) -> Answers:
        done, ticks = [], []

        def tick(ids: torch.Tensor, _scores: object, **_) -> torch.Tensor:
            ticks.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        for start in range(0, len(load.prompts), AT_ONCE):
            batch, wanted = load.prompts[start : start + AT_ONCE], load.lengths[start : start + AT_ONCE]
            longest, most = max(map(len, batch)), max(wanted)
            ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
            mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
            options = {"max_new_tokens": most, "min_new_tokens": most, "do_sample": False, "pad_token_id": 0}
            # transformers' own types do not let a model generate
            out = self.model.generate(  # pyright: ignore[reportAttributeAccessIssue]
                ids, attention_mask=mask, stopping_criteria=[tick], **options
            )
            done += [row[:length] for row, length in zip(out[:, longest:].tolist(), wanted, strict=True)]
        return Answers(done, ticks[0])


def write_model(folder: Path) -> Path:
    """A Llama of SmolLM2-135M's shape with random weights."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M, initializer_range=0.05)).save_pretrained(folder)
    vocab = {f"w{i}": i for i in range(VOCABULARY)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="w0")).save(str(folder / "tokenizer.json"))
    return folder


def random_loads(vocab_size: int, new_tokens: int) -> dict[str, Load]:
    """The two loads by name, the same at every call."""
    random = np.random.default_rng(0)
    prompts = [random.integers(10, vocab_size, length).tolist() for length in LENGTHS * 3]
    unequal = (random.uniform(0.2, 1.8, len(prompts)) * new_tokens).astype(int).clip(2).tolist()
    return {"equal": Load(prompts[:AT_ONCE], [new_tokens] * AT_ONCE), "unequal": Load(prompts, unequal)}


def measure(
    libraries: Mapping[str, Library], loads: Mapping[str, Load], rounds: int
) -> tuple[dict[str, dict[str, float]], int]:
    """Tokens a second by what is measured and library, with their ratio; and how many answers differ."""
    for library in libraries.values():
        library.answers(Load(loads["equal"].prompts, [2] * AT_ONCE))  # what only a first call does
    rates: dict[tuple[str, str], list[float]] = defaultdict(list)
    answers: dict[tuple[str, str], list[list[int]]] = {}
    for _ in range(rounds):
        for (name, load), (who, library) in itertools.product(loads.items(), libraries.items()):
            began = time.perf_counter()
            answers[name, who], first = library.answers(load)
            ended = time.perf_counter()
            if name == "equal":
                rates["prefill", who].append(sum(map(len, load.prompts)) / (first - began))
                rates["decode", who].append(sum(n - 1 for n in load.lengths) / (ended - first))
            else:
                rates["unequal", who].append(sum(load.lengths) / (ended - began))
    result = {phase: {who: statistics.median(rates[phase, who]) for who in libraries} for phase in PHASES}
    for row in result.values():
        row["ratio"] = row["logtrain"] / row["transformers"]
    pairs = (zip(answers[name, "logtrain"], answers[name, "transformers"], strict=True) for name in loads)
    return result, sum(ours != theirs for ours, theirs in itertools.chain(*pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder")
    parser.add_argument("--rounds", type=int, default=5, help="how often each load is answered")
    parser.add_argument("--new_tokens", type=int, default=100, help="length of an answer")
    parser.add_argument("--threads", type=int, default=2, help="threads of both libraries")
    parser.add_argument("--json", action="store_true", help="print an object instead of the table")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = ModelFolder(options.model or write_model(Path(name)))
        libraries: dict[str, Library] = {"logtrain": Ours(folder), "transformers": Transformers(folder.path)}
    loads = random_loads(folder.shape.vocab_size, options.new_tokens)
    result, num_differing = measure(libraries, loads, options.rounds)
    if options.json:
        print(json.dumps({**result, "differing_answers": num_differing}))
        return
    print(f"{'tokens/s':10} {'logtrain':>12} {'transformers':>14} {'ratio':>7}")
    for phase, row in result.items():
        print(f"{phase:10} {row['logtrain']:12,.1f} {row['transformers']:14,.1f} {row['ratio']:7.2f}")
    print(f"answers that differ: {num_differing} of {sum(len(load.prompts) for load in loads.values())}")


if __name__ == "__main__":
    main()

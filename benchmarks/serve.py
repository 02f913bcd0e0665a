"""The server beside the bare generator and transformers: `python -m benchmarks.serve --model DIR` (extra "bench").

The same requests are answered greedily, in fp32 on the CPU with the same threads, for 1, 8 and 32 clients at once, each
of which asks again as soon as it is answered, by

    generator      logtrain's generator in this process: what the server could reach at best
    server         logtrain serve, streaming
    simplest       transformers' batched generate behind the simplest server (simplest_server.py)
    serve          transformers serve, streaming, whose prompts are texts; one request after another
    continuous     the same with its continuous batching

of which --peers names the last three. Prompts are random tokens, of the lengths of log instructions; or the questions
of --questions, by the model's chat template, to whose answers a CPU comes in fewer steps, for they repeat what is asked
(logtrain/generation/lookup.py). Answers have 0.2 to 1.8 times `--new_tokens` tokens, as answers that end by themselves
have unequal lengths; those of transformers serve end at the model's end token, and its usage counts their tokens. Two
rates are told: tokens a second of the clock, and tokens a second of CPU time of all processes that answer, which other
programs on the machine do not change. Rounds alternate; rates are medians. Generator and server must give equal texts.

The time to the first token is told, too, the median and the worst of all requests; of the simplest server it is when
the token was computed, though it sends the whole answer. Then, of the server, how much sooner it comes for a second
question on a log that has been asked about.
"""

import argparse
import functools
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.servers import PEERS, Answer, Asked, Process, peer
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.chat_template import ChatTemplate, Turn

CLIENTS = (1, 8, 32)
LENGTHS = (283, 264, 148, 135, 112, 153, 139, 268)  # of the first questions of a set of log instructions
REQUESTS = {1: 4, 8: 16, 32: 48}  # by clients
FIRSTS = ("first_token_p50", "first_token_p95", "first_token_worst")
LOG_TOKENS = 2000
QUESTION_TOKENS = 20


class Result(NamedTuple):
    """What a load took."""

    tokens: int
    wall: float
    cpu: float
    firsts: list[float]
    """Seconds to the first token of each request; none of the bare generator."""
    answers: list[str]
    """Text of each answer, in the order of the requests; of the simplest server none."""


class Prompts(NamedTuple):
    """Where prompts come from."""

    vocab_size: int
    questions: list[list[int]]
    """Prompts of real questions; [] for random tokens."""

    def drawn(self, random: np.random.Generator, number: int) -> list[list[int]]:
        """So many prompts. No two random ones begin alike, so that no prefix is reused."""
        if self.questions:
            return [self.questions[at] for at in random.choice(len(self.questions), number, replace=False)]
        lengths = itertools.islice(itertools.cycle(LENGTHS), number)
        return [random.integers(100, self.vocab_size, length).tolist() for length in lengths]


def prompts_of(options: argparse.Namespace, folder: ModelFolder) -> Prompts:
    """The prompts that the flags ask for."""
    vocab_size = min(folder.tokenizer.vocab_size, folder.shape.vocab_size)
    if not options.questions:
        return Prompts(vocab_size, [])
    template = ChatTemplate.load(folder.tokenizer)
    rows = json.loads(options.questions.read_text(encoding="utf-8"))
    texts = ["\n".join(filter(None, (row["instruction"], row.get("input")))) for row in rows]
    return Prompts(vocab_size, [template.prompt([Turn("user", text)]) for text in texts])


def load_of(clients: int, prompts: Prompts, new_tokens: int, round: int) -> list[Asked]:
    """The requests of a load."""
    random = np.random.default_rng([clients, round])
    wanted = (random.uniform(0.2, 1.8, REQUESTS[clients]) * new_tokens).astype(int).clip(2).tolist()
    drawn = prompts.drawn(random, REQUESTS[clients])
    return [Asked(prompt, length) for prompt, length in zip(drawn, wanted, strict=True)]


def by_generator(generator: Generator, asked: Sequence[Asked], clients: int) -> Result:
    """Answer a load with the bare generator."""
    began, cpu = time.perf_counter(), time.process_time()
    upcoming, numbers, answers = iter(enumerate(asked)), {}, [""] * len(asked)

    def submit() -> None:
        for number, request in itertools.islice(upcoming, 1):
            made = Request(prompt=request.prompt, max_new_tokens=request.max_tokens, ignore_stop_ids=True)
            numbers[generator.submit(made)] = number

    for _ in range(clients):
        submit()
    while not generator.scheduler.is_idle:
        for event in generator.step():
            if event.answer:
                answers[numbers[event.request_id]] = event.answer.text
                submit()
    tokens = sum(request.max_tokens for request in asked)
    return Result(tokens, time.perf_counter() - began, time.process_time() - cpu, [], answers)


def by_clients(answer: Answer, cpu_of: Callable[[], float], asked: Sequence[Asked], clients: int) -> Result:
    """Answer a load over HTTP."""
    began, cpu = time.perf_counter(), cpu_of()
    with ThreadPoolExecutor(clients) as threads:
        found = list(threads.map(answer, asked))
    wall = time.perf_counter() - began
    firsts, tokens, texts = map(list, zip(*found, strict=True))
    return Result(sum(tokens), wall, cpu_of() - cpu, firsts, texts)


def second_question(server: Process, vocab_size: int, rounds: int) -> dict[str, float]:
    """Seconds to the first token of the first and of the second question on one log, medians, and their ratio."""
    random, times = np.random.default_rng(7), []
    for _ in range(rounds):
        log = random.integers(100, vocab_size, LOG_TOKENS).tolist()
        questions = [random.integers(100, vocab_size, QUESTION_TOKENS).tolist() for _ in range(2)]
        times.append([server.streamed(Asked([*log, *question], 2)).first for question in questions])
    first, second = map(statistics.median, zip(*times, strict=True))
    return {"first_seconds": first, "second_seconds": second, "times_sooner": first / second}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    torch.set_num_threads(options.threads)
    folder = ModelFolder(options.model)
    prompts = prompts_of(options, folder)
    loaded = folder.load(torch.device("cpu"), max(CLIENTS))
    generator = loaded.generator(0, stop_ids=(), step_tokens=512, keep_prefixes=True)
    ours = Process("logtrain.serve", "--model", str(options.model), "--port", "0", threads=options.threads)
    peers = {name: peer(name, str(options.model), options.threads, folder.tokenizer) for name in options.peers}
    ways: dict[str, Callable[[Sequence[Asked], int], Result]] = {
        "generator": lambda asked, clients: by_generator(generator, asked, clients)
    }
    for name, (process, answer) in {"server": (ours, ours.streamed), **peers}.items():
        ways[name] = functools.partial(by_clients, answer, process.cpu_seconds)
    try:
        for way in ways.values():
            way(load_of(1, prompts, 4, 99)[:1], 1)  # what only a first request does
        rows = [row for clients in options.clients for row in of_load(ways, clients, prompts, options)]
        return {"loads": rows, "second_question": second_question(ours, prompts.vocab_size, options.rounds)}
    finally:
        for process in (ours, *(process for process, _ in peers.values())):
            process.process.kill()


def of_load(ways: dict, clients: int, prompts: Prompts, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rates of each way for so many clients."""
    results: dict[str, list[Result]] = {name: [] for name in ways}
    for round in range(options.rounds):
        asked = load_of(clients, prompts, options.new_tokens, round)
        for name in sorted(ways, key=lambda name: (list(ways).index(name) + round) % len(ways)):
            results[name].append(result := ways[name](asked, clients))
            told = f"{clients} clients, round {round + 1}, {name}: {result.tokens / result.cpu:.1f} tokens/CPU s"
            print(f"{told}, {result.tokens / result.wall:.1f} tokens/s", file=sys.stderr, flush=True)
    differing = sum(
        a != b
        for one, other in zip(results["generator"], results["server"], strict=True)
        for a, b in zip(one.answers, other.answers, strict=True)
    )
    for name, found in results.items():
        firsts = sorted(first for result in found for first in result.firsts)
        yield {
            "clients": clients,
            "way": name,
            "tokens_per_second": statistics.median(result.tokens / result.wall for result in found),
            "tokens_per_cpu_second": statistics.median(result.tokens / result.cpu for result in found),
            "first_token_p50": statistics.median(firsts) if firsts else None,
            "first_token_p95": firsts[len(firsts) * 95 // 100] if firsts else None,
            "first_token_worst": firsts[-1] if firsts else None,
            "differing_answers": differing if name == "server" else None,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--questions", type=Path, help="a JSON array of rows {instruction, input}")
    parser.add_argument("--rounds", type=int, default=3, help="how often each load is answered")
    parser.add_argument("--new_tokens", type=int, default=50, help="mean length of an answer")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch, for all")
    parser.add_argument("--peers", nargs="*", default=["simplest"], choices=PEERS, help="servers of transformers")
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS, choices=CLIENTS, help="which loads")
    parser.add_argument("--json", action="store_true", help="print an object instead of the table")
    options = parser.parse_args()
    result = measure(options)
    if options.json:
        print(json.dumps(result))
        return
    heads = f"{'first token, s: p50':>21}{'p95':>8}{'worst':>8}"
    print(f"{'clients':>7}  {'way':14}{'tokens/s':>10}{'tokens/CPU s':>14}{heads}")
    for row in result["loads"]:
        firsts = [f"{row[key]:.2f}" if row[key] else "" for key in FIRSTS]
        rates = f"{row['tokens_per_second']:>10.1f}{row['tokens_per_cpu_second']:>14.1f}"
        print(f"{row['clients']:>7}  {row['way']:14}{rates}{firsts[0]:>21}{firsts[1]:>8}{firsts[2]:>8}")
    print(
        f"answers of server and generator that differ: {sum(row['differing_answers'] or 0 for row in result['loads'])}"
    )
    again = result["second_question"]
    print(
        f"second question on a log of {LOG_TOKENS:,} tokens: {again['second_seconds']:.2f} s to the first token "
        f"instead of {again['first_seconds']:.2f}, {again['times_sooner']:.1f} times sooner"
    )


if __name__ == "__main__":
    main()

"""Shows what a finished run has learned: python launch/demo/result.py RUN [--must_halve] [--tokens 160]

Prints the held-out loss before and after training, then lets the exported model continue a held-out document.
"""

import argparse
import json
import sys
import textwrap
import tomllib
from pathlib import Path

import torch

from logtrain.core.entry import run
from logtrain.data.shards import CONTEXT, Split
from logtrain.generation.generator import Generator
from logtrain.generation.load import ModelFolder
from logtrain.generation.request import Request
from logtrain.text.tokenizer import Tokenizer

ANSWER = "\nAssistant:"


def held_out_losses(folder: Path) -> list[float]:
    records = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    return [record["valid_loss"] for record in records if record.get("set") == "valid"]


def held_out_document(split: Split, tokenizer: Tokenizer) -> tuple[str, str]:
    """A held-out document as (prompt, what follows): cut before its answer, else within its first words."""
    ids = (split.read(0, 0, int(split.lengths[0])) & (CONTEXT - 1)).tolist()
    text = tokenizer.decode(ids)
    question, answer, follows = text.partition(ANSWER)
    if answer:
        return question + answer, follows
    prompt = tokenizer.decode(ids[: min(64, len(ids) // 2)])
    return prompt, text[len(prompt) :]


def show(title: str, text: str) -> None:
    print(f"\n{title}")
    for line in text.strip().splitlines():
        print(textwrap.fill(line, 110, initial_indent="    ", subsequent_indent="    "))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description="Show what a run came to.")
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--must_halve", action="store_true", help="fail unless the held-out loss fell to half or less")
    parser.add_argument("--tokens", type=int, default=160, help="longest continuation")
    options = parser.parse_args(argv)

    losses = held_out_losses(options.run)
    if not losses:
        raise ValueError(f"{options.run}: no validation loss in metrics.jsonl; was nothing held out?")
    first, last = losses[0], losses[-1]
    print(f"held-out loss: {first:.3f} before training, {last:.3f} after: {last / first:.0%} of it")

    prepared = Path(tomllib.loads((options.run / "config.toml").read_text(encoding="utf-8"))["data"])
    split = Split.open(prepared, "valid")
    folder = ModelFolder(options.run / "export")
    tokenizer = folder.tokenizer
    model = folder.load(torch.device("cuda" if torch.cuda.is_available() else "cpu")).model
    prompt, follows = held_out_document(split, tokenizer)
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    generator = Generator(model, tokenizer, [split.manifest["tokenizer"]["document_end_id"]], max_sequences=1)
    request = Request(prompt=[*begin, *tokenizer.encode(prompt)], max_new_tokens=options.tokens)
    ((_, answer),) = generator.run([request])
    show("A document that was held out, up to the answer:", prompt)
    show("The exported model goes on:", answer.text)
    show("The document goes on:", follows)

    if options.must_halve and last > first / 2:
        print(f"\nthe held-out loss did not halve: {first:.3f} -> {last:.3f}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run(main)

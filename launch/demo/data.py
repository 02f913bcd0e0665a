"""Everything the demo needs without a download: log questions and answers, a tokenizer trained on them, a tiny model.

    python launch/demo/data.py OUTPUT [--rows 6000] [--chats 600] [--questions 60] [--vocab_size 2048] [--seed 1309]

writes OUTPUT/nlplog.json, a JSON array of `{instruction, log, output, domain}` rows in the shape of NLPLog; chats.json,
ShareGPT conversations to fine-tune on, and questions.json, more of them to evaluate with, whose domain is their task;
and OUTPUT/model/, a Hugging Face model folder: a tiny Llama (grouped-query attention, llama3 RoPE scaling) with random
weights and its byte-level BPE tokenizer, laid out like Llama 3's. Rows and chats ask for the five tasks of NLPLog:
parsing, anomaly detection, interpretation, root cause and solution. An answer repeats the values of its log, so that a
model has to read them. The same arguments write the same bytes.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from questions import chat, row, samples
from tiny_llama import write_model


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for i, row in enumerate(rows):
            file.write((",\n" if i else "") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write log questions and answers, a tokenizer and a tiny model.")
    parser.add_argument("output", type=Path, help="folder to write; files of the same names in it are replaced")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--chats", type=int, default=600)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1309)
    options = parser.parse_args()

    output, seed = options.output, options.seed
    output.mkdir(parents=True, exist_ok=True)
    write_rows(output / "nlplog.json", map(row, samples(options.rows, seed)))
    write_rows(output / "chats.json", map(chat, samples(options.chats, seed + 1)))
    write_rows(output / "questions.json", map(chat, samples(options.questions, seed + 2)))
    texts = (f"Human: {s.instruction}\nAssistant: {s.answer}\n" for s in samples(options.rows, seed))
    write_model(output / "model", texts, options.vocab_size, seed)


if __name__ == "__main__":
    main()

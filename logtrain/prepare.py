"""Raw text files -> token shards: python -m logtrain.prepare --input FILE... --tokenizer DIR --output DIR

    files.py  bytes -> rows      text.py  rows -> documents        encode.py  documents -> tokens, on every core
                                 chat.py  rows -> conversations    encode_chat.py  conversations -> tokens
    shards.py  tokens -> .npy    report.py  the account            manifest.py  what the output depends on
    show.py  samples to read     here: what is asked for, the split, the order of things

The output depends on the input, the tokenizer and the settings, and on nothing else: not on the number of workers, the
time or the machine. Its manifest holds all three, and a fingerprint of them says whether a folder is up to date.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.data.conversations import ChatFormat, Conversation, conversations
from logtrain.data.documents import Document, Format, documents
from logtrain.data.encode import Framing, Pool
from logtrain.data.encode_chat import ChatFraming, TooLong
from logtrain.data.files import BadRow, InputFile
from logtrain.data.manifest import CHAT_ONLY, TEXT_ONLY, begin_manifest, check_same, describe
from logtrain.data.preview import print_note, print_sample
from logtrain.data.report import ChatCount, Progress, RowCount, make_report, print_report
from logtrain.data.shards import DOCUMENT, ShardWriter, new_folder
from logtrain.text.chat_template import DATE, TrainOn
from logtrain.text.tokenizer import Tokenizer

BATCH_CHARS = 1 << 18  # a worker's batch: about 80 ms of work, and a few MB while it is worked on
THREADS_PER_WORKER = 8  # at most, see encode.py
MAX_DEFAULT_WORKERS = 4  # one process reads for all; beyond 32 threads it would be what they wait for
BAD_ROWS_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """Turn raw text files into token shards for training."""

    input: tuple[str, ...]
    """Files: .json (an array, or one object a line), .jsonl, .ndjson, .txt, .log, each also as .gz or .zst."""
    tokenizer: str
    """Folder of the model's tokenizer (tokenizer.json or a sentencepiece tokenizer.model)."""
    output: str = ""
    """Folder to write. It comes to be when everything is done; a folder that holds something else is never touched."""
    format: Literal[Format, ChatFormat] = "auto"
    """JSON rows: nlplog {instruction, log, output}, corpus {text}. auto goes by the columns, row for row, and takes
    {instruction, input, output} too: Human: {instruction}, a new line, {input} if there is one, Assistant: {output}.
    For fine-tuning, as the turns of a chat: sharegpt {conversations: [{from, value}]}, messages {messages: [{role,
    content}]}, alpaca {instruction, input, output}; sharegpt and alpaca may have {system}."""
    seq_len: int = 8192
    """Tokens in a packed row of the training to come. No document is cut here; the report counts what will be split."""
    valid_fraction: float = 0.01
    """Share of the documents kept for validation, chosen by a hash of their text: duplicates stay together."""
    seed: int = 1309
    """Another seed, another choice of validation documents."""
    train_on: TrainOn = "all"
    """Chat rows: the answers that are trained on, each with the token that ends it: all of them, or the last."""
    too_long: TooLong = "truncate_content"
    """A conversation of more than seq_len tokens: truncate_content cuts the longest questions in their middle, never an
    answer; split_turns goes on in another conversation; drop leaves it out; error stops. The report counts each."""
    template: str = ""
    """Chat rows: a jinja file to render them with instead of the tokenizer's own chat template."""
    date: str = DATE
    """What a chat template that asks for the date is told."""
    show: int = 0
    """Prints so many documents of the input, as they would be stored, with their targets marked; writes nothing."""
    document_end: str = "auto"
    """Token that closes a document; auto: <|end_of_text|>, <|endoftext|> or </s>, the first the tokenizer has."""
    text_chars: int = 32768
    """A .txt or .log file is cut between lines into documents of at most this many characters. Documents nearly as long
    as a row pack badly: of 8,192 tokens, system logs fill 98% with 2,048 or 32,768 characters, 79% with 16,384."""
    ignore_columns: tuple[str, ...] = ()
    """Columns of JSON rows to leave out. Without this, a column with text that is not used makes its row bad."""
    max_bad_rows: int = 0
    """More bad rows than this stop the run; up to this many are left out and listed in the report."""
    shard_tokens: int = 100_000_000
    """A shard file is closed at this many tokens."""
    workers: int = 0
    """Tokenising processes, which share the cores: a thread each, at most 8 a process. 0: one for every 8 cores."""

    def __post_init__(self):
        if not self.input:
            raise ValueError("input: no file given")
        if not self.output and not self.show:
            raise ValueError("output: required; give --output ..., or set it in a TOML file")
        least_of = {"seq_len": 2, "text_chars": 1, "shard_tokens": 1, "max_bad_rows": 0, "workers": 0, "seed": 0}
        for name, least in (least_of | {"show": 0}).items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)} must be at least {least}")
        if not 0 <= self.valid_fraction < 1:
            raise ValueError(f"valid_fraction = {self.valid_fraction} must be at least 0 and below 1")
        for name in sorted(TEXT_ONLY if self.is_chat else CHAT_ONLY):
            if getattr(self, name) != getattr(PrepareConfig, name):  # its default
                formats = ", ".join(get_args(Format if self.is_chat else ChatFormat))
                raise ValueError(
                    f"{name} = {getattr(self, name)} has no meaning with format = {self.format}; it is for {formats}"
                )
        if self.train_on == "last" and self.too_long == "split_turns":
            raise ValueError(
                "train_on = last trains one answer of a row, too_long = split_turns makes several conversations of it; "
                "take another of the two"
            )
        try:
            date.fromisoformat(self.date)
        except ValueError:
            raise ValueError(f"date = {self.date}: not a date as {DATE}") from None

    @property
    def is_chat(self) -> bool:
        return self.format in get_args(ChatFormat)


def main(argv: list[str]) -> None:
    config = load(PrepareConfig, argv)
    files = [InputFile(path) for path in config.input]
    if config.show:
        show(config, files)
        return
    output = Path(os.path.abspath(config.output))
    if (output / "manifest.json").exists():
        check_same(output, begin_manifest(config, files))
        print(f"{config.output}: already prepared from this input with these settings; nothing to do")
        return
    num_cores = len(os.sched_getaffinity(0))
    num_workers = config.workers or min(-(-num_cores // THREADS_PER_WORKER), MAX_DEFAULT_WORKERS)
    num_threads = min(max(1, num_cores // num_workers), THREADS_PER_WORKER)
    with Pool(config.tokenizer, num_workers, num_threads) as pool:
        manifest = begin_manifest(config, files)
        describe(manifest)
        try:
            with new_folder(output) as folder:
                report = prepare(config, files, manifest, folder, pool)
        except OSError as error:
            where, what = error.filename or output, error.strerror or error
            raise ValueError(f"{where}: {what}; nothing was left behind") from error
    print_report(report)


def prepare(config: PrepareConfig, files: list[InputFile], manifest: dict, folder: Path, pool: Pool) -> dict:
    """Writes the shards, report.json and, last, manifest.json. Returns the report."""
    paths, domains = [str(file.path) for file in files], {}
    if config.is_chat:
        rows = ChatCount(paths)
        batches = read_chats(config, files, domains)
    else:
        rows = RowCount(paths)
        batches = read_batches(config, files, rows, domains)
    framing = framing_of(config, manifest)
    valid_below = np.uint64(config.valid_fraction * 2**64)
    writers = {name: ShardWriter(folder, name, config.shard_tokens) for name in ("train", "valid")}
    hashes = {name: [np.empty(0, np.uint64)] for name in writers}
    with Progress(files) as progress:
        for records, encoded in pool.encode(batches, framing):
            if config.is_chat:
                records, encoded = rows.add(*records, encoded)
            records["length"], records["targets"] = encoded.lengths_D, encoded.targets_D
            valid_D = encoded.hashes_D < valid_below
            valid_N = np.repeat(valid_D, encoded.lengths_D)
            for name, chosen_D, chosen_N in (("train", ~valid_D, ~valid_N), ("valid", valid_D, valid_N)):
                writers[name].add(encoded.tokens_N[chosen_N], records[chosen_D])
                hashes[name].append(encoded.hashes_D[chosen_D])
            progress.add(len(records), len(encoded.tokens_N))
    hashes = {name: np.concatenate(parts) for name, parts in hashes.items()}
    check_rows(rows, config.max_bad_rows)
    if config.is_chat and sum(rows.dropped_of) == sum(rows.chats_of) > 0:
        raise ValueError(f"no conversation fits in seq_len = {config.seq_len} tokens; give a greater --seq_len")
    check_splits(hashes, config.valid_fraction)
    if changed := [str(file.path) for file in files if file.has_changed()]:
        raise ValueError(f"{', '.join(changed)}: changed while it was read; run again")
    manifest["domains"] = list(domains)
    manifest["splits"] = {name: writer.close() for name, writer in writers.items() if len(hashes[name])}
    report = make_report(folder, manifest, hashes, rows)
    for name, content in (("report.json", report), ("manifest.json", manifest)):
        write_json(folder / name, content)
    return report


def framing_of(config: PrepareConfig, manifest: dict) -> Framing | ChatFraming:
    hash_key = str(config.seed).encode()
    if config.is_chat:
        template = manifest["chat"]["template"]
        return ChatFraming(template, config.date, config.train_on, config.too_long, config.seq_len, hash_key)
    return Framing(manifest["tokenizer"]["bos_id"], manifest["tokenizer"]["document_end_id"], hash_key)


def items(config: PrepareConfig, file: InputFile) -> Iterator[Document | Conversation | BadRow]:
    if config.is_chat:
        return conversations(file, config.format, config.ignore_columns)
    return documents(file, config.format, config.text_chars, config.ignore_columns)


def read_batches(
    config: PrepareConfig, files: list[InputFile], rows: RowCount, domains: dict[str, int]
) -> Iterator[tuple[np.ndarray, list[str]]]:
    """Batches of (DOCUMENT records with row, source and domain filled in, texts). Numbers the domains as they come."""
    origins, texts, num_chars = [], [], 0
    for source, file in enumerate(files):
        for document in items(config, file):
            if isinstance(document, BadRow):
                rows.bad(source, document)
                continue
            rows.documents_of[source] += 1
            if rows.num_bad > config.max_bad_rows:
                continue  # the run has failed; it only reads on to say how many bad rows there are
            origins.append((document.row, source, domains.setdefault(document.domain, len(domains))))
            texts.append(document.text)
            num_chars += len(document.text)
            if num_chars >= BATCH_CHARS:
                yield records_of(origins), texts
                origins, texts, num_chars = [], [], 0
    if texts:
        yield records_of(origins), texts


def read_chats(
    config: PrepareConfig, files: list[InputFile], domains: dict[str, int]
) -> Iterator[tuple[tuple[np.ndarray, list[tuple[int, BadRow]]], list]]:
    """Batches of ((records, bad rows among them with their source), conversations). A worker finds bad rows too, those
    that the template refuses; so that the account is the same whatever comes first, all are counted as they come back.
    """
    origins, chats, bad, num_chars = [], [], [], 0
    for source, file in enumerate(files):
        for chat in items(config, file):
            if isinstance(chat, BadRow):
                bad.append((source, chat))
            else:
                origins.append((chat.row, source, domains.setdefault(chat.domain, len(domains))))
                chats.append(chat.turns)
                num_chars += sum(len(turn.content) for turn in chat.turns)
            if num_chars >= BATCH_CHARS:
                yield (records_of(origins), bad), chats
                origins, chats, bad, num_chars = [], [], [], 0
    yield (records_of(origins), bad), chats


def records_of(origins: list[tuple[int, int, int]]) -> np.ndarray:
    records = np.zeros(len(origins), DOCUMENT)
    records["row"], records["source"], records["domain"] = np.array(origins, np.int64).reshape(-1, 3).T
    return records


def show(config: PrepareConfig, files: list[InputFile]) -> None:
    """Prints the first documents of the input, and the bad rows among them."""
    tokenizer, framing = Tokenizer.load(config.tokenizer), framing_of(config, begin_manifest(config, files))
    left = config.show
    for file in files:
        for item in items(config, file):
            where = f"{file.path} row {item.row}"
            if isinstance(item, BadRow):
                print_note(f"{where}: a bad row: {item}")
                continue
            print_sample(where, framing.encode([item.turns if config.is_chat else item.text], tokenizer), tokenizer)
            left -= 1
            if not left:
                return


def check_rows(rows: RowCount, max_bad_rows: int) -> None:
    if rows.num_bad <= max_bad_rows:
        return
    named = "; ".join(f"{bad['path']} row {bad['row']}: {bad['reason']}" for bad in rows.bad_rows[:BAD_ROWS_NAMED])
    more = f"; and {rows.num_bad - BAD_ROWS_NAMED:,} more" if rows.num_bad > BAD_ROWS_NAMED else ""
    raise ValueError(
        f"{rows.num_bad:,} bad row{'s' if rows.num_bad > 1 else ''} (counting from 0): {named}{more}. "
        f"Mend the input, or leave them out with --max_bad_rows {rows.num_bad}"
    )


def check_splits(hashes: dict[str, np.ndarray], valid_fraction: float) -> None:
    num_documents = sum(map(len, hashes.values()))
    if not num_documents:
        raise ValueError("the input holds no document")
    if valid_fraction and not len(hashes["valid"]):
        enough = min(int(hashes["train"].min()) / 2**64 * 1.06, 0.99)  # 1.06: rounded to two digits it is still enough
        raise ValueError(
            f"valid_fraction {valid_fraction} of {num_documents:,} documents leaves none for validation; "
            f"from {enough:.2g} on there is one, and 0 means no validation split"
        )
    if not len(hashes["train"]):
        raise ValueError(
            f"valid_fraction {valid_fraction} of {num_documents:,} documents leaves none for training; lower it"
        )


def write_json(file: Path, content: dict) -> None:
    with open(file, "w", encoding="utf-8") as stream:
        json.dump(content, stream, indent=1)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())


if __name__ == "__main__":
    run(main)

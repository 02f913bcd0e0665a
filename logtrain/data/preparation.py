"""The order of things in which a folder is prepared, from input files to the manifest."""

import time
from pathlib import Path

from logtrain.core.atomic import naming
from logtrain.core.still import note
from logtrain.core.untrusted import sealed
from logtrain.data.account import Account
from logtrain.data.chunks import Chunks
from logtrain.data.config import PrepareConfig
from logtrain.data.encode import Encoder, TextEncoder
from logtrain.data.encode_chat import ChatEncoder
from logtrain.data.encode_pairs import PairEncoder
from logtrain.data.files import InputFile
from logtrain.data.format_found import formats_of, reading_of
from logtrain.data.groups import held_groups
from logtrain.data.held_out import SplitWriters
from logtrain.data.manifest import Manifest, Origin
from logtrain.data.pool import Pool
from logtrain.data.prepared import MANIFEST, REPORT
from logtrain.data.report import Report, make_report
from logtrain.observe.progress import Progress


def prepare(config: PrepareConfig, files: list[InputFile], origin: Origin, folder: Path, pool: Pool) -> Report:
    """Write shards, report.json and, last, manifest.json into an empty folder -> the report.

    `origin`: as `read_origin` gives it. Raises ValueError for a file that cannot be read on, for too many bad rows, for
    a split without documents, and OSError.
    """
    groups = held_groups(config, files)
    chunks, account = Chunks(config, files, groups), Account([str(file.path) for file in files], config.max_lost_chars)
    splits = SplitWriters(folder, config.shard_tokens, config.valid_fraction, by_group=bool(config.split_by))
    num_bytes, num_documents, num_tokens, began = sum(file.num_bytes for file in files), 0, 0, time.monotonic()
    note("reading the input")
    with Progress("prepare", num_bytes, in_bytes=True) as progress:
        encoder = encoder_of(config, origin)
        for read, encoded in pool.encode(chunks, encoder, account.where, lambda read: read.num_chars):
            splits.add(account.add(read, encoded), encoded, read.is_held_I[encoded.item_D])
            num_documents += len(encoded.lengths_D)
            num_tokens += len(encoded.tokens_N)
            done = sum(file.bytes_read for file in files)
            facts = {
                "percent": round(100 * done / max(1, num_bytes), 1),
                "documents": num_documents,
                "tokens": num_tokens,
                "mb_per_second": round(done / (time.monotonic() - began) / 1e6, 2),
            }
            progress.update(done, facts, bar=f"{num_tokens:,} tokens")
    refuse_incomplete(config, account, files, chunks.num_good)
    note("looking for near-twins")
    held_out = splits.finish()
    refuse_changed(files)
    manifest: Manifest = {**origin, "domains": list(chunks.domains), "splits": splits.close()}
    if config.split_by:
        manifest["held_out_groups"] = groups
    note("packing rows for the report")
    report = make_report(folder, manifest, splits.hashes(), held_out, account, chunks.records)
    of_report = {"fingerprint": manifest["fingerprint"], **report.as_json()}
    for name, content in ((REPORT, of_report), (MANIFEST, {**manifest})):
        with naming(folder / name):
            (folder / name).write_bytes(sealed(content))
    return report


MOST_LOST = 0.1  # of the answers' tokens, unless a user has chosen how


def encoder_of(config: PrepareConfig, origin: Origin) -> Encoder:
    """What makes documents of the rows."""
    hash_key = str(config.seed).encode()
    if "chat" in origin:
        template = origin["chat"]["template"]
        encoder = PairEncoder if config.format == "dpo" else ChatEncoder
        return encoder(template, config.date, config.train_on, config.too_long, config.seq_len, hash_key)
    return TextEncoder(origin["tokenizer"]["bos_id"], origin["tokenizer"]["document_end_id"], hash_key)


def refuse_incomplete(config: PrepareConfig, account: Account, files: list[InputFile], num_good: int) -> None:
    """Raises ValueError where what was read is not what was asked for. `num_good`: rows that are not bad."""
    found = next(formats_of(files, reading_of(config)), None) if account.num_bad else None
    other_format = found.format if found and config.format not in ("auto", found.format) else ""
    account.refuse_bad_rows(config.most_bad_rows, num_good > 0, other_format)
    sources, are_pairs = account.sources().values(), config.format == "dpo"
    if sum(of.dropped for of in sources) == sum(of.good for of in sources) > 0:
        cut = "" if are_pairs else ", or cut the answers with --too_long truncate_answer"
        what = "pair" if are_pairs else "conversation"
        raise ValueError(f"no {what} fits in seq_len = {config.seq_len} tokens; give a greater --seq_len{cut}")
    total = account.cases()["total"]
    if config.too_long == "auto" and (lost := total.lost) > MOST_LOST:
        what = "pairs, both answers together," if are_pairs else "conversations, even with their questions cut,"
        others = "drop" if are_pairs else "truncate_answer, split_turns, or truncate_content"
        raise ValueError(
            f"{lost:.0%} of the answers' tokens would be lost, for their {what} have more than seq_len = "
            f"{config.seq_len:,} tokens; give a greater --seq_len, or choose: --too_long {others}, which leaves "
            f"them out"
        )


def refuse_changed(files: list[InputFile]) -> None:
    """Raises ValueError where a file is not what it was at the start."""
    if changed := [str(file.path) for file in files if file.has_changed()]:
        raise ValueError(f"{', '.join(changed)}: changed while it was read; run again")

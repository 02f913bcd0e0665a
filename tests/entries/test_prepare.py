"""prepare, from files to shards: every token in its place, an account that adds up, and nothing half done."""

import gzip
import json
import os
import pty
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from logtrain import prepare
from logtrain.data import report as reporting
from logtrain.data.encode import Framing, Pool, encode
from logtrain.data.pack import pieces
from logtrain.data.shards import Split
from logtrain.text.tokenizer import Tokenizer

BOS, END = 256, 257


@pytest.fixture(scope="session")
def bytes_tokenizer(tmp_path_factory) -> Path:
    """One token a byte, <|begin_of_text|> = 256, <|end_of_text|> = 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>"])
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<|begin_of_text|>"}')
    return folder


@pytest.fixture
def inline(monkeypatch):
    """Tokenises in this process: the pool has tests of its own, and starting it takes a second."""

    class Inline(Pool):
        def __enter__(self):
            return self

        def encode(self, batches, framing):
            tokenizer = Tokenizer.load(self._tokenizer)
            for tag, texts in batches:
                yield tag, encode(texts, tokenizer, framing)

    monkeypatch.setattr(prepare, "Pool", Inline)


def make_rows(num_rows: int, seed: int = 0) -> list[dict]:
    """NLPlog-shaped rows, a fifth of them seen before."""
    random_ = random.Random(seed)
    rows = []
    for i in range(num_rows):
        if rows and random_.random() < 0.2:
            rows.append(random_.choice(rows) | {"domain": random_.choice(["HDFS", "BGL", ""])})
            continue
        log = f"node-{i} é error {random_.random()}" + " more" * random_.randrange(12)
        row = {
            "instruction": f"Explain '{log}'.",
            "log": log,
            "output": f"It is {i}.",
            "domain": random_.choice(["HDFS", "BGL"]),
        }
        rows.append(row)
    return rows


def text_of(row: dict) -> str:
    return f"Human: {row['instruction']}\nAssistant: {row['output']}\n"


def arguments(tokenizer: Path, output: Path, *inputs: Path, **flags) -> list[str]:
    flags = {"seq_len": 100, "valid_fraction": 0.2, "workers": 1} | flags
    argv = ["--input", *map(str, inputs), "--tokenizer", str(tokenizer), "--output", str(output)]
    for name, value in flags.items():
        argv += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
    return argv


def dump(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def read_documents(folder: Path) -> dict[str, list[tuple[list[int], dict]]]:
    """By split, each document's tokens, and what it came from."""
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {}
    for name, of_split in manifest["splits"].items():
        split = Split.open(folder, name)
        records = np.concatenate([np.load(folder / shard["documents"]) for shard in of_split["shards"]])
        found[name] = [
            (split.read(i, 0, int(split.lengths[i])).tolist(), dict(zip(records.dtype.names, record, strict=True)))
            for i, record in enumerate(records.tolist())
        ]
    return found


# -- tokens and splits -------------------------------------------------------------------------------


def test_every_document_is_there_in_order(bytes_tokenizer, tmp_path, inline):
    first, second = make_rows(150), make_rows(50, seed=1)
    lines = "".join(f"line {i} of a log, with <|end_of_text|> in it\r\n" for i in range(100))
    log = tmp_path / "Sys_2k.log.gz"
    log.write_bytes(gzip.compress(lines.encode()))
    inputs = [dump(tmp_path / "a.json", first), log, dump(tmp_path / "b.json", second)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, text_chars=200, shard_tokens=2000))

    tokenizer = Tokenizer.load(bytes_tokenizer)
    texts = [[text_of(row) for row in first], [], [text_of(row) for row in second]]
    cut = lines.splitlines(keepends=True)
    texts[1] = ["".join(cut[i : i + 4]) for i in range(0, 100, 4)]
    assert max(map(len, texts[1])) <= 200 < min(map(len, texts[1])) * 5 / 4

    found = read_documents(tmp_path / "out")
    assert found.keys() == {"train", "valid"}
    everything = sorted(((r["source"], r["row"]), tokens, r) for documents in found.values() for tokens, r in documents)
    assert [key for key, _, _ in everything] == [(s, i) for s, of_file in enumerate(texts) for i in range(len(of_file))]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    for (source, row), tokens, record in everything:
        assert tokens == [BOS, *tokenizer.encode(texts[source][row]), END]
        assert (record["length"], record["targets"]) == (len(tokens), len(tokens) - 1)
        domain = ["a", "Sys_2k", "b"][source] if source == 1 else (first, [], second)[source][row]["domain"]
        assert manifest["domains"][record["domain"]] == (domain or "ab"[source // 2])
    for split in found.values():  # the order of a split is the order of the input
        assert [(r["source"], r["row"]) for _, r in split] == sorted((r["source"], r["row"]) for _, r in split)
    assert len(manifest["splits"]["train"]["shards"]) > 3


def by_split(folder: Path) -> dict[str, set[tuple[int, ...]]]:
    return {name: {tuple(tokens) for tokens, _ in documents} for name, documents in read_documents(folder).items()}


def test_the_split_goes_by_text_and_seed_alone(bytes_tokenizer, tmp_path, inline):
    rows = make_rows(1000)
    whole = dump(tmp_path / "a.json", rows)
    prepare.main(arguments(bytes_tokenizer, tmp_path / "whole", whole))
    sides = by_split(tmp_path / "whole")
    distinct = len({text_of(row) for row in rows})
    assert not sides["train"] & sides["valid"], "a duplicate stands on both sides"
    assert len(sides["train"]) + len(sides["valid"]) == distinct
    assert abs(len(sides["valid"]) - 0.2 * distinct) < 4 * (distinct * 0.2 * 0.8) ** 0.5

    parts = [dump(tmp_path / "y.json", rows[500:]), dump(tmp_path / "x.json", rows[:500])]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "parts", *parts))
    assert by_split(tmp_path / "parts") == sides
    prepare.main(arguments(bytes_tokenizer, tmp_path / "less", whole, valid_fraction=0.1))
    assert by_split(tmp_path / "less")["valid"] < sides["valid"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "seed", whole, seed=1))
    assert by_split(tmp_path / "seed")["valid"] != sides["valid"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "none", whole, valid_fraction=0))
    assert read_documents(tmp_path / "none").keys() == {"train"}


def test_a_split_without_documents_says_what_to_do(bytes_tokenizer, tmp_path, inline):
    path = dump(tmp_path / "a.json", make_rows(20))
    for seed in range(20):
        output = tmp_path / f"out{seed}"
        with pytest.raises(ValueError, match="leaves none for validation; from") as error:
            prepare.main(arguments(bytes_tokenizer, output, path, valid_fraction=1e-6, seed=seed))
        assert not output.exists()
        enough = float(re.search(r"from (\S+) on", str(error.value))[1])
        prepare.main(arguments(bytes_tokenizer, output, path, valid_fraction=enough, seed=seed))
        assert 1 <= len(by_split(output)["valid"]) <= 2
    with pytest.raises(ValueError, match=r"leaves none for training; lower it"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "all", path, valid_fraction=0.9999))


def test_without_bos(bytes_tokenizer, tmp_path, inline):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes((bytes_tokenizer / "tokenizer.json").read_bytes())
    (folder / "tokenizer_config.json").write_text("{}")
    path = dump(tmp_path / "a.json", [{"text": "ab"}])
    prepare.main(arguments(folder, tmp_path / "out", path, valid_fraction=0, document_end="<|begin_of_text|>"))
    ((tokens, record),) = read_documents(tmp_path / "out")["train"]
    assert tokens == [*Tokenizer.load(folder).encode("ab"), BOS]
    assert record["targets"] == 2
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    facts = {name: manifest["tokenizer"][name] for name in ("bos_id", "document_end", "document_end_id", "vocab_size")}
    assert facts == {"bos_id": None, "document_end": "<|begin_of_text|>", "document_end_id": BOS, "vocab_size": 258}


def test_with_sentencepiece(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    rows = make_rows(60)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(text_of(row) for row in rows),
        model_prefix=str(tmp_path / "tokenizer" / "tokenizer"),
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    prepare.main(arguments(tmp_path / "tokenizer", tmp_path / "out", dump(tmp_path / "a.json", rows)))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer" / "tokenizer.model"))
    found = {record["row"]: tokens for split in read_documents(tmp_path / "out").values() for tokens, record in split}
    assert found == {i: [1, *library.encode(text_of(row)), 2] for i, row in enumerate(rows)}


# -- the account -------------------------------------------------------------------------------------


def test_the_account_adds_up(bytes_tokenizer, tmp_path, inline, capsys):
    good = make_rows(300)
    bad = [{"instruction": "Q"}, {"text": ""}, 5, {"text": "a", "label": "b"}, {"text": "\ud800"}]
    rows = good[:100] + bad[:2] + good[100:] + bad[2:]
    inputs = [dump(tmp_path / "a.json", rows), dump(tmp_path / "b.json", [{"text": "x" * 1000}, *make_rows(30)])]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, max_bad_rows=5))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = read_documents(tmp_path / "out")

    assert report["rows"] == {"read": 336, "bad": 5, "documents": 331}
    assert [(s["read"], s["bad"], s["documents"]) for s in report["sources"]] == [(305, 5, 300), (31, 0, 31)]
    assert [(b["path"], b["row"]) for b in report["bad_rows"]] == [
        (str(inputs[0]), row) for row in (100, 101, 302, 303, 304)
    ]
    assert report["bad_rows"][0]["reason"] == 'no "output"'

    counts = reporting.COUNTS
    assert counts == ("documents", "duplicates", "split_over_rows", "tokens", "targets")
    for count in counts:
        assert report["total"][count] == sum(split[count] for split in report["splits"].values())
        for name, split in report["splits"].items():
            assert split[count] == sum(domain[name][count] for domain in report["domains"].values() if name in domain)
    seen = set()
    for name, split in report["splits"].items():  # and all of it is so of the tokens on the disk
        lengths = [len(tokens) for tokens, _ in found[name]]
        distinct = {tuple(tokens) for tokens, _ in found[name]}
        assert not distinct & seen
        seen |= distinct
        expected = (len(lengths), len(lengths) - len(distinct), sum(n > 100 for n in lengths), sum(lengths))
        assert tuple(split[count] for count in counts) == (*expected, sum(lengths) - len(lengths))
        packed, cut = split["packed"], pieces(np.array(lengths), 100)
        assert (packed["pieces"], packed["tokens"]) == (len(cut.length_P), cut.length_P.sum())
        assert packed["tokens"] == split["tokens"] + packed["pieces"] - split["documents"]
        assert packed["rows"] * 100 >= packed["tokens"]
        assert packed["fill"] == packed["tokens"] / (packed["rows"] * 100) > 0.9
    assert report["total"]["duplicates"] > 50
    assert 50 < report["total"]["split_over_rows"] < 300
    assert report["domains"].keys() == {"HDFS", "BGL", "a", "b"}

    printed = capsys.readouterr().out
    assert re.search(
        rf"^ *total +331 +{report['total']['duplicates']} .* {report['total']['targets']:,} *$", printed, re.M
    )
    assert "rows read: 336, of them 331 documents and 5 bad rows" in printed
    assert f'{inputs[0]} row 100: no "output"' in printed
    assert "\x1b" not in printed


def test_many_domains_are_summed_in_print(bytes_tokenizer, tmp_path, inline, capsys):
    rows = [{"text": "x" * (100 - i), "domain": f"[red]d{i}"} for i in range(40)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", rows), valid_fraction=0))
    printed = capsys.readouterr().out
    assert re.search(r"^ *\[red\]d29 +1 +0 +0 +73 +72 *$", printed, re.M)
    assert re.search(rf"^ *\(10 others\) +10 +0 +0 +{sum(100 - i + 2 for i in range(30, 40))} ", printed, re.M)
    assert len(json.loads((tmp_path / "out" / "report.json").read_text())["domains"]) == 40


def test_too_many_bad_rows_stop_the_run(bytes_tokenizer, tmp_path, inline):
    rows = [{"text": "a"}, {"text": 1}, {"text": "b"}, *[{"text": ""}] * 4]
    path = dump(tmp_path / "a.json", rows)
    for allowed in (0, 4):
        with pytest.raises(ValueError, match=r"5 bad rows .counting from 0.: ") as error:
            prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=allowed, valid_fraction=0))
        message = str(error.value)
        assert f'{path} row 1: "text" is a number, not a string; {path} row 3: "text" is empty; ' in message
        assert message.endswith("and 2 more. Mend the input, or leave them out with --max_bad_rows 5")
        assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path, max_bad_rows=5, valid_fraction=0))
    assert len(read_documents(tmp_path / "out")["train"]) == 2


def test_nothing_but_allowed_bad_rows(bytes_tokenizer, tmp_path, inline):
    with pytest.raises(ValueError, match="the input holds no document"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", dump(tmp_path / "a.json", []), max_bad_rows=1))


# -- the same again ----------------------------------------------------------------------------------


def test_prepared_already(bytes_tokenizer, tmp_path, inline, monkeypatch, capsys):
    path = dump(tmp_path / "a" / "a.json", make_rows(50))
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    monkeypatch.setattr(prepare, "prepare", None)  # not to be called
    moved = tmp_path / "elsewhere" / "a.json"
    moved.parent.mkdir()
    path.rename(moved)
    capsys.readouterr()
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", moved, workers=2))  # neither where nor how matters
    assert "already prepared from this input with these settings" in capsys.readouterr().out
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_len": 32}, "seq_len (100 there, 32 now)"),
        ({"seed": 7}, "seed (1309 there, 7 now)"),
        ({"valid_fraction": 0.3}, "valid_fraction (0.2 there, 0.3 now)"),
        ({"format": "nlplog"}, "format (auto there, nlplog now)"),
        ({"document_end": "<|begin_of_text|>"}, "document_end (<|end_of_text|> there, <|begin_of_text|> now)"),
        ({"text_chars": 5}, "text_chars (32768 there, 5 now)"),
        ({"shard_tokens": 5}, "shard_tokens (100000000 there, 5 now)"),
        ({"ignore_columns": ("x", "y")}, "ignore_columns ([] there, ['x', 'y'] now)"),
        ({"max_bad_rows": 1}, "max_bad_rows (0 there, 1 now)"),
        ("input", "input (a.json)"),
        ("name", "input (b.json)"),
        ("more", "input (b.json)"),
        ("tokenizer", "other tokenizer;"),
        ("bos", "bos_id (256 there, None now)"),
    ],
)
def test_prepared_otherwise_is_named_and_not_touched(bytes_tokenizer, tmp_path, inline, changed, message):
    inputs, tokenizer = [dump(tmp_path / "a.json", make_rows(50))], tmp_path / "tokenizer"
    tokenizer.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tokenizer / name).write_bytes((bytes_tokenizer / name).read_bytes())
    prepare.main(arguments(tokenizer, tmp_path / "out", *inputs))
    before = contents(tmp_path / "out")
    if changed == "input":
        dump(inputs[0], make_rows(51))
    elif changed == "name":
        inputs = [inputs[0].rename(tmp_path / "b.json")]
    elif changed == "more":
        inputs.append(dump(tmp_path / "b.json", make_rows(5)))
    elif changed == "tokenizer":
        (tokenizer / "tokenizer.json").write_text((tokenizer / "tokenizer.json").read_text() + " ")
    elif changed == "bos":
        (tokenizer / "tokenizer_config.json").write_text("{}")
    flags = changed if isinstance(changed, dict) else {}
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        prepare.main(arguments(tokenizer, tmp_path / "out", *inputs, **flags))
    assert re.match(
        rf"{tmp_path}/out: was prepared with other [^;]*; delete it, or give another --output$", str(error.value)
    )
    assert contents(tmp_path / "out") == before


def test_a_file_that_changes_while_it_is_read(bytes_tokenizer, tmp_path, inline, monkeypatch):
    path = dump(tmp_path / "a.json", make_rows(50))
    begin = prepare.begin_manifest

    def begin_and_touch(*arguments):
        manifest = begin(*arguments)
        dump(path, make_rows(51))
        return manifest

    monkeypatch.setattr(prepare, "begin_manifest", begin_and_touch)
    with pytest.raises(ValueError, match=r"a\.json: changed while it was read; run again"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", path))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"seq_len": 1}, "seq_len = 1 must be at least 2"),
        ({"valid_fraction": 1}, "valid_fraction = 1.0 must be at least 0 and below 1"),
        ({"valid_fraction": -0.1}, "valid_fraction = -0.1 must be at least 0 and below 1"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"workers": -1}, "workers = -1 must be at least 0"),
        ({"document_end": "<|eot_id|>"}, "document_end <|eot_id|> marks a turn of a chat"),
        ({"input": "a.json"}, "input: given more than once: "),
    ],
)
def test_bad_settings(bytes_tokenizer, tmp_path, monkeypatch, flags, message):
    dump(tmp_path / "a.json", make_rows(5))
    monkeypatch.chdir(tmp_path)
    inputs = [Path("a.json"), Path("./a.json").resolve()] if "input" in flags else [Path("a.json")]
    flags.pop("input", None)
    with pytest.raises(ValueError, match=re.escape(message)):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs, **flags))
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


# -- processes ---------------------------------------------------------------------------------------


def test_the_pool_keeps_order_and_content(bytes_tokenizer):
    framing = Framing(bos_id=BOS, document_end_id=END, hash_key=b"1309")
    random_ = random.Random(0)
    batches = [(n, [f"{n} " + "x" * random_.choice([0, 10, 300_000]) for _ in range(n % 4)]) for n in range(25)]
    expected = [encode(texts, Tokenizer.load(bytes_tokenizer), framing) for _, texts in batches]
    for num_workers, num_threads in ((1, 1), (1, 4), (3, 2)):
        with Pool(str(bytes_tokenizer), num_workers, num_threads) as pool:
            found = list(pool.encode(iter(batches), framing))
        assert [tag for tag, _ in found] == list(range(25))
        for (_, encoded), same in zip(found, expected, strict=True):
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(encoded, same, strict=True))


def test_bytes_do_not_depend_on_the_number_of_workers(bytes_tokenizer, tmp_path, inline, monkeypatch):
    monkeypatch.setattr(prepare, "BATCH_CHARS", 500)
    path = dump(tmp_path / "a.json", make_rows(300))
    prepare.main(arguments(bytes_tokenizer, tmp_path / "here", path, shard_tokens=5000))
    monkeypatch.setattr(prepare, "Pool", Pool)
    for workers in (1, 3):
        prepare.main(arguments(bytes_tokenizer, tmp_path / str(workers), path, shard_tokens=5000, workers=workers))
        assert contents(tmp_path / str(workers)) == contents(tmp_path / "here")
    assert len(contents(tmp_path / "here")) > 12


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Enough for a second or two."""
    return dump(tmp_path_factory.mktemp("large") / "a.json", make_rows(12_000))


def start(argv: list[str], **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "logtrain.prepare", *argv]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, **options
    )


def workers_of(process: subprocess.Popen, at_least: int = 1) -> list[int]:
    """The tokenising processes, once there are so many."""
    for _ in range(6000):
        try:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            commands = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
        except FileNotFoundError:
            continue
        found = [child for child, command in commands.items() if b"logtrain.data.encode" in command]
        if len(found) >= at_least:
            return found
        time.sleep(0.005)
    raise AssertionError("no workers came up")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition) -> bool:
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def test_killed_at_any_time(bytes_tokenizer, tmp_path, large, inline):
    argv = arguments(bytes_tokenizer, tmp_path / "out", large, workers=2)
    for num_bytes in (-1, 0, 1 << 19, 1 << 20):  # as soon as it has written more than that
        process = start(argv)
        workers = workers_of(process, at_least=2)
        assert wait_until(lambda: num_bytes < sum(f.stat().st_size for f in tmp_path.glob("out.partial/*.npy")))  # noqa: B023
        assert process.poll() is None, "the input is too small for this test"
        process.kill()
        process.communicate()
        assert not (tmp_path / "out").exists()
        assert wait_until(lambda: not any(map(is_running, workers))), "workers outlive their parent"  # noqa: B023
    assert (tmp_path / "out.partial").exists()
    process = start(argv)
    assert process.communicate()[0].count("already prepared") == 0
    assert process.returncode == 0
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "clean", large))
    assert contents(tmp_path / "out") == contents(tmp_path / "clean")


@pytest.mark.parametrize(
    ("victim", "signal_", "code", "message"),
    [
        (
            "worker",
            signal.SIGKILL,
            2,
            "error: a worker was killed, most likely for want of memory; try fewer workers\n",
        ),
        ("group", signal.SIGINT, 130, ""),
    ],
)
def test_an_end_that_it_sees_coming_leaves_nothing(
    bytes_tokenizer, tmp_path, tmp_path_factory, victim, signal_, code, message
):
    # So long that on a busy machine too the signal comes before its end.
    long = dump(tmp_path_factory.mktemp("long") / "a.json", make_rows(12_000) * 5)
    process = start(arguments(bytes_tokenizer, tmp_path / "out", long, workers=2))
    workers = workers_of(process, at_least=2)
    assert wait_until(lambda: list(tmp_path.glob("out.partial/*.npy")))
    if victim == "worker":
        os.kill(workers[1], signal_)
    else:
        os.killpg(process.pid, signal_)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (code, message)
    assert list(tmp_path.iterdir()) == []
    assert not any(map(is_running, workers))


def test_no_space_left(bytes_tokenizer, tmp_path, large):
    process = start(
        arguments(bytes_tokenizer, tmp_path / "out", large),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),  # stands in for a full disk
    )
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == f"error: {tmp_path}/out: File too large; nothing was left behind\n"
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(bytes_tokenizer, tmp_path, large, inline):
    process = start(arguments(bytes_tokenizer, tmp_path / "out", large))
    assert wait_until(lambda: list(tmp_path.glob("out.partial/*.npy")))
    with pytest.raises(ValueError, match="out: another process is writing it"):
        prepare.main(arguments(bytes_tokenizer, tmp_path / "out", large))
    process.communicate()
    assert process.returncode == 0
    assert Split.open(tmp_path / "out").lengths.sum() > 100_000


def test_command_line(bytes_tokenizer, tmp_path):
    path = dump(tmp_path / "a.json", [{"text": "a"}, {"text": ""}])
    process = start(arguments(bytes_tokenizer, tmp_path / "out", path))
    _, errors = process.communicate()
    assert process.returncode == 2
    assert re.fullmatch(r'error: 1 bad row .*a\.json row 1: "text" is empty\. .*\n', errors)


# -- what is shown -----------------------------------------------------------------------------------


def test_progress_lines(bytes_tokenizer, tmp_path, inline, monkeypatch, capsys):
    monkeypatch.setattr(prepare, "BATCH_CHARS", 3000)
    monkeypatch.setattr(reporting, "SECONDS_BETWEEN_LINES", 0)
    inputs = [dump(tmp_path / f"{i}.json", make_rows(60, seed=i)) for i in range(4)]
    prepare.main(arguments(bytes_tokenizer, tmp_path / "out", *inputs))
    lines = [dict(pair.split("=") for pair in line.split()[1:]) for line in capsys.readouterr().err.splitlines()]
    assert len(lines) > 5
    percent = [float(line["percent"]) for line in lines]
    assert percent == sorted(percent)
    assert 0 < percent[0] < 50
    assert percent[-1] == 100
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert int(lines[-1]["documents"]) == report["total"]["documents"] == 240
    assert int(lines[-1]["tokens"]) == report["total"]["tokens"]
    assert float(lines[-1]["eta_seconds"]) == 0


def test_on_a_terminal(bytes_tokenizer, tmp_path):
    path = dump(tmp_path / "a.json", make_rows(200))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "logtrain.prepare", *arguments(bytes_tokenizer, tmp_path / "out", path)]
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 1 << 16)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    shown = shown.decode()
    total = json.loads((tmp_path / "out" / "report.json").read_text())["total"]
    assert f"{total['tokens']:,} tokens" in shown  # of the bar
    plain = re.sub(r"\x1b\[[\d;?]*\w", "", shown)
    assert re.search(rf"│ total +│ +200 │ .* {total['targets']:,} │", plain)


# -- real input --------------------------------------------------------------------------------------


def test_real_logs(llama3_tokenizer, shared, tmp_path):
    """Every token on the disk is the tokenizers library's own, and every character of the input is behind one."""
    loglm = shared / "data" / "loglm" / "loglm_instruction_2632.json"
    logs = sorted((shared / "data" / "loghub").glob("*/*.log"))
    prepare.main(
        arguments(llama3_tokenizer, tmp_path / "out", loglm, *logs, seq_len=2048, valid_fraction=0.05, workers=2)
    )
    library = tokenizers.Tokenizer.from_file(str(llama3_tokenizer / "tokenizer.json"))
    library.encode_special_tokens = True
    found = read_documents(tmp_path / "out")
    everything = sorted(((r["source"], r["row"]), tokens) for split in found.values() for tokens, r in split)
    rows = json.loads(loglm.read_bytes())
    texts = [f"Human: {row['instruction']}\n{row['input']}\nAssistant: {row['output']}\n" for row in rows]
    text_of_log = dict.fromkeys(range(1, 13), "")
    for (source, _), tokens in everything[len(texts) :]:
        texts.append(library.decode(tokens[1:-1]))
        text_of_log[source] += texts[-1]
    assert [text_of_log[i + 1].encode() for i in range(12)] == [log.read_bytes() for log in logs]
    expected = library.encode_batch(texts, add_special_tokens=False)
    assert [tokens for _, tokens in everything] == [[128000, *encoding.ids, 128001] for encoding in expected]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"]["bad"] == 0
    assert report["splits"]["train"]["packed"]["fill"] > 0.99

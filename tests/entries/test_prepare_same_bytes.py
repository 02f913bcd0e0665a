"""What prepare writes of a text is the same from version to version: tokens, order, and what is held out."""

import hashlib

from logtrain import prepare
from logtrain.data import chunks
from logtrain.text import plain_text
from tests.support.preparing import arguments, contents, dump, make_rows

EXPECTED = "113bb2c60561df28c24d130600c5fa691130648d48ae4fcff84a1dca4122c8f3"
"""It changes only with FORMAT_VERSION: what was held out before is held out again."""


def test_a_folder_has_the_bytes_of_earlier_versions(bytes_tokenizer, tmp_path, inline, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_CHARS", 5000)
    rows = make_rows(400) + [
        {"text": f"Jul  {i % 9} 10:26:58 sshd[{i}]: 日志 from 10.1.{i}.150:49602, id=a3f09c2{i:x} \x00\t" * (1 + i % 7)}
        for i in range(100)
    ]
    path = dump(tmp_path / "a.json", rows)
    for slice_chars in (1 << 14, 100):
        monkeypatch.setattr(plain_text, "SLICE_CHARS", slice_chars)
        output = tmp_path / str(slice_chars)
        prepare.main(arguments(bytes_tokenizer, output, path, shard_tokens=20_000))
        arrays = {name: array for name, array in contents(output).items() if name.endswith(".npy")}
        assert len(arrays) > 8 and any(name.startswith("valid") for name in arrays)
        digest = hashlib.sha256(b"".join(name.encode() + arrays[name] for name in sorted(arrays))).hexdigest()
        assert digest == EXPECTED, digest

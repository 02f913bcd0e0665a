"""Random files of a model: whatever stands in them, what reads them ends, or raises a ValueError of one line.

LOGTRAIN_FUZZ=N: N times as many examples, other ones each time.
"""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from logtrain.generation.load import ModelFolder
from logtrain.model import hf, peft
from logtrain.model.config import LoraConfig
from logtrain.text.chat_template import ChatTemplate, Turn
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import CHATML, TRIMMING
from tests.support.evaluation import write_chat_model
from tests.support.lora import adapted, trained

TIMES = int(os.environ.get("LOGTRAIN_FUZZ", "0"))
slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
fuzz = settings(max_examples=60 * max(1, TIMES), derandomize=not TIMES, suppress_health_check=slow)

numbers = st.one_of(st.integers(-2, 500), st.sampled_from([2**31, 2**62, 2**63, 2**64, -(2**63), 10**39]), st.floats())
scalars = st.one_of(
    st.none(), st.booleans(), numbers, st.text(max_size=8), st.sampled_from(["<|eot|>", "\ud800", "\0"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)


def object_of(*keys: str) -> st.SearchStrategy[dict]:
    """Objects with these keys, any values."""
    return st.dictionaries(st.sampled_from(keys), values, min_size=1, max_size=4)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A model, and an adapter of it."""
    folder, config = tmp_path_factory.mktemp("fuzz"), LoraConfig(rank=2, alpha=4.0)
    model = write_chat_model(folder / "model", 0.3)
    llama = adapted(model, config)
    peft.save(folder / "adapter", trained(llama), llama.config, config, str(model))
    return model, folder / "adapter"


def ends(file: Path, content: bytes, read: Callable[[], object]) -> None:
    """Holds `read` to its word while `file` has another content."""
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        read()
    except ValueError as error:
        assert "\n" not in str(error)
        assert str(file.parent) in str(error)
        assert len(str(error)) < 5000
    finally:
        file.write_bytes(before)


def changed(file: Path, changes: dict) -> bytes:
    return json.dumps(json.loads(file.read_bytes()) | changes).encode()


@fuzz
@given(changes=object_of("bos_token", "eos_token", "chat_template", "add_bos_token", "pad_token", "unk_token"))
@example(changes={"chat_template": "\ud800"})
def test_tokenizer_config(folders, changes):
    file = folders[0] / "tokenizer_config.json"
    ends(file, changed(file, changes), lambda: ModelFolder(folders[0]).template)


@fuzz
@given(changes=object_of("r", "lora_alpha", "lora_dropout", "peft_type", "bias", "base_model_name_or_path",
                         "init_lora_weights", "rank_pattern", "use_dora", "target_modules"))  # fmt: skip
def test_adapter_config(folders, changes):
    file = folders[1] / peft.CONFIG
    ends(file, changed(file, changes), lambda: ModelFolder(folders[1]).open_weights())


@fuzz
@given(changes=object_of("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim",
                         "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta",
                         "rope_scaling", "mlp_bias",
                         "rope_parameters", "tie_word_embeddings", "eos_token_id", "model_type"))  # fmt: skip
def test_config(folders, changes):
    file = folders[0] / "config.json"
    ends(file, changed(file, changes), lambda: ModelFolder(folders[0]).open_weights())


@fuzz
@given(part=st.sampled_from(["normalizer", "pre_tokenizer", "post_processor", "decoder", "model", "added_tokens"]),
       value=values)  # fmt: skip
def test_tokenizer(folders, part, value):
    file = folders[0] / "tokenizer.json"
    ends(file, changed(file, {part: value}), lambda: ModelFolder(folders[0]).template)


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I64", "F65", "", None]) | values,
        "shape": st.lists(st.integers(-1, 400), max_size=3) | values,
        "data_offsets": st.lists(st.integers(-1, 200_000), min_size=2, max_size=2) | values,
    }
)


@fuzz
@given(name=st.sampled_from(["lm_head.weight", "model.norm.weight", "__metadata__", "x"]), entry=entries | values,
       cut=st.integers(-8, 8), data=st.data())  # fmt: skip
def test_safetensors_header(folders, name, entry, cut, data):
    file = folders[0] / hf.WHOLE
    content = file.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    if data.draw(st.booleans()):
        header[name] = entry
        raw = json.dumps(header).encode()
    else:
        raw = bytearray(content[8 : 8 + size])
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, size - 1))] ^= 1 << data.draw(st.integers(0, 7))
    ends(file, struct.pack("<Q", max(0, len(raw) + cut)) + bytes(raw) + content[8 + size :],
         lambda: hf.Weights(folders[0], hf.read_config(folders[0])))  # fmt: skip


PARTS = st.sampled_from([
    "{{", "}}", "{%", "%}", "for a in messages", "for a in range(99999)", "endfor", "if", "endif",
    "set x = x ~ x", "set x = [x, x]", "set ns = namespace(x='a')", "set ns.x = ns.x + ns.x", "macro f(x)",
    "endmacro", "f(f)", "x * 9999", "| tojson(indent=999)", "| join(x)", "| replace('', x)", ".format(x)",
    "'%9999d' % 1", "**", "messages", "x", "'a'", "[1, 2]", "loop", "self", "caller()", "recursive", "9" * 30,
    "-", "(", ")", "is", "in", "\ud800", "\0", "{#", "#}",
])  # fmt: skip


@fuzz
@given(parts=st.lists(PARTS | st.text(max_size=5), min_size=1, max_size=15),
       base=st.sampled_from([TRIMMING, CHATML, ""]), at=st.integers(0, 300))  # fmt: skip
@example(parts=["{{ x | default(9) }}"], base=TRIMMING, at=0)
def test_template(folders, parts, base, at):
    tokenizer = Tokenizer.load(folders[0])
    source = base[:at] + " ".join(parts) + base[at:]
    try:
        ChatTemplate(tokenizer, source, where="template.jinja").encode(
            [Turn("user", "a" * 1000), Turn("assistant", "b")]
        )
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 2000

"""What gets a name loads: in our chat, and in transformers. What does not is refused before anything is there."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from logtrain.generation.load import ModelFolder
from logtrain.model import hf, merging, peft, published
from logtrain.model.config import LoraConfig
from logtrain.text import template_source
from tests.support.chats import CHATML, TRIMMING
from tests.support.evaluation import write_chat_model
from tests.support.hostile import GENERATION
from tests.support.lora import adapted, trained
from tests.support.synthetic import edit_json


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path, Path]:
    """A model, an adapter of it, and where the two are to be merged."""
    model, adapter, config = tmp_path / "model", tmp_path / "adapter", LoraConfig(rank=2, alpha=4.0)
    write_chat_model(model, 0.3)
    llama = adapted(model, config)
    peft.save(adapter, trained(llama), llama.config, config, str(model))
    return model, adapter, tmp_path / "merged"


def refused(folders: tuple[Path, Path, Path], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        merging.merge_folders(*folders, "float32")
    assert "\n" not in str(error.value)
    assert ".partial" not in str(error.value)
    assert not folders[2].exists()
    assert not list(folders[2].parent.glob(".*"))


@pytest.mark.parametrize("damage", GENERATION)
def test_an_adapters_broken_generation_config_is_not_published(folders, damage):
    file = folders[1] / published.GENERATION
    file.write_text("{}")
    GENERATION[damage](file)
    refused(folders, r"adapter/generation_config\.json: ")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", r"merged/chat_template\.jinja: not a jinja template: line 1: .*; not written"),
        ("{{ 'x' * 10**10 }}", r"merged/chat_template\.jinja: .*it does more than any .*; not written"),
        (
            TRIMMING.replace("message['content']", "'hello'"),
            r"merged/chat_template\.jinja: .*not write all of its text",
        ),
    ],
    ids=["no jinja", "a bomb", "another text"],
)
def test_an_adapters_broken_template_is_not_published(folders, template, message):
    (folders[1] / template_source.FILE).write_text(template)
    refused(folders, message)


def test_an_end_that_an_adapter_has_learned_is_published(folders):
    """Of a public report: TRL leaves the template, but no generation_config.json."""
    (folders[1] / template_source.FILE).write_text(TRIMMING.replace("<|eot|>", "<|end_of_text|>"))
    merging.merge_folders(*folders, "float32")
    assert hf.end_ids(folders[2] / published.GENERATION) == [344, 341]
    (folders[1] / published.GENERATION).write_text('{"eos_token_id": 344}')
    shutil.rmtree(folders[2])
    refused(folders, r"template ends answers with 341, .* 344; add the first to")


def test_an_end_that_is_no_id_of_the_model_is_not_published(folders):
    edit_json(folders[0] / published.GENERATION, eos_token_id=420)
    refused(folders, r"model/generation_config\.json: eos_token_id = 420, but the model has 420 ids")


def test_what_the_adapter_has_learned_is_published_and_loads(folders):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    template = CHATML.replace("{% for", "{{ bos_token }}{% for", 1)
    (folders[1] / template_source.FILE).write_text(template)
    (folders[1] / published.GENERATION).write_text(json.dumps({"eos_token_id": [341, 344], "temperature": 0.5}))
    result = merging.merge_folders(*folders, "float32")
    assert result.odd == []
    ours = ModelFolder(folders[2])
    assert (ours.template.source, ours.answer_ends, ours.sampling.temperature) == (template, {341, 344}, 0.5)
    model, tokenizer = (kind.from_pretrained(folders[2]) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.generation_config.eos_token_id == [341, 344]
    turns = [{"role": "user", "content": "why"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|begin|><|start|>user\nwhy<|eot|>\n"


def test_where_the_files_of_a_model_do_not_agree_it_is_said(folders):
    model, _, merged = folders
    edit_json(model / published.GENERATION, eos_token_id=341)
    assert merging.merge_folders(*folders, "float32").odd == [
        f"{merged}: config.json ends answers with 344, generation_config.json with 341",
        f"{merged}: the tokenizer's eos_token is <|eot|> (344), but answers end with 341",
        f"{merged}: the chat template ends answers with 344, generation_config.json with 341",
    ]


# ---- held against transformers

values = st.one_of(
    *(st.none(), st.booleans(), st.integers(-3, 500), st.integers(), st.floats(), st.text(max_size=5)),
    *(st.lists(st.integers(-3, 500), max_size=3), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2)),
)
keys = st.sampled_from([*published.DRAWS, *published.WHOLE, *published.FLAGS, "eos_token_id"])


@settings(max_examples=100)
@given(facts=st.dictionaries(keys, values, max_size=3))
def test_what_we_take_for_a_generation_config_transformers_loads(tmp_path_factory, facts):
    from transformers import GenerationConfig

    folder = tmp_path_factory.getbasetemp()
    (folder / published.GENERATION).write_text(json.dumps(facts))
    try:
        published.read_generation(folder / published.GENERATION)
    except ValueError as error:
        assert str(error).startswith(str(folder))
        return
    GenerationConfig.from_pretrained(folder)

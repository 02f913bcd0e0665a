"""A model folder, ready to answer: an adapter is merged, what is wrong is named, and draws are as the folder says."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from logtrain.generation.config import SamplingConfig
from logtrain.generation.load import ModelFolder
from logtrain.model import peft as adapter
from logtrain.model.config import LoraConfig
from logtrain.model.merging import merge_folders
from logtrain.text.chat_template import Turn
from tests.support.chats import TRIMMING
from tests.support.chats import write_tokenizer as write_chat_tokenizer
from tests.support.evaluation import write_chat_model
from tests.support.generation import CPU, NEW, ids_of, new_generator, transformers_answer
from tests.support.llama import load_transformers
from tests.support.lora import adapted, trained
from tests.support.synthetic import edit_json, write_tokenizer


def test_an_adapter_is_merged_into_the_model_it_names(folder, tmp_path):
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        load_transformers(folder), PeftConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "up_proj"])
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path)
    ours, ids = ModelFolder(tmp_path).load(CPU), [3, 4, 5, 6]
    plain = ModelFolder(folder).load(CPU)
    expected = transformers_answer(model, ids, NEW, eos_token_id=None)
    assert ids_of(new_generator(ours), [ids]) == [expected]
    assert ids_of(new_generator(plain), [ids]) != [expected]
    assert ours.folder.base == folder
    edit_json(tmp_path / "adapter_config.json")  # takes nulls out, as it will below
    copy = shutil.copytree(tmp_path, tmp_path.with_name("a_copy"))
    edit_json(copy / "adapter_config.json", base_model_name_or_path=os.path.relpath(folder))
    assert ModelFolder(copy).digest() == ModelFolder(tmp_path).digest() != ModelFolder(folder).digest()
    edit_json(copy / "adapter_config.json", lora_alpha=17)
    assert ModelFolder(copy).digest() != ModelFolder(tmp_path).digest()


def damaged(folder: Path, loaded_from: Path) -> Iterator[tuple[str, Path, str]]:
    for name in ("no tokenizer", "large tokenizer", "strange stop", "lost base"):
        copy = folder / name.replace(" ", "_")
        copy.mkdir()
        for file in loaded_from.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        if name == "no tokenizer":
            (copy / "tokenizer.json").unlink()
            yield name, copy, "no tokenizer.json or tokenizer.model"
        if name == "large tokenizer":
            write_tokenizer(copy, 400)
            yield name, copy, "its tokenizer has 400 ids, its model only 320"
        if name == "strange stop":
            edit_json(copy / "generation_config.json", eos_token_id="</s>")
            yield name, copy, 'eos_token_id = "</s>"; expected an id or a list of ids'
        if name == "lost base":
            adapter.save(copy, {}, ModelFolder(loaded_from).shape, LoraConfig(rank=1), "/nowhere")
            yield name, copy, 'base_model_name_or_path = "/nowhere" is no folder here; set it to the model\'s folder'


def test_a_folder_that_is_no_model_is_named(folder, tmp_path):
    cases = list(damaged(tmp_path, folder))
    assert len(cases) == 4
    for name, path, message in cases:
        with pytest.raises(ValueError) as error:
            ModelFolder(path).load(CPU)
        assert message in str(error.value), name
        assert str(path) in str(error.value)


def test_answers_are_drawn_as_the_folder_says_or_as_llama_3_1s_does(tmp_path):
    file = tmp_path / "generation_config.json"
    llama, neutral = SamplingConfig(temperature=0.6, top_p=0.9), SamplingConfig(temperature=1.0)
    assert ModelFolder(tmp_path).sampling == llama
    for facts, expected in (
        ({"eos_token_id": 2}, llama),
        ({"temperature": None}, llama),
        ({"do_sample": True}, neutral),
        ({"do_sample": False, "top_p": 0.5}, SamplingConfig(temperature=0.0, top_p=0.5)),
        ({"temperature": 1}, neutral),
        ({"top_k": 20}, SamplingConfig(temperature=1.0, top_k=20)),
        ({"min_p": 0.1}, SamplingConfig(temperature=1.0, min_p=0.1)),
        ({"repetition_penalty": 1.1}, SamplingConfig(temperature=0.6, top_p=0.9, repetition_penalty=1.1)),
    ):
        file.write_text(json.dumps(facts))
        assert ModelFolder(tmp_path).sampling == expected
    for facts, message in (
        ({"temperature": -1}, "temperature = -1 must be"),
        ({"min_p": 2}, "min_p = 2 must be from 0 to 1"),
        ({"top_k": 1.5}, "top_k = 1.5; expected a number"),
        ({"top_p": True}, "top_p = true; expected a number"),
    ):
        file.write_text(json.dumps(facts))
        with pytest.raises(ValueError, match=re.escape(f"{file}: {message}")):
            assert ModelFolder(tmp_path).sampling


@pytest.mark.parametrize("has_tokenizer", [True, False])
def test_an_adapters_own_template_asks_and_is_merged(tmp_path, has_tokenizer):
    """Of public reports: TRL, LLaMA-Factory and axolotl leave it in the tokenizer_config.json beside the adapter."""
    from transformers import AutoTokenizer

    own = "{{ bos_token }}{% for m in messages %}{{ '### ' + m['role'] + m['content'] + eos_token }}{% endfor %}"
    model = write_chat_model(tmp_path / "model", 0.3)
    (model / "chat_template.jinja").write_text(TRIMMING)
    lora = LoraConfig(rank=2, alpha=4.0)
    trained_model = adapted(model, lora)
    adapter.save(tmp_path / "adapter", trained(trained_model), trained_model.config, lora, str(model))
    write_chat_tokenizer(tmp_path / "adapter", own)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "adapter")
    if not has_tokenizer:
        (tmp_path / "adapter" / "tokenizer.json").unlink()
    turns = [Turn("user", "why error?")]
    expected = theirs.apply_chat_template([turn._asdict() for turn in turns], return_dict=False)
    assert expected != ModelFolder(model).template.prompt(turns)
    assert ModelFolder(tmp_path / "adapter").template.prompt(turns) == expected
    merge_folders(model, tmp_path / "adapter", tmp_path / "merged", "float32")
    assert ModelFolder(tmp_path / "merged").template.prompt(turns) == expected
    assert "chat_template" not in json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    merged = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert merged.apply_chat_template([turn._asdict() for turn in turns], return_dict=False) == expected

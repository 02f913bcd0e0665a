"""The loop of a chat, where its steps fail."""

import pytest
import torch

from logtrain.conversation.repl import answer
from logtrain.conversation.terminal import Screen
from logtrain.generation.generator import Generator
from tests.support.conversations import ask, new_conversation


def test_a_gpu_that_is_full_is_one_line_and_the_conversation_stays(model, monkeypatch):
    conversation = new_conversation(model)
    ask(conversation, "why?")
    before, step = list(conversation.turns), Generator.step

    def full(self):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Generator, "step", full)
    with pytest.raises(ValueError, match="the GPU's memory is full; start with a smaller --memory"):
        answer("and then?", conversation, Screen(is_interactive=False))
    assert conversation.turns == before
    monkeypatch.setattr(Generator, "step", step)
    assert ask(conversation, "and then?")

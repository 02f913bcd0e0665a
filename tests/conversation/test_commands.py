"""Lines that begin with / are commands, the others are questions."""

import re

import pytest

from logtrain.conversation.commands import COMMANDS, HELP, ExitChat, handle, piped_question
from logtrain.text.chat_template import Turn
from tests.support.conversations import new_conversation


def test_what_is_a_question(model):
    conversation = new_conversation(model)
    for line, question in (
        ("why?", "why?"),
        ("why\nthen?\n", "why\nthen?"),
        (" /var/log", " /var/log"),
        ("//var/log is full", "/var/log is full"),
        ("   ", ""),
        ("", ""),
    ):
        assert piped_question(line, conversation) == handle(line, conversation, pytest.fail) == question


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/hepl", "/hepl: no such command; the nearest is /help. Is it a question? Put a space before it"),
        ("/var/log is full", "/var/log: no such command"),
        ("/", "/: no such command"),
        ("/ log", "/: no such command"),
        ("/log", "/log: expected /log FILE [LINES]"),
        ("/log a b c", "a b c: 3 words, expected 2 at most; put a name with spaces in quotes"),
        ('/log "a', '"a: No closing quotation'),
        ("/save", "/save: expected /save FILE"),
        ("/cause of it", "/cause: nothing may follow it, and 'of it' does"),
        ("/reset\nnow", "/reset: nothing may follow it"),
    ],
)
def test_a_command_that_is_none_is_one_line(model, line, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        handle(line, new_conversation(model), pytest.fail)
    assert "\n" not in str(error.value)


def test_commands(model):
    conversation, said = new_conversation(model), []
    handle("/system be brief\nand kind", conversation, said.append)
    plain = conversation.template.prompt([Turn("user", "why?")])
    told = conversation.template.prompt([Turn("system", "be brief\nand kind"), Turn("user", "why?")])
    assert conversation.prompt("why?", None) == told != plain
    handle("/system", conversation, said.append)
    assert conversation.prompt("why?", None) == plain
    handle("/help", conversation, said.append)
    assert said[2] == HELP
    assert all(f"/{name} " in HELP for name in COMMANDS)
    assert max(map(len, HELP.splitlines())) <= 100
    with pytest.raises(ExitChat):
        handle("/exit", conversation, said.append)

"""Conversations with a small random model, as logtrain.chat builds them."""

from pathlib import Path

from logtrain import chat
from logtrain.conversation.session import Conversation
from logtrain.conversation.terminal import Screen
from logtrain.text.tokenizer import Tokenizer
from tests.support.chats import write_tokenizer
from tests.support.synthetic import write_model

CONTEXT = 4096  # positions of the model
NEW = 60  # tokens of an answer, unless a test wants others


def write_chat_model(folder: Path) -> Path:
    """A random Llama with a chat template: what it says is noise, but the same for the same prompt."""
    tokenizer = Tokenizer.load(write_tokenizer(folder))
    size, end = tokenizer.vocab_size, tokenizer.token_id("<|eot|>")
    write_model(folder, vocab_size=size, eos_token_id=end, max_position_embeddings=CONTEXT, initializer_range=0.3)
    return write_tokenizer(folder)


def new_conversation(model: Path, **settings) -> Conversation:
    """A conversation that has just begun; `settings`: flags of logtrain.chat."""
    settings = {"temperature": 0.0, "max_new_tokens": NEW, **settings}
    return chat.build(chat.ChatConfig(model=str(model), **settings), Screen(is_interactive=False))


def ask(conversation: Conversation, question: str) -> str:
    """The whole answer to a question."""
    return list(conversation.ask(question))[-1].text


def write_log(path: Path, count: int = 20) -> Path:
    """A log of so many lines."""
    path.write_text("".join(f"sshd[24499]: error {i}\n" for i in range(1, count + 1)))
    return path

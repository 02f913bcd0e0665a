"""What the tokenizers library raises that is no Exception: the panics of Rust."""

from pathlib import Path

PANIC = "PanicException"


class panics_named:
    """A panic of the library in the block becomes a ValueError that names the file."""

    def __init__(self, file: Path):
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None and type(error).__name__ == PANIC:
            raise ValueError(f"{self.file}: its tokenizer fails ({error})") from None


def raise_if_ours(error: BaseException) -> None:
    """Raises an error again that does not come from the library, Ctrl-C say."""
    if not isinstance(error, Exception) and type(error).__name__ != PANIC:
        raise error

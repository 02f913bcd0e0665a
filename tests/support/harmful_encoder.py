"""An encoder that does harm, in a file that a worker imports within its second: not that of prepare's tests."""

import time
from dataclasses import dataclass

from logtrain.data.encode import TextEncoder


@dataclass(frozen=True)
class Hostile:
    """An encoder to which one text does something."""

    does: str

    def encode(self, items, tokenizer):
        while "go" in items and self.does == "loop":
            time.sleep(0.1)
        if "go" in items and self.does == "double":
            grown = ["ab"]
            while True:
                grown += grown
        if "go" in items:
            raise Exception(f"the regular\nexpression {self.does}")  # as the tokenizers library does
        return TextEncoder(bos_id=256, document_end_id=257, hash_key=b"").encode(items, tokenizer)

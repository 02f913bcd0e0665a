"""The bytes of tokens that are parts of characters, by how tokenizers spell them."""

import re

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes that are no character decode to
PRINTABLE = (*range(33, 127), *range(161, 173), *range(174, 256))
BYTE_OF = {chr(byte): byte for byte in PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(sorted(set(range(256)) - set(PRINTABLE)))
}


def bytes_of_part(token: str) -> bytes | None:
    """The bytes of a token that is a part of a character, as tokenizers spell it: <0xE2>, or a letter for each byte.
    These letters are the printable bytes themselves and, for the others in order, those from U+0100 on (GPT-2). None
    for another spelling.
    """
    if found := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
        return bytes.fromhex(found[1])
    try:
        return bytes(BYTE_OF[letter] for letter in token)
    except KeyError:
        return None

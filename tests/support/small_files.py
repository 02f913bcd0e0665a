"""`logtrain.blend` with files of 100 KB, for a model that has several all the same."""

from logtrain import blend
from logtrain.model import hf


def main(argv: list[str]) -> int:
    hf.FILE_BYTES = 100_000
    return blend.main(argv)

"""Turns raw text or chats into token shards, with a report.

    logtrain prepare --input FILE... --tokenizer DIR --output DIR

The parts are in data/, here in the order of the work:

    lines.py, files.py    bytes -> rows       documents.py, conversations.py   rows -> what is trained on
    chunks.py       what a worker is sent     encode.py, encode_chat.py        -> tokens, in the workers of pool.py
    held_out.py     training or validation    shards.py                        -> .npy
    account.py, report.py   where every row and token went
    manifest.py     what the output depends on

The output depends on the input, the tokenizer and the settings alone, and not on the number of workers, the time or the
machine. The manifest names all three, and a fingerprint of them says whether a folder is up to date.
"""

import os
from pathlib import Path

from logtrain.core.atomic import new_folder
from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.printable import printable
from logtrain.core.still import Still
from logtrain.data.config import PrepareConfig
from logtrain.data.format_found import resolved
from logtrain.data.inputs import Inputs
from logtrain.data.manifest import print_origin, read_origin
from logtrain.data.pool import Pool
from logtrain.data.preparation import prepare
from logtrain.data.prepared import refuse_other_origin
from logtrain.data.preview import print_preview
from logtrain.data.report_table import print_report


def main(argv: list[str]) -> None:
    """Prepare the folder that the flags name, unless it is there already. Raises ValueError for a user's mistake."""
    config = load(PrepareConfig, argv)
    inputs = Inputs(config.input, config.max_row_mb)
    files = inputs.files
    config, said = resolved(config, files)
    if said:
        print(said)
    if config.show:
        print_preview(config, files)
        return
    output = Path(os.path.abspath(config.output))
    if (output / "manifest.json").exists():
        refuse_other_origin(output, read_origin(config, files))
        where = printable(config.output, one_line=True)
        print(f"{where}: already prepared from this input with these settings; nothing to do")
        return
    with Pool.on_all_cores(config.tokenizer, config.workers) as pool, Still():
        origin = read_origin(config, files, pool.ask)
        print_origin(origin)
        if told := inputs.told():
            print(told)
        try:
            with new_folder(output) as folder:
                report = prepare(config, files, origin, folder, pool)
        except OSError as error:
            where, what = error.filename or output, error.strerror or error
            raise ValueError(f"{where}: {what}; nothing was left behind") from error
    print_report(report)


if __name__ == "__main__":
    run(main)

"""`logtrain COMMAND ARGUMENTS`: the commands of logtrain by one name. `python -m logtrain.COMMAND` is the same.

A command is a file beside this one, or a folder with a `__main__.py`, that has a `main(argv)`. The first line of its
docstring is what `logtrain --help` says of it; it is read, not imported, so that the list comes at once.
"""

import ast
import importlib
import re
import sys
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

from logtrain.core.entry import WRONG_INPUT, run

HERE = Path(__file__).parent
FIRST = (  # in the list, from the raw text to the answer; whatever else there is comes after them
    *("prepare", "plan", "rehearse", "doctor", "import", "cpt", "sft", "dpo", "status", "report", "trace", "replay"),
    *("blend", "merge", "export", "evaluate", "benchmark", "judge", "serve", "page", "synthesise", "review", "hub"),
    *("lineage", "chat"),
)
MORE = "\nlogtrain COMMAND --help lists the arguments of a command. On several GPUs: torchrun ... -m logtrain.COMMAND"


def commands() -> dict[str, Path]:
    """{command: its file}, in the order of the list."""
    files = {path.stem: path for path in HERE.glob("[!_]*.py")}
    files |= {path.parent.name: path for path in HERE.glob("*/__main__.py")}
    named = {name: files[name] for name in (*FIRST, *sorted(files.keys() - {*FIRST})) if name in files}
    return {name: path for name, path in named.items() if re.search(r"^def main\(", path.read_text("utf-8"), re.M)}


def module_of(path: Path) -> str:
    """The module that a command's file is: logtrain.NAME, or logtrain.NAME.__main__."""
    return ".".join(path.relative_to(HERE.parent).with_suffix("").parts)


def usage() -> str:
    """All commands, each with the first line of its docstring."""
    lines = []
    for name, path in commands().items():
        text = ast.get_docstring(ast.parse(path.read_bytes(), path)) or ""
        lines.append(f"  {name:<10} {text.splitlines()[0] if text else ''}\n")
    return "usage: logtrain COMMAND [ARGUMENTS]\n\n" + "".join(lines)


def main() -> NoReturn:
    """Run the command that the first argument names; this is the console script `logtrain`."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("-h", "--help"):
        print(usage() + MORE)
        sys.exit(0)
    offered = commands()
    if command not in offered:
        near = get_close_matches(command, offered, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the commands are {', '.join(offered)}"
        print(f"error: {command}: no such command; {hint}", file=sys.stderr)
        sys.exit(WRONG_INPUT)
    sys.argv[:2] = [f"logtrain {command}"]
    run(importlib.import_module(module_of(offered[command])).main)


if __name__ == "__main__":
    main()

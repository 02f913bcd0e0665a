"""The rule of the house, held: see CONTRIBUTING.md.

Read from the source with `ast`, so that an import under `if TYPE_CHECKING`, in a `try` or never reached counts too.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from logtrain.__main__ import commands
from tests.support import ROOT

HOUSE = """
core < text, observe < data, model < generation, training < evaluation, conversation, planning
     < serving, synthesis, sharing, readiness < entries
"""
LEVEL_OF = {name.strip(): level for level, names in enumerate(HOUSE.split("<")) for name in names.split(",")}

NATIVE = {  # compiled from csrc/, and who may import it
    "logtrain._pack": ("data",),
    "logtrain._rouge": ("evaluation",),
    "logtrain._twins": ("data",),
}
ONLY_IN = {**NATIVE, "logtrain_kernels": ("model", "planning")}  # a package of which only these may import
OPTIONAL = {"pyarrow", "flash_attn", "yaml", "peft", "transformers"}  # of extras, so imported where they are used
KERNELS_MAY_IMPORT = {"torch", "triton", "logtrain_kernels"} | sys.stdlib_module_names


def room_of(module: str, files: dict[str, Path]) -> str:
    """The package of logtrain that a module is in; "entries" for those beside the packages, and for a package that is a
    command; "" for logtrain itself.
    """
    parts = module.split(".")
    if len(parts) == 1:
        return ""
    is_entry = len(parts) == 2 or f"logtrain.{parts[1]}.__main__" in files
    return parts[1] if parts[1] in LEVEL_OF or not is_entry else "entries"


def entry_of(module: str) -> str:
    """The command that a module of the entries is, or is a part of."""
    return module.split(".")[1]


def problems(root: Path) -> list[str]:
    """One line for each breach below `root`, which holds logtrain/ and kernels/logtrain_kernels/."""
    found = []
    if (root / "kernels" / "__init__.py").exists():
        found.append("kernels/__init__.py: shadows the package `kernels` that transformers probes for; delete it")
    files = {
        ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__"): path
        for base, package in ((root, "logtrain"), (root / "kernels", "logtrain_kernels"))
        for path in sorted((base / package).rglob("*.py"))
    }
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        where = path.relative_to(root)
        if module.startswith("logtrain.") and room_of(module, files) not in LEVEL_OF:
            found.append(
                f"{where}: {room_of(module, files)} is no room of the house; see HOUSE in tests/test_imports.py"
            )
            continue
        graph[module] = set()
        for node, is_local in statements(path):
            for imported in sorted(imports(node, module, path.name == "__init__.py", files)):
                if breach := forbidden(module, imported, files) or (is_local and local(module, imported, files)):
                    found.append(f"{where}:{node.lineno}: imports {imported}{breach}")
                if imported in files:
                    graph[module].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"cycle: {' <- '.join(error.args[1])}")
    return found


def statements(path: Path) -> list[tuple[ast.stmt, bool]]:
    """Every node of a file, and whether it is inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    inside = {id(node) for function in functions for node in ast.walk(function)}
    return [(node, id(node) in inside) for node in ast.walk(tree)]


def imports(node: ast.AST, module: str, is_package: bool, files: dict[str, Path]) -> set[str]:
    """The modules that a statement of `module` imports: of `from a import b`, a.b where that is a module, else a."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()
    parts = [node.module] if node.module else []
    if node.level:
        own = module.split(".")
        parts = own[: len(own) - node.level + is_package] + parts
    source = ".".join(parts)
    modules = files.keys() | NATIVE.keys()
    return {full if (full := f"{source}.{alias.name}") in modules else source for alias in node.names}


def forbidden(module: str, imported: str, files: dict[str, Path]) -> str | None:
    """Why `module` must not import `imported`, or None if it may."""
    package, room = imported.split(".")[0], room_of(module, files)
    if module.startswith("logtrain_kernels"):
        return None if package in KERNELS_MAY_IMPORT else ": kernels take torch, triton and the standard library"
    if only_in := ONLY_IN.get(imported) or ONLY_IN.get(package):
        return None if room in only_in else f": only {' and '.join(only_in)} may"
    if package != "logtrain" or imported == module:
        return None
    if imported not in files:
        return ": there is no such module"
    theirs = room_of(imported, files)
    if theirs == "entries" and not (room == "entries" and entry_of(module) == entry_of(imported)):
        return ": an entry, which nothing imports"
    if not room:
        return ": logtrain itself imports nothing, so that `import logtrain` is fast"
    if theirs and theirs != room and LEVEL_OF[theirs] >= LEVEL_OF[room]:
        return f": {theirs} is not before {room}"
    return None


def local(module: str, imported: str, files: dict[str, Path]) -> str | None:
    """Why an import inside a function is one too many, or None."""
    if (module.startswith("logtrain.") and room_of(module, files) == "entries") or imported.split(".")[0] in OPTIONAL:
        return None
    return " inside a function"


def test_the_house():
    assert not problems(ROOT), "\n" + "\n".join(problems(ROOT))


def test_every_room_is_looked_at():
    rooms = {path.parent.name for path in (ROOT / "logtrain").glob("*/__init__.py")} - commands().keys()
    assert {"core", "text", "observe", "data", "model", "generation", "training"} <= rooms <= LEVEL_OF.keys()
    assert list((ROOT / "kernels" / "logtrain_kernels").glob("*.py"))


def test_the_rule_that_contributors_read_is_this_one():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert " ".join(HOUSE.split()) in " ".join(text.split())


GOOD = {
    "logtrain/__init__.py": '"""Empty."""',
    "logtrain/core/__init__.py": "",
    "logtrain/core/config.py": "import tyro",
    "logtrain/core/world.py": "import torch\nfrom .config import load",
    "logtrain/text/tokenizer.py": "from logtrain.core import config",
    "logtrain/data/shards.py": "import numpy",
    "logtrain/data/pack.py": "from logtrain.data import shards\ntry:\n  from logtrain import _pack\nexcept: pass",
    "logtrain/data/files.py": "def parquet():\n  import pyarrow.parquet",
    "logtrain/data/loader.py": "from .pack import rows\nfrom ..core.config import load\nfrom . import shards",
    "logtrain/model/llama.py": "from logtrain_kernels import rope\nfrom logtrain_kernels.rope import rope",
    "logtrain/model/hf.py": "import logtrain.model.llama",
    "logtrain/training/optim.py": "import torch",
    "logtrain/training/trainer.py": "from logtrain.training.optim import adamw\nimport logtrain.data.loader as loader",
    "logtrain/planning/trace.py": "from logtrain.training import trainer\nimport logtrain_kernels",
    "logtrain/cpt.py": "from logtrain.core import config\ndef f():\n  from logtrain.training.trainer import T",
    "logtrain/asking/__init__.py": "",
    "logtrain/asking/pages.py": "from logtrain.serving import page\ndef f():\n  import torch",
    "logtrain/asking/__main__.py": "from logtrain.asking.pages import f\nimport logtrain.asking.pages",
    "logtrain/serving/page.py": "",
    "kernels/logtrain_kernels/__init__.py": "from .rms_norm import rms_norm",
    "kernels/logtrain_kernels/rms_norm.py": "import math, torch.nn, triton.language as tl",
    "kernels/logtrain_kernels/rope.py": "from logtrain_kernels.rms_norm import rms_norm",
}


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_what_is_right_passes(tmp_path):
    assert problems(tree(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        # towards a later room, or one beside
        ("logtrain/core/config.py", "import torch\nimport logtrain.data.pack", "pack: data is not before core"),
        ("logtrain/core/config.py", "from logtrain.data import pack", ":1: imports logtrain.data.pack: data is not"),
        ("logtrain/core/config.py", "from ..data.pack import rows", ":1: imports logtrain.data.pack: data is not"),
        ("logtrain/core/__init__.py", "from ..data import pack", "logtrain.data.pack: data is not before core"),
        ("logtrain/data/shards.py", "from logtrain.model import hf", "model is not before data"),
        ("logtrain/model/llama.py", "import logtrain.data.pack", ":1: imports logtrain.data.pack: data is not before"),
        ("logtrain/model/hf.py", "if TYPE_CHECKING:\n  from logtrain.training.optim import x", "training is not"),
        ("logtrain/planning/x.py", "import logtrain.evaluation.y", "logtrain.evaluation.y: there is no such module"),
        ("logtrain/__init__.py", "from .core import config", ":1: imports logtrain.core.config: logtrain itself"),
        # entries
        ("logtrain/training/optim.py", "import logtrain.cpt", ":1: imports logtrain.cpt: an entry, which nothing"),
        ("logtrain/sft.py", "from logtrain import cpt", ":1: imports logtrain.cpt: an entry, which nothing imports"),
        (
            "logtrain/sft.py",
            "from logtrain.asking.pages import f",
            ":1: imports logtrain.asking.pages: an entry, which",
        ),
        (
            "logtrain/asking/pages.py",
            "import logtrain.cpt",
            ":1: imports logtrain.cpt: an entry, which nothing imports",
        ),
        ("logtrain/serving/page.py", "import logtrain.asking.pages", "logtrain.asking.pages: an entry, which nothing"),
        ("logtrain/sft.py", "def main():\n  from logtrain.cpt import x", ":2: imports logtrain.cpt: an entry, which"),
        # inside a function
        ("logtrain/model/hf.py", "def f():\n    from logtrain.core.config import x", "logtrain.core.config inside a"),
        ("logtrain/model/hf.py", "class A:\n  async def f():\n    import json", ":3: imports json inside a function"),
        ("kernels/logtrain_kernels/rope.py", "f = 1\ndef f(): import math", ":2: imports math inside a function"),
        # packages that only some may import
        ("logtrain/training/optim.py", "import logtrain_kernels", "logtrain_kernels: only model and planning"),
        ("logtrain/data/shards.py", "from logtrain_kernels.rope import x", "logtrain_kernels.rope: only model and"),
        ("logtrain/model/hf.py", "from logtrain import _pack", "logtrain._pack: only data may"),
        ("logtrain/cpt.py", "import logtrain._pack", "logtrain._pack: only data may"),
        ("logtrain/data/shards.py", "from logtrain import _rouge", "logtrain._rouge: only evaluation may"),
        # kernels
        ("kernels/logtrain_kernels/rope.py", "import numpy", ":1: imports numpy: kernels take torch, triton"),
        ("kernels/logtrain_kernels/rope.py", "from logtrain.core import config", "logtrain.core.config: kernels take"),
        ("kernels/__init__.py", "", "kernels/__init__.py: shadows"),
        # cycles
        ("kernels/logtrain_kernels/rms_norm.py", "from .rope import rope", "cycle: logtrain_kernels.r"),
        ("logtrain/data/shards.py", "from logtrain.data import pack", "cycle: logtrain.data."),
        # a room, or an import, that is nowhere
        ("logtrain/utils/x.py", "", "logtrain/utils/x.py: utils is no room of the house"),
        ("logtrain/cpt.py", "from logtrain.common import x", ":1: imports logtrain.common: there is no such module"),
    ],
)
def test_what_is_wrong_is_found(tmp_path, name, text, expected):
    found = problems(tree(tmp_path, {**GOOD, name: text}))
    if not expected.startswith("cycle"):  # an import upwards may close one as well
        found = [line for line in found if not line.startswith("cycle")]
    assert len(found) == 1, found
    assert expected in found[0]
    assert found[0].startswith((name, "cycle"))

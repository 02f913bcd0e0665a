"""The layers of the package, held: imports go downwards only, at the top of a file, and each file has its place.

Read from the source with `ast`, so that an import under `if TYPE_CHECKING`, in a `try` or never reached counts too.
"""

import ast
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.support import ROOT

LAYERS = {
    8: "prepare cpt export sft merge evaluate chat serve plan",  # entries: nothing imports them
    7: "predict picture",  # a plan, and it drawn
    6: "trace contestant commands",  # a step of a job on pretended GPUs; a model in an evaluation; what / does
    5: "job pretrained conversation",  # assembles a run from its config; a model from its folder; a chat
    4: "trainer publish adapter inputs generate perplexity compare_page answers terminal",
    3: "parallel checkpoint hf lora cached_model blocked scoreboard data.report data.show data.questions",
    2: "remote model comparison data.loader data.chat data.encode_chat data.manifest",
    1: "chat_template stream scoring data.log data.text data.encode data.pack optim metrics rundir cost record memory",
    0: "config tokenizer sampling worker data.files data.shards intervals operation",
    -1: "printable",
}
LAYER_OF = {f"logtrain.{name}": layer for layer, names in LAYERS.items() for name in names.split()}
LAYER_OF |= {"logtrain": -1, "logtrain.data": -1}  # run before any of their modules, so they can import none
NATIVE = "logtrain._pack"  # compiled from csrc/
ONLY_IN = {NATIVE: ("logtrain.data.pack",), "logtrain_kernels": ("logtrain.model.llama", "logtrain.model.lora", "logtrain.planning.trace")}
NEVER = {("logtrain.training.trainer", "logtrain.text.tokenizer"), ("logtrain.training.trainer", "logtrain.model.hf")}  # it takes built objects
KERNELS_MAY_IMPORT = {"torch", "triton", "logtrain_kernels"} | sys.stdlib_module_names


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
        if module.startswith("logtrain.") and module not in LAYER_OF:
            found.append(
                f"{where}: has no layer; add {module.removeprefix('logtrain.')} to LAYERS in tests/test_imports.py"
            )
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        local = {
            id(node)
            for function in ast.walk(tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function)
        }
        graph[module] = set()
        for node in ast.walk(tree):
            for imported in sorted(imports(node, module, path.name == "__init__.py", files)):
                if id(node) in local:
                    found.append(f"{where}:{node.lineno}: imports {imported} inside a function")
                breach = forbidden(module, imported)
                if breach:
                    found.append(f"{where}:{node.lineno}: imports {imported}: {breach}")
                if imported in files:
                    graph[module].add(imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"cycle: {' <- '.join(error.args[1])}")
    return found


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
    modules = files.keys() | LAYER_OF.keys() | {NATIVE}
    return {full if (full := f"{source}.{alias.name}") in modules else source for alias in node.names}


def forbidden(module: str, imported: str) -> str | None:
    """Why `module` must not import `imported`, or None if it may."""
    package = imported.split(".")[0]
    if module.startswith("logtrain_kernels"):
        return (
            None if package in KERNELS_MAY_IMPORT else "logtrain_kernels takes torch, triton and the standard library"
        )
    only_in = ONLY_IN.get(imported) or ONLY_IN.get(package)
    if only_in:
        return None if module in only_in else f"only {only_in[0]} may"
    if package != "logtrain":
        return None
    if imported not in LAYER_OF:
        return "there is no such module"
    if (module, imported) in NEVER:
        return f"{module} takes what it made, built"
    if LAYER_OF[imported] >= LAYER_OF[module]:
        return f"layer {LAYER_OF[imported]} from layer {LAYER_OF[module]}; imports go downwards"
    return None


def test_layers():
    assert not problems(ROOT), "\n" + "\n".join(problems(ROOT))


def test_every_folder_is_looked_at():
    assert {"config.py", "model.py"} <= {path.name for path in (ROOT / "logtrain").glob("*.py")}
    assert list((ROOT / "kernels" / "logtrain_kernels").glob("*.py"))


GOOD = {
    "logtrain/__init__.py": '"""Empty."""',
    "logtrain/data/__init__.py": "",
    "logtrain/config.py": "import tyro",
    "logtrain/data/shards.py": "import numpy",
    "logtrain/data/pack.py": "from logtrain.data import shards\ntry:\n  from logtrain import _pack\nexcept: pass",
    "logtrain/data/loader.py": "from .pack import rows\nfrom ..config import load\nfrom . import shards",
    "logtrain/model.py": "from logtrain_kernels import rope\nfrom logtrain_kernels.rope import rope\nimport logging",
    "logtrain/optim.py": "import torch",
    "logtrain/hf.py": "import logtrain.model.llama",
    "logtrain/trainer.py": "from logtrain.observe.metrics import Metrics\nimport logtrain.data.loader as loader",
    "logtrain/cpt.py": "from logtrain import hf, trainer, tokenizer\nimport wandb",
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
        # upward
        (
            "logtrain/config.py",
            "import torch\nimport logtrain.training.trainer",
            ":2: imports logtrain.trainer: layer 4 from layer 0",
        ),
        ("logtrain/model.py", "from logtrain import hf", ":1: imports logtrain.hf: layer 3 from layer 2"),
        ("logtrain/model.py", "from logtrain.model.hf import load", ":1: imports logtrain.hf: layer 3 from layer 2"),
        ("logtrain/model.py", "from . import hf", ":1: imports logtrain.hf: layer 3 from layer 2"),
        ("logtrain/data/files.py", "from ..model import Llama", ":1: imports logtrain.model: layer 2 from layer 0"),
        ("logtrain/data/shards.py", "from . import loader", ":1: imports logtrain.data.loader: layer 2 from layer 0"),
        ("logtrain/hf.py", "from logtrain import model, trainer", ":1: imports logtrain.trainer: layer 4 from layer 3"),
        ("logtrain/optim.py", "if TYPE_CHECKING:\n    from logtrain.model.hf import x", ":2: imports logtrain.hf: layer 3"),
        ("logtrain/__init__.py", "from . import config", ":1: imports logtrain.config: layer 0 from layer -1"),
        (
            "logtrain/data/__init__.py",
            "from .pack import pack",
            ":1: imports logtrain.data.pack: layer 1 from layer -1",
        ),
        # within a layer, entries among them
        ("logtrain/config.py", "from logtrain.text.tokenizer import Tokenizer", ": layer 0 from layer 0"),
        ("logtrain/cpt.py", "import logtrain.export", ":1: imports logtrain.export: layer 8 from layer 8"),
        # inside a function
        (
            "logtrain/hf.py",
            "def f():\n    from logtrain.model.llama import x",
            ":2: imports logtrain.model inside a function",
        ),
        ("logtrain/hf.py", "class A:\n  async def f():\n    import json", ":3: imports json inside a function"),
        ("kernels/logtrain_kernels/rope.py", "f = 1\ndef f(): import math", ":2: imports math inside a function"),
        # packages that only one file may import
        ("logtrain/optim.py", "import logtrain_kernels", ":1: imports logtrain_kernels: only logtrain.model may"),
        ("logtrain/hf.py", "from logtrain_kernels.rope import x", "logtrain_kernels.rope: only logtrain.model may"),
        ("logtrain/data/loader.py", "from logtrain import _pack", "logtrain._pack: only logtrain.data.pack may"),
        ("logtrain/cpt.py", "import logtrain._pack", "logtrain._pack: only logtrain.data.pack may"),
        ("logtrain/trainer.py", "from logtrain.model.hf import load", "logtrain.trainer takes what it made, built"),
        ("logtrain/trainer.py", "from logtrain import tokenizer", "logtrain.trainer takes what it made, built"),
        # kernels
        ("kernels/logtrain_kernels/rope.py", "import numpy", ":1: imports numpy: logtrain_kernels takes torch, triton"),
        (
            "kernels/logtrain_kernels/rope.py",
            "from logtrain import config",
            "imports logtrain.config: logtrain_kernels takes",
        ),
        ("kernels/logtrain_kernels/rms_norm.py", "from .rope import rope", "cycle: logtrain_kernels.r"),
        ("kernels/__init__.py", "", "kernels/__init__.py: shadows"),
        # a file, or an import, that is nowhere
        ("logtrain/utils.py", "", "logtrain/utils.py: has no layer; add utils to LAYERS"),
        (
            "logtrain/data/extra/__init__.py",
            "",
            "logtrain/data/extra/__init__.py: has no layer; add data.extra to LAYERS",
        ),
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

"""What a reader may rely on: files and functions are short; every public name says what it is, and of tensors which
shape and dtype they have.
"""

import ast
import re
from collections.abc import Iterator

import pytest

from tests.support import ROOT

CODE = [path for top in ("logtrain", "kernels", "benchmarks", "launch") for path in (ROOT / top).rglob("*.py")]
FILES = sorted(path for top in ("logtrain", "kernels") for path in (ROOT / top).rglob("*.py"))
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
TENSOR = re.compile(r"(torch\.)?Tensor|np\.ndarray")  # as an annotation; a container of tensors is no such
SHAPED = re.compile(r"\w+_[A-Z]\w*")  # a name that ends with its axes: x_TD
SHAPE = re.compile(r"\[[^\]]*\]|\bscalar|\bany shape")
DTYPE = re.compile(r"\b(fp32|fp64|bf16|float32|float64|bfloat16|float8|u?int(8|16|32|64)|bool|dtypes?)\b")


def public(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]:
    """The functions and classes of a file that others may use; a Triton kernel is its own file's alone."""
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) or node.name.startswith("_"):
            continue
        if not any("jit" in ast.unparse(decorator) for decorator in node.decorator_list):
            yield node


def parts(annotation: ast.expr | None) -> list[str]:
    """The types of an annotation: of a union and of a tuple all."""
    if isinstance(annotation, ast.BinOp):
        return parts(annotation.left) + parts(annotation.right)
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple":
        inner = annotation.slice
        return [part for each in (inner.elts if isinstance(inner, ast.Tuple) else [inner]) for part in parts(each)]
    return [ast.unparse(annotation)] if annotation else []


def problems(source: str) -> list[str]:
    """One line for each name of a file of which it does not say enough."""
    tree = ast.parse(source)
    legend, found = ast.get_docstring(tree) or "", []
    for node in public(tree):
        said = ast.get_docstring(node) or ""
        if not said:
            found.append(f"{node.lineno}: {node.name} has no docstring")
        if isinstance(node, ast.ClassDef):
            continue
        arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        tensors = [a.arg for a in arguments if any(map(TENSOR.fullmatch, parts(a.annotation)))]
        without = [name for name in tensors if not (SHAPED.fullmatch(name) or SHAPE.search(said) or name in legend)]
        found += [f"{node.lineno}: {node.name}: the shape of {name} is nowhere" for name in without]
        if (tensors or any(map(TENSOR.fullmatch, parts(node.returns)))) and not DTYPE.search(said + legend):
            found.append(f"{node.lineno}: {node.name}: no dtype, neither here nor at the top of the file")
    return found


def test_a_file_is_read_in_one_sitting_and_a_function_at_a_glance():
    lines = {path: path.read_text(encoding="utf-8").count("\n") for path in CODE}
    assert [path for path, number in lines.items() if number > 300] == []
    assert [path for path in (ROOT / "tests").rglob("*.py") if path.read_text(encoding="utf-8").count("\n") > 400] == []
    functions = (node for path in CODE for node in ast.walk(ast.parse(path.read_bytes())))
    sizes = [(node.name, node.end_lineno - node.lineno + 1) for node in functions if isinstance(node, FUNCTION)]
    assert len(long := [(name, size) for name, size in sizes if size > 40]) <= 5, long


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_says_what_it_is(path):
    assert problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f(): ...", "1: f has no docstring"),
        ("class A: ...", "1: A has no docstring"),
        ('def f(x: Tensor):\n  """x in fp32."""', "1: f: the shape of x is nowhere"),
        ('def f(x_T: Tensor | None):\n  """Do."""', "1: f: no dtype, neither here nor at the top of the file"),
        ('def f() -> tuple[int, np.ndarray]:\n  """-> [T]."""', "1: f: no dtype, neither here nor at the top"),
    ],
)
def test_what_is_not_said_is_found(source, expected):
    (found,) = problems(source)
    assert found.startswith(expected)


def test_what_is_said_is_enough():
    assert problems('"""x: [T]. All are fp32."""\ndef f(x: torch.Tensor) -> Tensor:\n  """Double it."""') == []
    assert problems('def _f(x: Tensor): ...\ndef g(x_TD: Tensor):\n  """x in bf16."""') == []

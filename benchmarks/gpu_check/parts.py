"""The parts of the check's two commands: programs, each with the seconds that it may take."""

import json
from dataclasses import dataclass
from pathlib import Path

CPT, LORA = "launch/recipes/cpt_8xh100.toml", "launch/recipes/sft_lora_4xh100.toml"
TESTS = ("tests/kernels", "tests/generation/test_generator.py")
LIMIT = 540  # seconds of a command: a minute less than a machine may be lent for
TINY = {  # config.json of the model that stands in where there is no GPU
    "model_type": "llama",
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": False,
}
ONE_OF_EIGHT, ONE_OF_FOUR = "cpt, one rank of 8", "lora, one rank of 4"
LORA_ROWS = ("--loader.documents_per_step", "0", "--loader.rows_per_step", "16")  # four micro-batches of a row


@dataclass(frozen=True)
class Part:
    """A program of the check."""

    name: str
    arguments: tuple[str, ...]
    """of python"""
    expected: int
    """seconds, an estimate for an H200"""
    limit: int
    """seconds after which it is cut off; what it has told until then counts"""


def one_rank(recipe: str, *flags: str) -> tuple[str, ...]:
    return ("-m", "benchmarks.one_rank", recipe, *flags)


def step_parts(output: Path) -> tuple[Part, ...]:
    """The first command: what the machine reaches, and the step of one rank of eight, beside peers."""
    trace = str(output / "trace.json.gz")
    rows = ("--rows", "1", "2", "4", "8", "--recompute", "none", "--links", "370e9")
    whole = one_rank(CPT, "--label", ONE_OF_EIGHT, "--links", "0", "370e9", "--trace", trace)
    return (
        Part("ceilings", ("-m", "benchmarks.gpu_check.ceilings"), 50, 75),
        Part("one rank of eight", whole, 110, 180),
        Part("agreement", ("-m", "benchmarks.one_rank.agreement", CPT, "--layers", "4", "--steps", "3"), 40, 70),
        Part("rows: logtrain", one_rank(CPT, *rows), 60, 80),
        Part("rows: transformers", one_rank(CPT, *rows, "--library", "transformers"), 70, 90),
        Part("rows: liger", one_rank(CPT, *rows, "--library", "liger"), 70, 90),
    )


def kernel_parts() -> tuple[Part, ...]:
    """The second command: right and fast, kernel for kernel; a decode step, a training, a step of LoRA."""
    tests = ("-m", "pytest", "-q", "--maxfail=20", "--numprocesses", "8", "-p", "no:cacheprovider", *TESTS)
    lora = one_rank(LORA, "--label", ONE_OF_FOUR, "--ranks", "4", "--links", "0", *LORA_ROWS)
    return (
        Part("tests of the kernels", tests, 130, 180),
        Part("kernels", ("-m", "benchmarks.gpu_check.kernel_times"), 120, 150),
        Part("decode", ("-m", "benchmarks.gpu_check.decode"), 40, 70),
        Part("curve", ("-m", "benchmarks.gpu_check.curve"), 40, 80),
        Part("one rank of four", lora, 50, 80),
    )


def node_parts() -> tuple[Part, ...]:
    """The third command, on a machine with several GPUs: the recipe itself on all of them."""
    return (Part("node", ("-m", "benchmarks.gpu_check.node"), 240, LIMIT),)


def rehearsal(parts: tuple[Part, ...], folder: Path) -> tuple[Part, ...]:
    """The same parts at a shape that a CPU computes in seconds. Left out: Liger-Kernel, which only GPUs run, and of the
    tests those that would run interpreted, as they do in launch/test.sh. `folder`: for the tiny model.
    """
    (folder / "config.json").write_text(json.dumps(TINY))
    small = ("--model", str(folder), "--dtype", "float32", "--loader.seq_len", "64", "--layers", "0", "--steps", "1")
    cpt = (*small, "--loader.rows_per_step", "32")
    rows = ("--rows", "1", "2")
    changed = {
        "ceilings": ("--seconds", "0.1"),
        "one rank of eight": cpt,
        "agreement": cpt,
        "rows: logtrain": (*cpt, *rows),
        "rows: transformers": (*cpt, *rows),
        "kernels": (),
        "decode": ("--model", str(folder), "--sequences", "1", "2", "--context", "16"),
        "curve": ("--steps", "8"),
        "node": (),
        "one rank of four": (*small, "--loader.rows_per_step", "8"),
    }
    tests = Part("tests of the kernels", ("-m", "pytest", "-q", "tests/kernels/test_attention_backend.py"), 10, 180)
    return tuple(
        tests if part.name == tests.name else Part(part.name, (*part.arguments, *changed[part.name]), 10, part.limit)
        for part in parts
        if part.name in changed or part.name == tests.name
    )

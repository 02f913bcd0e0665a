"""Memory stays flat while a blend is written, whatever the size of the models."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from logtrain.model import hf
from logtrain.model.hf_layout import published_tensors, read_config
from tests.support import ROOT
from tests.support.synthetic import write_model

MIB = 1 << 20
MEASURED = """
import re, sys, torch
from pathlib import Path
from logtrain.model import blending, hf, streaming
blending.PIECE = 1 << 16
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
torch.set_num_threads(1)
*models, small, output = map(Path, sys.argv[1:])
def write(models, folder):
    shape = hf.read_config(models[0])
    sources = [hf.Weights(model, shape) for model in models]
    blended = blending.BlendedWeights(blending.Blend("average"), sources, shape)
    folder.mkdir(parents=True)
    streaming.write_weights(folder, shape, blended, torch.float32)
write([small, small], output / "small")  # what is loaded once, whatever the size
before = peak()
write(models, output / "large")
print(peak() - before)
"""


def write_large(folder: Path, vocab_size: int) -> Path:
    """A model of which nearly all is the embedding."""
    write_model(folder, weights=False, vocab_size=vocab_size, hidden_size=64, tie_word_embeddings=True)
    shape = read_config(folder)
    sizes = {name: [part.shape for part in parts] for name, parts in published_tensors(shape).items()}
    tensors = ((n, torch.full((sum(s[0] for s in parts), *parts[0][1:]), 0.5)) for n, parts in sizes.items())
    hf.save_tensors(folder, shape, tensors, torch.float32)
    return folder


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path):
    """Two models of 41 MB each, of one matrix: what is held at a time is a quarter MiB of each."""
    models = [write_large(tmp_path / f"{i}", 160_000) for i in range(2)]
    size = sum(file.stat().st_size for file in models[0].glob("*.safetensors")) / MIB
    assert size > 39
    command = [
        sys.executable,
        "-c",
        MEASURED,
        *map(str, [*models, write_large(tmp_path / "small", 4_000), tmp_path / "out"]),
    ]
    grown = float(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)
    assert grown < 13, f"{grown:.0f} MiB more for a model of {size:.0f}"
    written = hf.Weights(tmp_path / "out" / "large", read_config(models[0]))
    assert all((piece == 0.5).all() for piece in written.rows("embedding.weight", 0, 160_000))

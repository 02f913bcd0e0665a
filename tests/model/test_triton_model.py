"""Models by the Triton kernels, interpreted: they train as by the references, eager and compiled, whole and sharded."""

import pytest
import torch

import logtrain_kernels as kernels
from logtrain.model import llama as model
from logtrain.model.llama import Block, LlamaConfig, Sequences
from logtrain_kernels import rope_tables
from logtrain_kernels.device import uses_triton
from tests.support.llama import gradients, over_the_whole_row, packed, random_documents, random_model
from tests.support.precision import ON_GPU, values_and_gradients
from tests.support.synthetic import write_data, write_model
from tests.support.training import records, train

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # PyTorch's compiler's

if ON_GPU:
    pytest.skip("for the interpreter; on a GPU tests/kernels run the kernels", allow_module_level=True)


@pytest.fixture(autouse=True)
def interpreted_kernels():
    torch.manual_seed(1309)
    with kernels.interpreted():
        yield


TINY = LlamaConfig(
    vocab_size=131,
    hidden_size=24,
    intermediate_size=37,
    num_layers=2,
    num_heads=3,
    num_kv_heads=1,
    head_dim=8,
    norm_eps=1e-5,
    rope_theta=10_000.0,
    rope_scaling=None,
    max_positions=64,
    tied=False,
)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.slow
def test_a_compiled_block_is_the_eager_one(backend, monkeypatch):
    """Attention is over the whole row: the reference for CPUs splits it on the host."""

    monkeypatch.setattr(model, "attention", over_the_whole_row)
    block = Block(TINY)
    for p in block.parameters():
        torch.nn.init.normal_(p, std=0.3)
    names, weights = zip(*block.named_parameters(), strict=True)
    row = Sequences(rope_tables(torch.arange(7), 8, 100.0, None), None, None)

    def function(x, residual, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), (x, residual, row))

    torch._dynamo.reset()
    compiled = torch.compile(function, backend=backend, fullgraph=True)
    inputs = [torch.randn(7, 24), torch.randn(7, 24), *weights]
    found, expected = (values_and_gradients(f, inputs, torch.float32) for f in (compiled, function))
    for i, (mine, other) in enumerate(zip(found, expected, strict=True)):
        assert (mine - other).abs().max() <= 1e-6 * other.abs().max(), f"result {i}"


ROW = packed(random_documents([6, 1, 4], TINY.vocab_size))


def losses_of_training(recompute):
    llama = random_model(TINY)
    for block in llama.blocks:
        block.recompute = recompute
    optimizer = torch.optim.AdamW(llama.parameters(), lr=5e-2)
    losses = []
    for _ in range(3):
        loss, _ = gradients(llama, ROW)
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def losses_by_references():
    assert not uses_triton(torch.zeros(1)), "made before any test's kernels are interpreted"
    return losses_of_training("none")


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_a_model_trains_as_with_the_references(recompute, losses_by_references):
    losses = losses_of_training(recompute)
    assert losses == pytest.approx(losses_by_references, rel=1e-5)
    assert losses[-1] < 0.9 * losses[0]


def test_the_program_trains_a_sharded_model_as_with_the_references(tmp_path, ranks):
    shape = {"hidden_size": 24, "intermediate_size": 37, "num_attention_heads": 3, "num_key_value_heads": 1}
    shape |= {"num_hidden_layers": 1}
    folder = write_model(tmp_path / "model", vocab_size=131, **shape)
    data = write_data(tmp_path / "data", folder, seq_len=8, lengths={"train": [3, 5, 8, 12], "valid": [4]})
    flags = ["--model", str(folder), "--data", str(data), "--runs", str(tmp_path), "--recompute", "selective"]
    flags += ["--loader.seq_len", "8", "--loader.rows_per_step", "1", "--optim.lr", "0.01"]
    flags += ["--trainer.epochs", "2", "--trainer.max_steps", "3", "--trainer.log_every", "1"]
    assert ranks.run(1, train, [*flags, "--name", "references"]) == [0]  # another process: not interpreted there
    assert train([*flags, "--name", "triton"]) == 0
    expected, found = (records(tmp_path / name) for name in ("references", "triton"))
    assert len(found) == 3
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in found] == pytest.approx([r[key] for r in expected], rel=1e-5)
    assert found[0]["loss"] != found[2]["loss"]

"""Steps are all alike: none asks the device for a value between fetching a batch and clearing the gradients, and a
later one leaves no more in memory than an early one.
"""

import weakref
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from logtrain import cpt
from logtrain.core.config import load
from logtrain.model import llama as model
from logtrain.training.optim import make_optimizer
from logtrain.training.setup import set_up
from logtrain.training.step import TrainStep
from tests.support.synthetic import write_data, write_model

STEPS = 20
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "unique", "masked_select"}


class Watch(TorchDispatchMode):
    """Counts operations by name, and the bytes of the storages that are alive."""

    def __init__(self):
        super().__init__()
        self.operations, self.storages, self.allocated = Counter(), {}, 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        self.operations[operation._schema.name.split("::")[1]] += 1
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.storages:
                    self.storages[key] = storage.nbytes()
                    self.allocated += storage.nbytes()
                    weakref.finalize(storage, self.storages.pop, key, None)
        return out


@pytest.fixture
def stepper(tmp_path, monkeypatch):
    def whole_row(q_TNH, k_TKH, v_TKH, _cu_seqlens, _max_seqlen):  # on a CPU the reference reads lengths on the host
        q, k, v = (x.transpose(0, 1)[None] for x in (q_TNH, k_TKH, v_TKH))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)[0].transpose(0, 1)

    monkeypatch.setattr(model, "attention", whole_row)
    folder = write_model(tmp_path / "model")
    data = write_data(tmp_path / "data", folder, seq_len=32, lengths={"train": [20, 9, 31, 30, 15, 8] * 40})
    flags = ["--model", str(folder), "--data", str(data), "--name", "steady", "--runs", str(tmp_path)]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "4", "--recompute", "selective"]
    run = set_up(load(cpt.CptConfig, flags))
    llama = run.build_model(run.initial_weights())
    optim = run.config.optim
    yield run.data.train, TrainStep(llama, make_optimizer(llama, optim), optim, 1.0, STEPS, run.world)
    run.world.close()


def test_no_step_waits_for_the_device_and_none_leaves_more_in_memory_than_the_one_before(stepper):
    (loader, train_step), held, done = stepper, [], []
    with Watch() as watch:
        for step in range(STEPS):
            before = watch.operations.copy()
            train_step(loader.at(step), step)
            done.append(watch.operations - before)
            held.append(sum(watch.storages.values()))
    assert not WAITS & watch.operations.keys()
    assert sum(done[2].values()) > 500  # it saw the step
    assert all(operations == done[2] for operations in done[3:])
    assert 0 < held[2] < watch.allocated / STEPS
    assert held[3:] == [held[2]] * (STEPS - 3)


def test_the_watch_sees_a_wait():
    with Watch() as watch:
        bool(torch.ones(3).sum() > 1)
    assert WAITS & watch.operations.keys()

"""What a validation counts, held against the model's own logits."""

import json

import torch
import torch.nn.functional as F

from logtrain.core.batch import IGNORE
from logtrain.core.world import World
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.data.shards import Split
from logtrain.training.step import validate
from tests.support.synthetic import read_model, write_data, write_model
from tests.support.training import train

SEQ_LEN, END = 32, 1


@torch.no_grad()
def test_loss_and_ends_are_those_of_the_logits(tmp_path):
    folder = write_model(tmp_path / "model")
    lengths = [3 + i % 20 for i in range(50)]
    data = write_data(tmp_path / "data", folder, seq_len=SEQ_LEN, lengths={"valid": lengths}, context=0.3)
    model, world = read_model(folder), World(on_cpu=True)
    model.head.weight[END] += 0.3 * model.head.weight[7:60].mean(0)  # so that some ends are the likeliest
    model.head.weight[END] *= 4
    config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=2)
    loader = Loader(Split.open(data, "valid"), config, seed=3, pad_id=END)
    summed, targets, ends, predicted = 0.0, 0, 0, 0
    for number in range(loader.steps_per_epoch):
        for batch in loader.at(number).batches:
            logits = model(batch._replace(labels_T=None))
            summed += F.cross_entropy(logits, batch.labels_T, ignore_index=IGNORE, reduction="sum").item()
            targets += int((batch.labels_T != IGNORE).sum())
            is_end = batch.labels_T == END
            ends += int(is_end.sum())
            predicted += int((logits[is_end].argmax(-1) == END).sum())
    assert 0 < predicted < ends  # else this test says little
    found = validate(model, loader, loader.steps_per_epoch, world, END)
    assert (found.targets, found.ends, found.ends_predicted) == (targets, ends, predicted)
    assert abs(found.loss - summed / targets) < 1e-5
    assert validate(model, loader, loader.steps_per_epoch, world)[:4] == (found.loss, targets, 0, 0)
    assert sum(found.targets_R) == targets and abs(sum(found.losses_R) - summed) < 1e-3 * summed
    assert len(found.losses_R) == loader.accumulation * loader.steps_per_epoch
    assert validate(model, loader, loader.steps_per_epoch, world, 319).ends_predicted == 0  # an id that ends nothing
    world.close()


def test_groups_that_are_seen_and_unseen_are_told_apart(tmp_path):
    model = write_model(tmp_path / "model", hidden_size=32, intermediate_size=48, vocab_size=130)
    lengths = {"train": [20] * 30, "valid": [25] * 8, "valid_seen": [30] * 4}
    data = write_data(tmp_path / "data", model, seq_len=SEQ_LEN, lengths=lengths)
    flags = ["--name", "run", "--model", str(model), "--data", str(data), "--runs", str(tmp_path)]
    assert train([*flags, "--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "8"]) == 0
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    targets = [(record["set"], record["valid_targets"]) for record in records if "set" in record]
    assert targets == [("valid", 8 * 24), ("valid_seen", 4 * 29)] * 2

"""How noisy the gradient of replay is with the distribution that it was drawn from, beside without; on a CPU.

    python -m benchmarks.teacher_noise --model DIR --data DIR [--top_k 2 4 16] [--shares 0.5 1] [--documents 200]

Noise is the mean squared distance of a document's gradient a target from that of all documents, beside the same of the
cross-entropy (`trainer.replay_kl` = 0), at the weights of the model: those that wrote the data, or those of a run that
has gone on from them. With it come the cosine of the angle between both mean gradients, which differ by chance alone,
and the share of tokens that are among those that the teacher has told. Data: a folder that `logtrain replay
--teacher_top_k` has written, with at least as many outcomes as `--top_k` asks for. Memory: 4 bytes x documents x
parameters, thus a small model.
"""

import argparse
import json
from collections.abc import Iterator

import torch
from torch import Tensor

import logtrain
from logtrain.core.batch import IGNORE, Batch
from logtrain.data.layout import Layout, token_seeds
from logtrain.data.shards import Split
from logtrain.model.llama import Llama
from logtrain.training.objective import Distillation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a small Llama")
    parser.add_argument("--data", required=True, help="what a model wrote, with a teacher")
    parser.add_argument("--top_k", type=int, nargs="+", default=[2, 4, 16], help="outcomes that are counted in")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.5, 1.0], help="values of trainer.replay_kl")
    parser.add_argument("--documents", type=int, default=200, help="at most so many, the first")
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    args = parser.parse_args()
    for line in measure(args):
        print(json.dumps(line) if args.json else "  ".join(f"{key} {value}" for key, value in line.items()), flush=True)


def measure(args: argparse.Namespace) -> Iterator[dict[str, float]]:
    """A line for each number of outcomes and each share."""
    split = logtrain.open_data(args.data)
    model = logtrain.load(args.model, "cpu").llama.requires_grad_(True)
    batches = [batch_of(split, document) for document in range(min(args.documents, len(split.lengths)))]
    plain_DN = gradients(model, batches, 0.0)
    plain, noise = plain_DN.mean(0), plain_DN.var(0).sum()
    for top_k in args.top_k:
        told = [batch._replace(teacher_TK=first(batch.teacher_TK, top_k)) for batch in batches]
        told = [batch._replace(teacher_log_TK=first(batch.teacher_log_TK, top_k)) for batch in told]
        share_told = sum(map(num_told, told)) / sum(int((batch.labels_T != IGNORE).sum()) for batch in told)
        for share in args.shares:
            gradient_DN = gradients(model, told, share)
            mean = gradient_DN.mean(0)
            yield {
                "top_k": top_k,
                "tokens_told": round(share_told, 3),
                "replay_kl": share,
                "noise_to_cross_entropy": round((gradient_DN.var(0).sum() / noise).item(), 4),
                "cosine_of_means": round(torch.cosine_similarity(mean, plain, dim=0).item(), 3),
            }


def first(x_TK: Tensor | None, top_k: int) -> Tensor:
    """The first outcomes of each token."""
    assert x_TK is not None and x_TK.shape[1] >= top_k, f"the data has no {top_k} outcomes a token"
    return x_TK[:, :top_k].contiguous()


def num_told(batch: Batch) -> int:
    """Labels that are among what the teacher has told."""
    assert batch.labels_T is not None and batch.teacher_TK is not None
    return int((batch.teacher_TK == batch.labels_T[:, None]).any(1).sum())


def batch_of(split: Split, document: int) -> Batch:
    """A document as a micro-batch of its own, with its teacher."""
    length = int(split.lengths[document])
    layout = Layout(length, 0, split.teacher_top_k)
    layout.add_sequence(0, length)
    layout.add_piece(0, split.read(document, 0, length), split.teacher(document, 0, length))
    return layout.batch(token_seeds(0, 0, [document], length))


def gradients(model: Llama, batches: list[Batch], share: float) -> Tensor:
    """fp32 [D, N]: of each document's mean objective, by all parameters."""
    parameters, found = list(model.parameters()), []
    for batch in batches:
        assert batch.labels_T is not None
        summed = Distillation(share)(model, batch)[0] if share else model(batch)
        mean = summed / (batch.labels_T != IGNORE).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(mean, parameters)]))
    return torch.stack(found)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

"""What the cost model knows of a job beside its operations: empty blocks of attention, ranks that differ."""

from dataclasses import replace

import numpy as np
import pytest

from logtrain.core.config import load
from logtrain.data.shards import Split
from logtrain.planning.config import PlanConfig
from logtrain.planning.corpus import read_corpus, with_pairs, with_rows_per_step
from logtrain.planning.cost import Workload, attention_seconds, slowest_of
from logtrain.planning.gpu_file import read_gpu
from logtrain.planning.prediction import make_plan, workload_of
from logtrain.planning.timeline import breakdown, simulate
from tests.support.conversations import write_chat_model
from tests.support.pairs import make_pairs, prepare_pairs
from tests.support.planning import op

GPU = read_gpu("h100-sxm")
ATTENTION = op("attention", shape=(8192, 32, 8, 128))


@pytest.mark.parametrize(("backend", "kernel"), [("torch", "fa2"), ("fa3", "fa3"), ("fa4", "fa3"), ("auto", "fa2")])
def test_the_attention_that_a_job_has(backend, kernel):
    flags = ["--model", "Llama-3.1-8B", "--attention_backend", backend, "--loader.attention", "row"]
    config = load(PlanConfig, flags)
    assert workload_of(config, GPU, read_corpus(config)).kernel == kernel


def test_empty_blocks_of_padded_cu_seqlens_cost_time():
    """8 documents of 1,024 fill 64 blocks; a grid of 40 entries with one of 2,048 tokens has 640."""
    exact = Workload(np.array([1024]))
    padded = replace(exact, entries=40, longest=2048)
    assert padded.empty_blocks(8192) == 40 * 16 - 64
    more = attention_seconds(ATTENTION, GPU, padded) - attention_seconds(ATTENTION, GPU, exact)
    assert more == pytest.approx(32 * 576 * GPU.empty_block)
    assert replace(padded, kernel="fa3").empty_blocks(8192) == 0


def test_the_slowest_of_more_gpus_is_slower():
    drawn = np.random.default_rng(0).normal(size=(20_000, 8)).max(1).mean()
    assert slowest_of(8, GPU) == pytest.approx(GPU.variation * drawn, rel=0.02)
    assert 0 == slowest_of(1, GPU) < slowest_of(8, GPU) < slowest_of(64, GPU)


def test_the_slowest_rank_is_a_part_of_the_step():
    workload = Workload(np.array([1024]), ranks=8, imbalance=0.4)
    ops = [op("product", shape=(8192, 8192, 8192, 1)), ATTENTION]
    total, parts = breakdown(ops, [1], simulate(ops, GPU, workload))
    expected = parts["gemm"] * slowest_of(8, GPU) + parts["attention"] * 0.4
    assert parts["slowest rank"] == pytest.approx(expected)
    assert total == pytest.approx(sum(parts.values()))


def test_micro_batches_differ_as_their_documents_do(tmp_path):
    flags = ["--model", "Llama-3.1-8B", "--data", "/none", "--documents", "20000", "--loader.seq_len", "8192"]
    equal, unequal = (read_corpus(load(PlanConfig, [*flags, "--document_sigma", sigma])) for sigma in ("0", "0.8"))
    longest, imbalance = equal.micro_batches(rows=2, ranks=8, accumulation=1)
    assert (longest, imbalance) == (444, pytest.approx(0, abs=0.01))
    longest, imbalance = unequal.micro_batches(rows=2, ranks=8, accumulation=1)
    assert 1500 < longest < 3000
    assert 0.1 < imbalance < 1.5
    assert unequal.micro_batches(rows=8, ranks=8, accumulation=1)[1] < imbalance
    assert unequal.micro_batches(rows=2, ranks=8, accumulation=8)[1] < imbalance / 2
    assert equal.sequences_R.mean() == pytest.approx(8192 / 444, rel=0.05)


def test_pairs_of_answers_share_rows_and_see_themselves_alone(tmp_path, monkeypatch):
    model = write_chat_model(tmp_path / "model")
    data = prepare_pairs(tmp_path / "data", model, make_pairs(60), monkeypatch, "--seq_len", "128")
    flags = ["--model", str(model), "--data", str(data), "--loader.seq_len", "128", "--gpus", "1"]
    config = with_pairs(load(PlanConfig, [*flags, "--loader.documents_per_step", "12"]))
    assert config.pairs and config.trains_on == "pairs"
    corpus, split = read_corpus(config), Split.open(data, "train")
    assert sorted(corpus.lengths_S) == sorted(split.lengths)  # of answers, not of pairs
    assert corpus.num_pieces == split.num_documents // 2 and corpus.num_tokens == split.lengths.sum()
    assert corpus.squares_R.sum() == (split.lengths.astype(float) ** 2).sum()
    assert corpus.sequences_R.sum() - split.num_documents == corpus.num_rows  # each row has padding
    per_row = corpus.num_pieces / corpus.num_rows
    assert with_rows_per_step(config, corpus).loader.rows_per_step == config.loader.rows_for_documents(per_row, 1)


@pytest.mark.slow
def test_a_plan_of_pairs_traces_their_loss():
    flags = ["--model", "Llama-3.2-1B", "--gpus", "1", "--loader.seq_len", "1024", "--lora.rank", "8"]
    flags += ["--documents", "500", "--document_tokens", "200", "--document_sigma", "0", "--loader.rows_per_step", "2"]
    with pytest.raises(ValueError, match="seq_len = 256: no pair has both answers in a row"):
        make_plan(load(PlanConfig, [*flags, "--pairs", "--loader.seq_len", "256"]))
    texts, pairs = (make_plan(load(PlanConfig, [*flags, *more])) for more in ((), ("--pairs",)))
    assert list(pairs.workload.lengths[:2]) == [199, 199]
    assert (pairs.corpus.num_rows, texts.corpus.num_rows) == (250, 100)  # two pairs of 400 tokens a row; five texts
    assert "segment_reduce" in " ".join(op.name for op in pairs.trace.ops)
    assert "segment_reduce" not in " ".join(op.name for op in texts.trace.ops)
    assert 1 < pairs.executed_flops / texts.executed_flops < 1.3  # the head's logits are made once more

"""The stages of a storm, in an order in which each finds what it reads."""

from collections.abc import Callable
from pathlib import Path

from tests.storm.stage import (
    SEQ_LEN,
    STEPS,
    Result,
    Stage,
    files_of,
    of_benchmark,
    of_dpo,
    of_evaluation,
    of_file,
    of_judgement,
    of_output,
    of_page,
    of_run,
    of_status,
    of_store,
    of_synthesis,
    of_trace,
)

AUTO = ("--resume", "auto")
LORA = ("--lora.rank", "2", "--lora.alpha", "4")
EVALUATE = ("--models", "base=model", "cpt=runs/cpt/export", "sft=runs/sft/adapter", "--data", "test.json")
EVALUATE += ("--format", "alpaca", "--run", "evaluation", "--max_new_tokens", "8", "--perplexity", "own=text.json")
BUDGET = ("--data", "logs=data", "replay=replayed", "--mix.logs", "0.8", "--mix.replay", "0.2", "--valid")
BUDGET += ("wiki=tables", "--roles.wiki", "general", "--trainer.keep_best", "--trainer.forget_budget", "0.004")
REPLAY = ("--model", "model", "--output", "replayed", "--kind", "documents", "--tokens", "200", "--max_tokens", "24")
SYNTHESISE = ("--input", "A=a.log", "B=b.log", "--run", "synthesised", "--base_url", "{server}", "--teacher", "wise")
SYNTHESISE += ("--least_lines", "5", "--most_lines", "9", "--limit", "12", "--concurrency", "2")
JUDGE = ("--run", "evaluation", "--base_url", "{server}", "--model", "wise", "--max_new_tokens", "50")
BENCHMARK = ("--suite", "suite.toml", "--data", ".", "--models", "base=model", "cpt=runs/cpt/export")


def training(name: str, *more: str) -> tuple[str, ...]:
    fixed = ("--name", name, "--runs", "runs", "--model", "model", "--optim.lr", "1e-3")
    loader = ("--loader.seq_len", str(SEQ_LEN), "--loader.rows_per_step", "2", "--trainer.max_steps", str(STEPS))
    every = ("--trainer.epochs", "9", "--trainer.log_every", "1", "--trainer.save_every", "2", "--trainer.keep", "2")
    return (*fixed, *loader, *every, "--trainer.valid_every", "4", *more)


def preparing(source: str, output: str, *more: str) -> tuple[str, ...]:
    fixed = ("--tokenizer", "model", "--output", output, "--seq_len", str(SEQ_LEN))
    return ("--input", *source.split(), *fixed, "--valid_fraction", "0.2", "--workers", "1", *more)


def trained(name: str, entry: str, *more: str, result: Callable[[Path], Result] = of_run, **facts) -> Stage:
    """A training of its own folder of runs."""
    leaves = f"runs/{more[0]}"
    return Stage(name, f"logtrain.{entry}", training(*more), leaves, result, AUTO, **facts)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("prepare", "logtrain.prepare", preparing("text.json", "data"), "data", files_of),
        Stage(
            *("prepare chats", "logtrain.prepare", preparing("chats.json", "chats", "--format", "alpaca")),
            *("chats", files_of),
        ),
        Stage(
            *("prepare pairs", "logtrain.prepare", preparing("pairs.json", "pairs", "--format", "dpo")),
            *("pairs", files_of),
        ),
        Stage(
            *("prepare tables", "logtrain.prepare", preparing("rows.parquet rows.csv.gz logs.zip", "tables")),
            *("tables", files_of),
        ),
        trained("cpt", "cpt", "cpt", "--data", "data"),
        trained("cpt on 2 ranks", "cpt", "two", "--data", "data", "--parallel.timeout", "8", ranks=2),
        trained("sft", "sft", "sft", "--data", "chats", *LORA),
        trained("dpo", "dpo", "dpo", "--data", "pairs", *LORA, result=of_dpo, beside=("pairs/reference-*",)),
        Stage(
            *("replay", "logtrain.replay", (*REPLAY, "--seq_len", str(SEQ_LEN), "--max_sequences", "4")),
            *("replayed", files_of),
            beside=("replayed.samples",),
            half="replayed.samples",
        ),
        trained("budget", "cpt", "budget", *BUDGET),
        Stage(
            *("export", "logtrain.export", ("--run", "runs/cpt", "--output", "exported"), "exported", files_of),
            beside=("exported.json",),
        ),
        Stage(
            *("merge", "logtrain.merge", ("--model", "model", "--adapter", "runs/sft/adapter", "--output", "merged")),
            *("merged", files_of),
        ),
        Stage(
            *("blend", "logtrain.blend", ("runs/cpt:step-000008", "runs/cpt/export", "--output", "blended")),
            *("blended", files_of),
        ),
        Stage("evaluate", "logtrain.evaluate", EVALUATE, "evaluation", of_evaluation, AUTO),
        Stage("judge", "logtrain.judge", JUDGE, "evaluation/judge", of_judgement, beside=("evaluation/judge.json",)),
        Stage("benchmark", "logtrain.benchmark", (*BENCHMARK, "--run", "benchmark"), "benchmark", of_benchmark, AUTO),
        Stage("synthesise", "logtrain.synthesise", SYNTHESISE, "synthesised", of_synthesis, AUTO),
        Stage("hub push", "logtrain.hub", ("push", "logs", "data", "--store", "store"), "store", of_store),
        Stage("hub pull", "logtrain.hub", ("pull", "logs", "pulled", "--store", "store"), "pulled", files_of),
        Stage(
            *("review", "logtrain.review", ("reviewed.json", "--export", "kept.jsonl"), "kept.jsonl", of_file),
            tells="not count",
        ),
        Stage(
            *("report", "logtrain.report", ("runs/cpt", "--output", "page.html", "--no_pictures"), "page.html"),
            of_page,
            tells="cpt: ",  # before what could not be read
        ),
        Stage("status", "logtrain.status", ("runs/cpt",), "none", of_status, tells="problem: "),
        Stage("trace", "logtrain.trace", ("runs/cpt", "--step", "5"), "none", of_trace),
        Stage(
            *("lineage", "logtrain.lineage", ("merged", "--store", "store"), "none", of_output),
            tells="has no checksums.json",
        ),
    )
}

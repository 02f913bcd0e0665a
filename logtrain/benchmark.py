"""Lets models answer a suite of log tasks: one table, beside what others have published.

    logtrain benchmark --suite launch/suites/logs.toml --data DIR --models base=DIR sft=DIR --run runs/benchmark

Under `launch/run.sh benchmark ...` every rank has a copy of each model and answers its share. The run's folder then
holds benchmark.html and benchmark.json, and a folder for each set with all that `logtrain evaluate` writes. --resume
auto goes on.
"""

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.still import Still
from logtrain.evaluation.config import BenchmarkConfig


def main(argv: list[str]) -> int:
    """Benchmark as the flags say; -> the exit status."""
    config = load(BenchmarkConfig, argv)
    # After the flags: --help and a mistyped one need neither torch nor jinja.
    import dataclasses
    from pathlib import Path

    from logtrain.evaluation.benchmark import lines, make_benchmark, write_benchmark
    from logtrain.evaluation.evaluating import evaluate, open_models
    from logtrain.evaluation.question_set import read_question_set
    from logtrain.evaluation.run import join_world
    from logtrain.evaluation.suite import config_of, read_suite

    suite = read_suite(Path(config.suite))
    configs = {facts["name"]: config_of(config, facts) for facts in suite["set"]}
    for each in configs.values():
        read_question_set(each)  # so that the last set's mistakes are found before the first is answered
    with Still():
        world, models, results = join_world(config), open_models(config), {}
        for name, each in configs.items():
            is_begun = config.resume == "auto" and Path(each.run).exists()
            each = dataclasses.replace(each, resume="auto" if is_begun else "none")
            results[name] = evaluate(each, models, world)
    if world.is_main:
        benchmark = make_benchmark(suite, config.model_paths, results)
        write_benchmark(Path(config.run), benchmark)
        print("\n".join(lines(benchmark)))
        print(f"\n{config.run}/benchmark.html: the table beside published figures")
    world.close()
    return 0


if __name__ == "__main__":
    run(main)

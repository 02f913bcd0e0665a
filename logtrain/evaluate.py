"""Lets models answer a test set: which is better, by how much, and whether that is more than chance.

    logtrain evaluate --models base=DIR sft=DIR --data test.json --format sharegpt --run runs/evaluation

Under `launch/run.sh evaluate ...` every rank has a copy of the model and answers its share. The run's folder holds:

    samples.jsonl    an object for each answer: hash and length of the prompt, reference, output, finish reason, scores
    scores.json      every score and every difference between two models, with its 95% interval (results.py)
    compare.html     a page of the scores, with the answers that differ most; compare.png is its chart
    config.toml      the settings
    answers/         the answers as they came, with which --resume auto goes on
"""

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.core.still import Still
from logtrain.evaluation.config import EvaluateConfig


def main(argv: list[str]) -> int:
    """Evaluate as the flags say; -> the exit status."""
    config = load(EvaluateConfig, argv)
    # After the flags: --help and a mistyped one need neither torch nor matplotlib.
    from logtrain.evaluation.evaluating import evaluate, open_models
    from logtrain.evaluation.run import join_world
    from logtrain.evaluation.screen import print_scores

    with Still():
        world = join_world(config)
        result = evaluate(config, open_models(config), world)
    if result:
        print_scores(result)
        print(f"\n{config.run}/compare.html: the comparison, with answers side by side; its chart: compare.png")
    world.close()
    return 0


if __name__ == "__main__":
    run(main)

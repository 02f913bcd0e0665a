"""Finds out which model answers a test set better, by how much, and whether that is more than chance.

    python -m logtrain.evaluate --models base=DIR sft=DIR --data test.json --format sharegpt --run runs/evaluation

Under torchrun every rank has a copy of the model and answers its share. The run's folder then holds:

    samples.jsonl    an object for each answer: hash and length of the prompt, reference, output, finish reason, scores
    scores.json      every score and every difference between two models, with its 95% interval (results.py)
    compare.html     a page of the scores, with the answers that differ most; compare.png is its chart
    config.toml      the settings
    answers/         the answers as they came, with which --resume auto goes on
"""

from logtrain.core.config import load
from logtrain.core.entry import run
from logtrain.evaluation.config import EvaluateConfig


def main(argv: list[str]) -> int:
    """Evaluate as the flags say; -> the exit status."""
    config = load(EvaluateConfig, argv)
    # After the flags: --help and a mistyped one need neither torch nor matplotlib.
    from logtrain.evaluation.answering import answer_questions, answered_by, answers_folder
    from logtrain.evaluation.candidate import Candidate, check_recorded_answers, open_model, too_long_for_any
    from logtrain.evaluation.comparison import compare
    from logtrain.evaluation.page import write_page
    from logtrain.evaluation.question_set import read_question_set
    from logtrain.evaluation.results import make_result, write_result
    from logtrain.evaluation.run import join_world, open_texts, run_folder
    from logtrain.evaluation.samples import read_samples, write_samples
    from logtrain.evaluation.screen import print_scores

    world = join_world(config)
    texts = open_texts(config)
    models = [open_model(name, path, config) for name, path in config.model_paths.items()]
    question_set = read_question_set(config)
    candidates = [Candidate(model, question_set) for model in models]
    answers = answers_folder(config)
    if config.resume == "auto":
        check_recorded_answers(candidates, answers)
    question_set = question_set.without(too_long_for_any(candidates, config))

    with run_folder(config, world) as folder:
        perplexities = {
            candidate.name: answer_questions(config, candidate, question_set.numbers, texts, world)
            for candidate in candidates
        }
        if world.is_main:
            samples = {model.name: read_samples(answers, model.name, question_set) for model in models}
            write_samples(folder / "samples.jsonl", samples)
            answerers = answered_by(config, config.model_paths, world)
            result = make_result(question_set, compare(samples), config.model_paths, perplexities, answerers)
            write_result(folder / "scores.json", result)
            write_page(folder, result, samples)
            print_scores(result)
            print(f"\n{folder / 'compare.html'}: the comparison, with answers side by side; its chart: compare.png")
    world.close()
    return 0


if __name__ == "__main__":
    run(main)

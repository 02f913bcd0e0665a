"""An evaluation in order: questions, candidates, answers, scores, and what the run's folder then holds."""

from pathlib import Path

from logtrain.core.world import World
from logtrain.evaluation.answering import answer_questions, answered_by, answers_folder
from logtrain.evaluation.candidate import Candidate, ModelFiles, check_recorded_answers, open_model, too_long_for_any
from logtrain.evaluation.comparison import compare
from logtrain.evaluation.config import EvaluateConfig, ModelsConfig
from logtrain.evaluation.page import write_page
from logtrain.evaluation.question_set import read_question_set
from logtrain.evaluation.results import Result, make_result, write_result
from logtrain.evaluation.run import open_texts, run_folder
from logtrain.evaluation.samples import read_samples, write_samples


def open_models(config: ModelsConfig) -> list[ModelFiles]:
    """The files of the config's models, opened and checked. Raises ValueError for files that are missing or wrong."""
    return [open_model(name, path, config) for name, path in config.model_paths.items()]


def evaluate(config: EvaluateConfig, models: list[ModelFiles], world: World) -> Result | None:
    """Let models answer a test set and write the run's folder; -> the result on rank 0, None on others. Every rank
    calls this. Raises ValueError for questions, answers and folders that do not do.
    """
    texts = open_texts(config)
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
        if not world.is_main:
            return None
        samples = {model.name: read_samples(answers, model.name, question_set) for model in models}
        write_samples(Path(folder) / "samples.jsonl", samples)
        answerers = answered_by(config, config.model_paths, world)
        result = make_result(question_set, compare(samples), config.model_paths, perplexities, answerers)
        write_result(folder / "scores.json", result)
        write_page(folder, result, samples)
        return result

"""Makes training data of raw logs by a larger model, the teacher.

    logtrain synthesise --input HDFS=hdfs.log BGL=bgl.log --base_url http://localhost:8000/v1 --teacher NAME --run DIR

The parts are in synthesis/: chunks.py cuts logs, prompts.py asks, run.py sends and counts, checking.py looks at
answers, rows.py writes. The run's folder then holds:

    train.jsonl, valid.jsonl, valid_systems.jsonl    rows for logtrain prepare
    rejected.jsonl, report.json, manifest.json       what was left out, counts and costs, where all of it comes from
    chunks.jsonl, answers.jsonl, config.toml         what was asked about, every answer: --resume auto goes on with them
"""

from pathlib import Path

from logtrain.core.config import load
from logtrain.core.entry import INTERRUPTED, run
from logtrain.core.stop import StopSignal, stoppable
from logtrain.synthesis.config import MAY_CHANGE, SynthesiseConfig


def main(argv: list[str]) -> int:
    """Synthesise as the flags say; -> the exit status."""
    config = load(SynthesiseConfig, argv)
    return stoppable(lambda stop: synthesise(config, stop))


def synthesise(config: SynthesiseConfig, stop: StopSignal) -> int:
    """The whole run; -> the exit status."""
    # After the flags: --help and a mistyped one need none of this.
    from logtrain.core.run_folder import enter_run_folder
    from logtrain.core.still import Still
    from logtrain.synthesis.chunks import kept_chunks
    from logtrain.synthesis.journal import Journal, read_journal
    from logtrain.synthesis.prompts import read_prompts
    from logtrain.synthesis.rows import report, results, write_results
    from logtrain.synthesis.run import Run, make_jobs
    from logtrain.synthesis.screen import print_report
    from logtrain.synthesis.tally import Tally
    from logtrain.synthesis.teacher import RemoteTeacher

    prompts, folder = read_prompts(config), Path(config.run)
    with enter_run_folder(folder, config, config.resume == "auto", MAY_CHANGE, flag="--run"):
        if config.model:
            from logtrain.synthesis.local_teacher import LocalTeacher

            with Still():
                teacher = LocalTeacher(config)
        else:
            teacher = RemoteTeacher(config)
        chunks = kept_chunks(config, folder, prompts.sha256)
        jobs, tally = make_jobs(config, prompts, chunks.chunks), Tally(config)
        for event in read_journal(folder, len(jobs)):
            tally.apply(event)
        tally.resumed()
        with Journal(folder) as journal:
            work = Run(config, prompts, jobs, journal, tally)
            with stop.promising(lambda: "taking what is under way, then ending; --resume auto goes on"):
                work.work(teacher, lambda: stop.asked)
        found = results(config, folder, jobs)
        told = report(jobs, chunks, tally, found, work.ended)
        write_results(folder, config, prompts, chunks, teacher.facts(), found, told)
    print_report(told, folder)
    if work.failure:
        raise ValueError(work.failure)
    return INTERRUPTED if stop.asked else 0


if __name__ == "__main__":
    run(main)

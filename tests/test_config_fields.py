"""Every field of a config does something: it changes what a small run or a plan leaves, or a named test shows it."""

import ast
import importlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from logtrain.__main__ import commands, module_of
from logtrain.core.config import fields_of, load
from logtrain.planning.config import PlanConfig
from logtrain.planning.prediction import make_plan
from tests.support import ROOT, chats
from tests.support.evaluation import ROWS, evaluated, flags, write_chat_model
from tests.support.synthetic import write_data, write_model
from tests.support.training import train

pytestmark = pytest.mark.slow

TIMES = rb"tokens_per_second\w*|step_seconds|data_seconds|eta_seconds|peak_memory_gib|goodput|device_hours|time"
CLOCKS = re.compile(rb'"(' + TIMES + rb')":[^,}]*')
OF_CLOCKS = re.compile(rb'"(records_crc32|sha256|run)":[^,}]*')  # checksums of figures of the clock; the run's identity
FP8 = ["--precision", "fp8"]
LORA = ["--lora.rank", "2", "--lora.dropout", "0.2"]

# The field -> flags that change it, and what both runs have besides.
TRAINING: dict[str, tuple[list[str], list[str]]] = {
    "model": (["--model", "{other_model}"], []),
    "data": (["--data", "{other_data}"], []),
    "valid": (["--valid", "other={other_data}"], []),
    "init": (["--init", "random"], []),
    "seed": (["--seed", "7"], []),
    "dtype": (["--dtype", "bfloat16"], []),
    "export_dtype": (["--export_dtype", "bfloat16"], []),
    "precision": (["--precision", "fp8"], []),
    "fp8.recipe": (["--fp8.recipe", "rowwise"], FP8),
    "fp8.weight_gradient": (["--fp8.weight_gradient", "bf16"], FP8),
    "fp8.keep": (["--fp8.keep", "1"], FP8),
    "lora.rank": (["--lora.rank", "3"], LORA),
    "lora.alpha": (["--lora.alpha", "3"], LORA),
    "lora.dropout": (["--lora.dropout", "0.5"], LORA),
    "lora.targets": (["--lora.targets", "q_proj"], LORA),
    "loader.rows_per_step": (["--loader.rows_per_step", "3"], []),
    "loader.documents_per_step": (["--loader.documents_per_step", "9"], []),
    "loader.attention": (["--loader.attention", "row"], []),
    "optim.lr": (["--optim.lr", "2e-2"], []),
    "optim.schedule": (["--optim.schedule", "linear"], []),
    "optim.decay_ratio": (["--optim.decay_ratio", "0.5"], ["--optim.schedule", "wsd"]),
    "optim.warmup_ratio": (["--optim.warmup_ratio", "0.9"], []),
    "optim.warmup_steps": (["--optim.warmup_steps", "3"], []),
    "optim.min_lr_ratio": (["--optim.min_lr_ratio", "0.5"], []),
    "optim.beta1": (["--optim.beta1", "0.5"], []),
    "optim.beta2": (["--optim.beta2", "0.5"], []),
    "optim.eps": (["--optim.eps", "1e-3"], []),
    "optim.weight_decay": (["--optim.weight_decay", "0.5"], []),
    "trainer.epochs": (["--trainer.epochs", "2"], ["--trainer.max_steps", "0"]),
    "trainer.max_steps": (["--trainer.max_steps", "3"], []),
    "trainer.max_grad_norm": (["--trainer.max_grad_norm", "0.1"], []),
    "trainer.log_every": (["--trainer.log_every", "3"], []),
    "trainer.valid_every": (["--trainer.valid_every", "2"], []),
    "trainer.save_every": (["--trainer.save_every", "3"], ["--trainer.keep", "0"]),
    "trainer.keep": (["--trainer.keep", "1"], ["--trainer.save_every", "1"]),
    "trainer.stop_after": (["--trainer.stop_after", "3"], []),
    "parallel.reduce_dtype": (["--parallel.reduce_dtype", "bfloat16"], []),
}

# The field -> flags that change a plan's result.
PLANNED: dict[str, list[str]] = {
    "trainer.replay_kl": ["--trainer.replay_kl", "1"],
    "attention_backend": ["--attention_backend", "fa3"],
    "parallel.symmetric_memory": ["--parallel.symmetric_memory"],
    "gpus": ["--gpus", "2"],
    "gpu": ["--gpu", "h200"],
    "price": ["--price", "1"],
    "documents": ["--documents", "300"],
    "document_tokens": ["--document_tokens", "30"],
    "document_sigma": ["--document_sigma", "0.1"],
}

# The field -> flags that change an evaluation's answers or scores, and what both have besides.
SAMPLED = ["--sampling.temperature", "1"]
EVALUATED: dict[str, tuple[list[str], list[str]]] = {
    "max_new_tokens": (["--max_new_tokens", "3"], []),
    "limit": (["--limit", "3"], []),
    "task_column": (["--task_column", "kind"], []),
    "template": (["--template", "{template}"], []),
    "date": (["--date", "2025-01-01"], ["--template", "{template}"]),
    "perplexity": (["--perplexity", "logs={texts}"], []),
    "sampling.temperature": (SAMPLED, []),
    "sampling.seed": (["--sampling.seed", "3"], SAMPLED),
    "sampling.top_k": (["--sampling.top_k", "2"], SAMPLED),
    "sampling.top_p": (["--sampling.top_p", "0.1"], SAMPLED),
    "sampling.repetition_penalty": (["--sampling.repetition_penalty", "2"], SAMPLED),
    "sampling.presence_penalty": (["--sampling.presence_penalty", "2"], SAMPLED),
    "sampling.frequency_penalty": (["--sampling.frequency_penalty", "2"], SAMPLED),
    "sampling.min_p": (["--sampling.min_p", "0.5"], SAMPLED),
}

# The field -> a test that shows what it does.
BEST = "entries/sft/test_sft_resume.py"
NAMED: dict[str, str] = {
    "mix": "entries/test_mixture.py::test_losses_and_tokens_of_every_source_are_told_and_add_up",
    "name": "training/test_resume.py::test_a_run_is_not_overwritten",
    "runs": "core/test_run_folder.py::test_anything_in_it_makes_a_folder_a_run",
    "resume": "training/test_resume.py::test_stopped_and_resumed_is_bit_identical",
    "recompute": "model/test_llama.py::test_selective_recomputation_repeats_the_elementwise_work_alone",
    "compile": "training/test_distributed.py::test_every_spread_gives_the_plain_loops_run",
    "loader.seq_len": "entries/test_errors.py::test_a_mistake_is_one_line_and_leaves_nothing",
    "loader.rows_per_batch": "data/test_loader.py::test_a_steps_rows_do_not_depend_on_ranks_or_micro_batches",
    "parallel.shard_ranks": "entries/sft/test_sft.py::*",
    "parallel.reshard_after_forward": "planning/test_trace.py::test_real_ranks",
    "parallel.prefetch": "training/test_distributed.py::test_every_spread_gives_the_plain_loops_run",
    "parallel.timeout": "training/test_watchdog.py::test_a_stopped_rank",
    "trainer.max_skipped": "entries/test_errors.py::test_diverged_training_stops_and_is_not_saved",
    "trainer.keep_best": f"{BEST}::test_the_best_checkpoint_stays_and_is_exported_also_after_a_resume",
    "trainer.save_last": f"{BEST}::test_a_run_may_leave_its_adapters_and_nothing_else_of_its_last_step",
    "export_merged": f"{BEST}::test_a_run_may_leave_its_adapters_and_nothing_else_of_its_last_step",
    "trainer.patience": f"{BEST}::test_patience_ends_a_run_that_gets_no_better",
    "dpo.beta": "entries/test_dpo.py::test_smoothing_changes_the_loss_and_beta_the_rewards",
    "dpo.label_smoothing": "entries/test_dpo.py::test_smoothing_changes_the_loss_and_beta_the_rewards",
    "roles": "training/test_forgetting.py::*",
    "trainer.forget_budget": "training/test_forgetting.py::test_the_best_step_is_within_the_budget_and_told",
    "trainer.replay_source": "training/test_forgetting.py::*",
    "trainer.replay_bounds": "training/test_forgetting.py::test_the_share_follows_from_the_recorded_rises",
    "trainer.replay_kl": "training/test_distillation.py::test_a_steps_gradients_are_those_of_whole_logits_on_any_ranks",
    "rehearse": "readiness/test_rehearsal.py::*",
    "show": "training/test_facts.py::*",
    "track": "observe/test_trackers.py::*",
    "prometheus": "observe/test_trackers.py::*",
    "health.spike": "training/test_watch.py::*",
    "health.straggler": "training/test_watch.py::*",
    "health.data_wait": "observe/test_health.py::test_waiting_for_data_and_a_disk_that_fills",
    "health.disk": "observe/test_health.py::test_waiting_for_data_and_a_disk_that_fills",
    "search": "entries/test_plan.py::*",
    "pairs": "planning/test_cost.py::test_a_plan_of_pairs_traces_their_loss",
    "json": "entries/test_plan.py::*",
    "picture": "entries/test_plan.py::*",
    "prepare.input": "entries/test_prepare.py::*",
    "prepare.tokenizer": "entries/test_prepare.py::*",
    "prepare.output": "entries/test_prepare.py::*",
    "prepare.format": "entries/test_prepare_chat.py::*",
    "prepare.seq_len": "entries/test_prepare.py::*",
    "prepare.valid_fraction": "entries/test_prepare.py::*",
    "prepare.split_by": "entries/test_prepare_groups.py::*",
    "prepare.seed": "entries/test_prepare.py::*",
    "prepare.train_on": "entries/test_prepare_chat.py::*",
    "prepare.too_long": "data/test_encode_chat.py::*",
    "prepare.template": "entries/test_prepare_chat.py::*",
    "prepare.date": "entries/test_prepare_chat.py::*",
    "prepare.show": "entries/test_prepare_chat.py::*",
    "prepare.document_end": "entries/test_prepare.py::*",
    "prepare.text_chars": "entries/test_prepare.py::*",
    "prepare.ignore_columns": "entries/test_prepare_again.py::*",
    "prepare.max_row_mb": "entries/test_prepare_hostile.py::test_a_row_that_is_too_long",
    "prepare.max_lost_chars": "entries/test_prepare_hostile.py::test_characters_that_a_tokenizer_loses",
    "prepare.max_bad_rows": "entries/test_prepare.py::*",
    "prepare.bad_rows": "entries/test_prepare.py::test_too_many_bad_rows_stop_the_run",
    "prepare.records": "entries/test_prepare_records.py::*",
    "prepare.max_per_template": "entries/test_prepare_records.py::*",
    "prepare.mask_values": "entries/test_prepare_records.py::*",
    "prepare.columns": "entries/test_prepare_columns.py::*",
    "prepare.shard_tokens": "entries/test_prepare.py::*",
    "prepare.workers": "entries/test_prepare.py::*",
    "evaluate.stop": "entries/test_evaluate.py::*",
    "evaluate.models": "entries/test_evaluate.py::*",
    "evaluate.data": "entries/test_evaluate.py::*",
    "evaluate.format": "entries/test_evaluate.py::*",
    "evaluate.run": "entries/test_evaluate_resume.py::*",
    "evaluate.resume": "entries/test_evaluate_resume.py::*",
    "evaluate.answers": "entries/test_evaluate.py::*",
    "evaluate.ignore_columns": "data/test_conversations.py::*",
    **{
        f"evaluate.{field}": "entries/test_evaluate_tasks.py::*"
        for field in ("columns", "task", "kind_column", "labels", "prepared", "split_by", "unseen")
    },
    "evaluate.max_bad_rows": "entries/test_evaluate.py::*",
    "evaluate.too_long": "entries/test_evaluate.py::*",
    "evaluate.backend": "entries/test_evaluate_server.py::*",
    "evaluate.base_url": "entries/test_evaluate_server.py::*",
    "evaluate.check_server": "entries/test_evaluate_server.py::test_a_server_with_another_template_is_refused",
    "evaluate.prompts": "entries/test_evaluate_server.py::*",
    "evaluate.concurrency": "entries/test_evaluate_server.py::*",
    "evaluate.memory": "entries/test_evaluate_wrong.py::*",
    "evaluate.max_sequences": "generation/test_generator.py::*",
    "synthesise.input": "synthesis/test_synthesise.py::test_a_mistake_is_one_line",
    "synthesise.run": "synthesis/test_synthesise.py::test_chats_are_rows_that_prepare_reads",
    "synthesise.resume": "synthesis/test_run.py::test_killed_ten_times_and_resumed_no_row_is_lost_or_doubled",
    "synthesise.rows": "synthesis/test_synthesise.py::test_chats_are_rows_that_prepare_reads",
    "synthesise.prompts": "synthesis/test_synthesise.py::test_own_prompts_and_what_the_manifest_says",
    "synthesise.tasks": "synthesis/test_synthesise.py::test_json_is_asked_for_as_the_mode_says",
    "synthesise.limit": "synthesis/test_synthesise.py::test_json_is_asked_for_as_the_mode_says",
    "synthesise.seed": "synthesis/test_chunks.py::test_systems_and_times_are_held_out",
    "synthesise.least_lines": "synthesis/test_chunks.py::test_near_twins_are_left_out_whatever_their_values",
    "synthesise.most_lines": "synthesis/test_chunks.py::test_near_twins_are_left_out_whatever_their_values",
    "synthesise.most_chars": "synthesis/test_chunks.py::test_a_record_stays_whole_and_too_long_a_one_is_left_out",
    "synthesise.chunks_per_system": "synthesis/test_chunks.py::test_chunks_of_a_system_are_spread_over_its_time",
    "synthesise.valid_systems": "synthesis/test_chunks.py::test_systems_and_times_are_held_out",
    "synthesise.valid_fraction": "synthesis/test_chunks.py::test_systems_and_times_are_held_out",
    "synthesise.base_url": "synthesis/test_synthesise.py::*",
    "synthesise.teacher": "synthesis/test_synthesise.py::test_own_prompts_and_what_the_manifest_says",
    "synthesise.model": "synthesis/test_synthesise.py::test_a_model_of_a_folder_teaches",
    "synthesise.max_new_tokens": "synthesis/test_synthesise.py::test_own_prompts_and_what_the_manifest_says",
    "synthesise.json_mode": "synthesis/test_synthesise.py::test_json_is_asked_for_as_the_mode_says",
    "synthesise.concurrency": "synthesis/test_run.py::test_a_teacher_that_errs_is_counted_exactly",
    "synthesise.timeout": "synthesis/test_run.py::test_a_teacher_that_errs_is_counted_exactly",
    "synthesise.tries": "synthesis/test_run.py::test_a_teacher_that_errs_is_counted_exactly",
    "synthesise.template": "synthesis/test_synthesise.py::test_a_model_of_a_folder_teaches",
    "synthesise.memory": "synthesis/test_synthesise.py::test_a_model_of_a_folder_teaches",
    "synthesise.attempts": "synthesis/test_run.py::test_rejected_answers_are_asked_for_again_with_another_seed",
    "synthesise.language": "synthesis/test_checking.py::test_grounding_and_language_are_settings",
    "synthesise.grounded": "synthesis/test_checking.py::test_grounding_and_language_are_settings",
    "synthesise.budget_tokens": "synthesis/test_run.py::test_a_budget_is_never_exceeded_and_a_greater_one_goes_on",
    "synthesise.budget_dollars": "synthesis/test_run.py::test_a_budget_is_never_exceeded_and_a_greater_one_goes_on",
    "synthesise.price_input": "synthesis/test_run.py::test_a_budget_is_never_exceeded_and_a_greater_one_goes_on",
    "synthesise.price_output": "synthesis/test_run.py::test_a_budget_is_never_exceeded_and_a_greater_one_goes_on",
    "synthesise.sampling.temperature": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.top_k": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.top_p": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.repetition_penalty": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.presence_penalty": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.frequency_penalty": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.min_p": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
    "synthesise.sampling.seed": "synthesis/test_synthesise.py::test_settings_of_draws_are_sent",
}


SMALL = {  # commands of few fields: the files that hold their tests
    "chat": ["entries/test_chat.py", "conversation/*.py", "generation/test_load.py"],
    "serve": ["entries/test_serve.py", "serving/*.py"],
    "blend": ["entries/test_blend.py", "entries/test_blend_choice.py"],
    "judge": ["entries/test_judge.py", "evaluation/test_judgement.py", "generation/test_*.py", "test_config_fields.py"],
    "benchmark": ["entries/test_benchmark.py", "entries/test_evaluate*.py", "test_config_fields.py"],
    "merge": ["entries/test_merge.py"],
    "page": ["entries/test_page.py"],
    "review": ["serving/test_reviewing.py"],
    "export": ["training/test_checkpoint.py"],
    "report": ["entries/test_report.py"],
    "trace": ["entries/test_trace.py"],
    "replay": ["entries/test_replay.py", "generation/test_self_replay.py"],
    "status": ["entries/test_report.py"],
    "import": ["entries/test_import.py"],
    "doctor": ["entries/test_doctor.py"],
    "hub": ["entries/test_hub.py"],
    "lineage": ["entries/test_hub.py"],
}


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("fields")
    shape = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 130, "num_attention_heads": 4}
    model = write_model(folder / "model", **shape)
    other = shutil.copytree(model, folder / "other_model")
    write_model(other, **shape, initializer_range=0.05)
    lengths = np.random.default_rng(3).integers(4, 32, 40).tolist()
    data = {
        seed: write_data(
            folder / f"data-{seed}", model, seq_len=32, lengths={"train": lengths, "valid": lengths[:4]}, seed=seed
        )
        for seed in (0, 1)
    }
    flags = ["--name", "run", "--model", str(model), "--data", str(data[0]), "--optim.lr", "1e-2"]
    flags += ["--loader.seq_len", "32", "--loader.rows_per_step", "2", "--trainer.log_every", "1"]
    flags += ["--trainer.max_steps", "5"]
    return SimpleNamespace(folder=folder, flags=flags, names={"other_model": other, "other_data": data[1]}, left={})


def left_by(run: Path) -> dict[str, bytes]:
    """What a run leaves, without times, sizes, and the config itself."""
    files = {str(path.relative_to(run)): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    skipped = ("config.toml", "log.txt", "goodput.json", "events.jsonl", "system.jsonl", "report.html")
    found = {name: CLOCKS.sub(b"", content) for name, content in files.items() if name not in skipped}
    of_clocks = ("checkpoint.json", "metrics.jsonl", "export.json", "adapter.json", "forgetting.json")
    return {name: OF_CLOCKS.sub(b"", text) if name.endswith(of_clocks) else text for name, text in found.items()}


def run_once(case: SimpleNamespace, flags: list[str]) -> dict[str, bytes]:
    key = " ".join(flags)
    if key not in case.left:
        runs = case.folder / f"runs-{len(case.left)}"
        train([*case.flags, *flags, "--runs", str(runs)])
        case.left[key] = left_by(runs / "run")
        shutil.rmtree(runs)
    return case.left[key]


@pytest.mark.parametrize("field", TRAINING)
def test_a_field_changes_what_a_run_leaves(case, field):
    change, both = TRAINING[field]
    change = [flag.format(**case.names) for flag in change]
    assert run_once(case, both) == run_once(case, both)
    assert run_once(case, both) != run_once(case, [*both, *change])


def test_the_same_run_leaves_the_same(case, tmp_path):
    """Or a difference would say nothing."""
    train([*case.flags, "--runs", str(tmp_path)])
    assert left_by(tmp_path / "run") == run_once(case, [])


@pytest.mark.parametrize("field", PLANNED)
def test_a_field_changes_a_plan(case, field):
    """Documents are drawn, as there is no prepared data."""
    flags = ["--model", str(case.names["other_model"]), "--data", "/none", "--documents", "200"]
    flags += ["--loader.seq_len", "128", "--gpus", "4"]
    if "plan" not in case.left:
        case.left["plan"] = make_plan(load(PlanConfig, flags)).result
    assert make_plan(load(PlanConfig, [*flags, *PLANNED[field]])).result != case.left["plan"]


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("questions")
    rows = [{**row, "kind": f"k{i}"} for i, row in enumerate(ROWS[:4])]
    (folder / "questions.json").write_text(json.dumps(rows))
    template = chats.TRIMMING.replace("bos_token }}", "bos_token }}{{ strftime_now('%Y') }}")
    (folder / "template.jinja").write_text(template)
    (folder / "texts.jsonl").write_text('{"text": "error 10.0.0.1: disk is full"}')
    names = {
        "texts": folder / "texts.jsonl",
        "questions": folder / "questions.json",
        "template": folder / "template.jinja",
    }
    return SimpleNamespace(folder=folder, model=write_chat_model(folder / "model", 0.5), names=names, left={})


def evaluate_once(case: SimpleNamespace, changes: list[str]) -> dict[str, bytes]:
    """What an evaluation leaves of answers and scores."""
    key = " ".join(changes)
    if key not in case.left:
        run = case.folder / f"run-{len(case.left)}"
        assert (
            evaluated(flags({"a": case.model}, case.names["questions"], run, "--ignore_columns", "kind", *changes)) == 0
        )
        left = {path.name: path.read_bytes() for path in (run / "samples.jsonl", run / "scores.json")}
        left["scores.json"] = json.dumps(json.loads(left["scores.json"])["models"]).encode()
        case.left[key] = left
    return case.left[key]


@pytest.mark.parametrize("field", EVALUATED)
def test_a_field_changes_an_evaluation(questions, field):
    change, both = ([flag.format(**questions.names) for flag in flags] for flags in EVALUATED[field])
    assert evaluate_once(questions, both) != evaluate_once(questions, [*both, *change])


def configs() -> dict[str, dict]:
    """The fields of each command's config."""
    found = {}
    for command, path in commands().items():
        module = importlib.import_module(module_of(path))
        (config,) = [value for name, value in vars(module).items() if name == f"{command.capitalize()}Config"]
        found[command] = fields_of(config)
    return found


RUNS = ("cpt", "sft", "dpo", "plan", "rehearse")


def where(command: str, field: str) -> str | None:
    """Which of the tables has the field."""
    if command in RUNS and field in {**TRAINING, **PLANNED}:
        return "a run or a plan"
    if command == "evaluate" and field in EVALUATED:
        return "an evaluation"
    return NAMED.get(f"{command}.{field}") or (NAMED.get(field) if command in RUNS else None)


@pytest.mark.parametrize("command", sorted(set(commands()) - set(SMALL)))
def test_every_field_is_in_a_table(command):
    missing = [field for field in configs()[command] if where(command, field) is None]
    assert not missing, f"say in tests/test_config_fields.py what shows that these do something: {missing}"


@pytest.mark.parametrize("command", SMALL)
def test_every_flag_of_a_small_command_is_given_by_its_tests(command):
    files = [path for pattern in SMALL[command] for path in (ROOT / "tests").glob(pattern)]
    text = "\n".join(path.read_text() for path in files)
    missing = [field for field in configs()[command] if f"--{field}" not in text and f"{field}=" not in text]
    assert not missing


@pytest.mark.parametrize("field", NAMED)
def test_the_named_test_is_there_and_is_about_the_field(field):
    file, _, test = NAMED[field].partition("::")
    text = (ROOT / "tests" / file).read_text()
    functions = {node.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)}
    assert test == "*" or test in functions, f"{file} has no {test}"
    name = field.split(".")[-1]
    assert re.search(rf"\b{name}\b", text), f"{file} does not name {name}"

"""The step of transformers' Trainer on the clock: `python -m benchmarks.step.transformers_worker RECIPE_AS_JSON`."""

import json
import sys
import tempfile

import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.step.recipe import Clock, Recipe
from logtrain.observe.system import peak_memory_gib


class Rows(torch.utils.data.Dataset):
    """The loader's rows in the Trainer's form: labels in place, for the model shifts them; positions tell documents."""

    def __init__(self, recipe: Recipe):
        loader = recipe.loader(rows_per_batch=1)
        self.rows = [batch for number in range(recipe.steps) for batch in loader.at(number).batches]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        row = self.rows[number]
        assert row.labels_T is not None
        labels = torch.full_like(row.labels_T, -100)
        labels[1:] = row.labels_T[:-1]
        return {"input_ids": row.tokens_T, "labels": labels, "position_ids": row.positions_T.long()}


class Watch(TrainerCallback):
    """When each step ended, and its loss."""

    def __init__(self):
        self.clock = Clock()
        self.losses: list[float] = []

    def on_step_end(self, *_args, **_kwargs) -> None:
        self.clock.step_ended()

    def on_log(self, _args, _state, _control, logs: dict, **_kwargs) -> None:
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))


def main(recipe: Recipe, output: str) -> None:
    torch.set_num_threads(recipe.threads)
    rows = Rows(recipe)
    before = peak_memory_gib(torch.device("cpu"))
    model = LlamaForCausalLM.from_pretrained(recipe.model)
    arguments = TrainingArguments(
        output_dir=output,
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.rows,
        learning_rate=recipe.lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    watch = Watch()
    Trainer(model, arguments, train_dataset=rows, callbacks=[watch]).train()
    memory = peak_memory_gib(torch.device("cpu")) - before
    print(json.dumps(watch.clock.measured(recipe, memory, watch.losses)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        main(Recipe.from_json(sys.argv[1]), name)

"""The step of transformers' Trainer on the clock.

usage: python -m benchmarks.step.transformers_worker MODEL_FOLDER document|row
"""

import json
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from benchmarks.step.recipe import LR, ROWS, SEQ_LEN, STEPS, Attention, Clock, Documents, Measurement, attention_of
from logtrain.data.config import LoaderConfig
from logtrain.data.loader import Loader
from logtrain.observe.system import peak_memory_gib


class Rows(torch.utils.data.Dataset):
    """The loader's rows in the Trainer's form: labels in place, for the model shifts them; positions tell documents."""

    def __init__(self, attention: Attention):
        config = LoaderConfig(seq_len=SEQ_LEN, rows_per_step=ROWS, rows_per_batch=1, attention=attention)
        loader = Loader(Documents(), config, seed=0, pad_id=0)
        self.rows = [batch for number in range(STEPS) for batch in loader.at(number).batches]

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


def main(folder: Path, attention: Attention) -> None:
    torch.set_num_threads(2)
    rows = Rows(attention)
    before = peak_memory_gib(torch.device("cpu"))
    model = LlamaForCausalLM.from_pretrained(folder)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        max_steps=STEPS,
        per_device_train_batch_size=ROWS,
        learning_rate=LR,
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
    speed = watch.clock.tokens_per_second()
    measured: Measurement = {"tokens_per_second": speed, "memory_gib": memory, "losses": watch.losses}
    print(json.dumps(measured))


if __name__ == "__main__":
    main(Path(sys.argv[1]), attention_of(sys.argv[2]))

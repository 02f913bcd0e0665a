"""Everything the demo needs without a download: log questions and answers, a tokenizer trained on them, a tiny model.

    python launch/demo/data.py OUTPUT [--rows 6000] [--chats 600] [--questions 60] [--vocab_size 2048] [--seed 1309]

writes OUTPUT/nlplog.json, a JSON array of `{instruction, log, output, domain}` rows in the shape of NLPLog; chats.json,
ShareGPT conversations to fine-tune on, and questions.json, more of them to evaluate with, whose domain is their task;
and OUTPUT/model/, a Hugging Face model folder: a tiny Llama (grouped-query attention, llama3 RoPE scaling) with random
weights and its byte-level BPE tokenizer, laid out like Llama 3's. Rows and chats ask for the five tasks of NLPLog:
parsing, anomaly detection, interpretation, root cause and solution. An answer repeats the values of its log, so that a
model has to read them. The same arguments write the same bytes.
"""

import argparse
import json
import re
import string
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import NamedTuple

from events import EVENTS, Event
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from logtrain.model import hf
from logtrain.model.weights import RandomWeights


class Kind(NamedTuple):
    """A kind of random value: what it is called, the grok pattern that matches it, and how one is made (see `draw`)."""

    noun: str
    grok: str
    form: str


KINDS: dict[str, Kind] = {
    "ip": Kind("IP address", "IP", "10.<0 77 251>.<0-255>.<1-254>"),
    "port": Kind("port", "POSINT", "<32768-60999>"),
    "pid": Kind("process id", "POSINT", "<300-32767>"),
    "uid": Kind("user id of a process", "POSINT", "<10000-10199>"),
    "index": Kind("index", "INT", "<0-3>"),
    "number": Kind("number", "INT", "<2-9999>"),
    "build": Kind("number", "INT", "<100-999>"),
    "fails": Kind("count", "INT", "<4-9>"),
    "limit": Kind("limit", "INT", "<512 768 1024 2048 4096>"),
    "percent": Kind("percentage", "INT", "<1-99>"),
    "sec": Kind("time in seconds", "INT", "<10-900>"),
    "ms": Kind("time in milliseconds", "INT", "<100-999>"),
    "slow_ms": Kind("time in milliseconds", "INT", "<5000-60000>"),
    "size": Kind("size in bytes", "INT", "<200-99999>"),
    "kib": Kind("size in KB", "INT", "<2-64>"),
    "mib": Kind("size in MB", "INT", "<2050-4000>"),
    "total_mib": Kind("size in MB", "INT", "<32768 64172 128345 257820>"),
    "inode": Kind("inode", "INT", "<10000-999999>"),
    "block": Kind("block id", "NOTSPACE", "blk_<digits 19>"),
    "task": Kind("task", "INT", "<0-199>"),
    "stage": Kind("stage", "INT", "<0-40>"),
    "id": Kind("task id", "INT", "<200-9999>"),
    "job": Kind("job id", "NOTSPACE", "1445062781478_00<10-99>"),
    "session": Kind("session id", "NOTSPACE", "0x14f05578bd8<hex 4>"),
    "hex": Kind("hexadecimal number", "BASE16NUM", "<hex 8>"),
    "address": Kind("memory address", "NOTSPACE", "0x00<hex 6>"),
    "uuid": Kind("UUID", "UUID", "<hex 8>-<hex 4>-4<hex 3>-9<hex 3>-<hex 12>"),
    "day": Kind("date", "NOTSPACE", "2016/<1-12>/<1-28>"),
    "node": Kind("node", "NOTSPACE", "R<10-63>-M<0-1>-N<0-15>-C:J<10-17>"),
    "host": Kind("host", "HOSTNAME", "<mesos-slave worker node>-<10-48>"),
    "user": Kind("user", "USERNAME", "<alice deploy hdfs jenkins oracle postgres spark webapp yarn zabbix>"),
    "bad_user": Kind("user", "USERNAME", "<admin ftpuser guest info pi support test ubnt user0 webmaster>"),
    "process": Kind("program", "NOTSPACE", "<backupd chrome crond indexer java mysqld reportd searchd updater>"),
    "path": Kind("directory", "PATH", "/<etc/cron.daily mnt/data1 opt/app/cache srv/www/html var/lib/nova/_base>"),
    "disk": Kind("disk", "WORD", "<sda sdb sdc nvme0n1p vda>"),
    "package": Kind("application", "NOTSPACE", "com.<android example>.<chrome gallery maps phone player>"),
    "image": Kind("image", "NOTSPACE", "<centos-7-base cirros-0.4 registry/api:1.8 registry/web:2.3 ubuntu-22.04>"),
    "namespace": Kind("namespace", "NOTSPACE", "<default kube-system monitoring payments shop staging>"),
    "pod": Kind("pod", "NOTSPACE", "<api cart checkout search web>-<hex 6>"),
    "database": Kind("database", "WORD", "<billing catalog inventory metrics orders>"),
    "table": Kind("table", "WORD", "<accounts events invoices items sessions shipments>"),
    "url": Kind("path of the request", "NOTSPACE", "/<api/v1/items api/v1/orders cart healthz login search>"),
}


def draw(kind: Kind, rng: Random) -> str:
    """Fill in the `<...>` of a form: `<4-9>` is a number of that range, `<hex 8>` 8 digits, `<a b c>` one of these."""

    def fill(match: re.Match[str]) -> str:
        if bounds := re.fullmatch(r"(\d+)-(\d+)", match[1]):
            return str(rng.randint(int(bounds[1]), int(bounds[2])))
        words = match[1].split()
        if words[0] in ("digits", "hex"):
            return "".join(rng.choices("0123456789abcdef"[: 10 if words[0] == "digits" else 16], k=int(words[1])))
        return rng.choice(words)

    return re.sub("<(.+?)>", fill, kind.form)


def kind_of(field: str) -> Kind:
    """The longest tail of the field's name that is a kind: `bad_user` is one itself, `src_ip` is an `ip`."""
    while field not in KINDS:
        field = field.split("_", 1)[1]
    return KINDS[field]


LEADS = (
    "",
    "You look after a {system} installation. ",
    "As a reliability engineer for {system}, please help me. ",
    "Imagine you are the on-call operator of {system}. ",
    "Here is a log line from {system}. ",
    "With your knowledge of {system} in mind: ",
)

# A task is some ways to ask and one function that answers, given the event with its values filled in (but for its log).
TEMPLATE_QUESTIONS = (
    "What is the template of the log '{log}'? Name its variables.",
    "Separate the constant part from the parameters in the log '{log}'.",
    "Please parse '{log}' into a template and its variables.",
)
GROK_QUESTIONS = (
    "Which grok pattern extracts the fields of the log '{log}'? Explain it.",
    "Write a grok pattern for '{log}' and give the reason for each part.",
    "How would you split the log '{log}' into fields with grok?",
)
ANOMALY_QUESTIONS = (
    "Does the log '{log}' indicate an anomaly? Give the reason.",
    "Is '{log}' normal or abnormal behaviour?",
    "Should an alarm be raised for the log '{log}'?",
)
MEANING_QUESTIONS = (
    "What does the log '{log}' mean?",
    "Please interpret the log '{log}' for a colleague.",
    "Explain what happened according to '{log}'.",
)
CAUSE_QUESTIONS = (
    "What is the root cause behind the log '{log}'?",
    "Why was '{log}' written?",
    "Find the most likely cause of the log '{log}'.",
)
SOLUTION_QUESTIONS = (
    "What should be done about the log '{log}'?",
    "Recommend a solution for the problem in '{log}'.",
    "How would you react to the log '{log}'?",
)


def sentence(clause: str) -> str:
    return clause[0].upper() + clause[1:] + "."


def numbered(lines: list[str]) -> str:
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1))


def listed(values: dict[str, str]) -> str:
    return ", ".join(f"{field} is {value}" for field, value in values.items())


def with_fields(event: Event, literal: Callable[[str], str], field: Callable[[str], str]) -> str:
    parts = string.Formatter().parse(event.log)
    return "".join(literal(text) + (field(name) if name else "") for text, name, _, _ in parts)


def answer_template(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    template = with_fields(event, literal=str, field=lambda name: "<*>")
    variables = [f"{field} = {value} ({kind_of(field).noun})" for field, value in values.items()]
    return f"The template of this log is:\n\n`{template}`\n\nIts variables are:\n{numbered(variables)}"


def answer_grok(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    def escape(text: str) -> str:
        return re.sub(r"[\\.^$|?*+()\[\]{}]", r"\\\g<0>", text)  # a grok pattern is a regular expression

    pattern = with_fields(event, literal=escape, field=lambda name: f"%{{{kind_of(name).grok}:{name}}}")
    kinds = {name: kind_of(name) for name in values}
    reasons = [f"%{{{kinds[name].grok}:{name}}} captures the {kinds[name].noun} {values[name]}." for name in values]
    rest = "The rest of the pattern is constant text."
    return f"I would use this grok pattern:\n\n`{pattern}`\n\nRationale:\n{numbered(reasons)}\n{rest}"


def answer_anomaly(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    if event.is_fault:
        verdict = rng.choice(("Yes, this log indicates an anomaly.", "This is abnormal behaviour."))
        return f"{verdict} It shows that {event.says}. The likely cause: {event.why}."
    verdict = rng.choice(("No, this log does not indicate an anomaly.", "This is normal behaviour."))
    return f"{verdict} It only reports that {event.says}. No alarm is needed."


def answer_meaning(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    opening = rng.choice((f"This {system} log means that", "It says that"))
    weight = "It needs attention" if event.is_fault else "It is part of normal operation"
    return f"{opening} {event.says}. {weight}: {event.why}. In detail: {listed(values)}."


def answer_cause(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    opening = rng.choice(("The most likely cause is that", "The log was written because"))
    evidence = f"The evidence in the log: {listed(values)}."
    ending = "This should be investigated." if event.is_fault else "This is not a fault."
    return f"{sentence(event.says)} {opening} {event.why}. {evidence} {ending}"


def answer_solution(event: Event, values: dict[str, str], system: str, rng: Random) -> str:
    if not event.is_fault:
        return f"Nothing needs to be done. {sentence(event.says)} {sentence(event.why)} It is enough to keep the log."
    return f"{sentence(event.says)} I recommend these steps:\n{numbered([sentence(step) for step in event.do])}"


TASKS = (
    ("template", TEMPLATE_QUESTIONS, answer_template),
    ("grok pattern", GROK_QUESTIONS, answer_grok),
    ("anomaly", ANOMALY_QUESTIONS, answer_anomaly),
    ("meaning", MEANING_QUESTIONS, answer_meaning),
    ("root cause", CAUSE_QUESTIONS, answer_cause),
    ("solution", SOLUTION_QUESTIONS, answer_solution),
)


class Sample(NamedTuple):
    system: str
    task: str
    instruction: str
    log: str
    answer: str


def samples(count: int, seed: int) -> Iterator[Sample]:
    """Random ones: a system, one of its events, values for it, and one question about the line."""
    rng = Random(seed)
    for _ in range(count):
        system = rng.choice(list(EVENTS))
        event = rng.choice(EVENTS[system])
        fields = [name for _, name, _, _ in string.Formatter().parse(event.log) if name]
        values = {name: draw(kind_of(name), rng) for name in dict.fromkeys(fields)}
        log = event.log.format(**values)
        said = event._replace(
            says=event.says.format(**values),
            why=event.why.format(**values),
            do=tuple(step.format(**values) for step in event.do),
        )
        task, questions, answer = rng.choice(TASKS)
        instruction = rng.choice(LEADS).format(system=system) + rng.choice(questions).format(log=log)
        yield Sample(system, task, instruction, log, answer(said, values, system, rng))


def row(sample: Sample) -> dict[str, str]:
    """As NLPLog has it."""
    system, _, instruction, log, answer = sample
    return {"instruction": instruction, "log": log, "output": answer, "domain": system}


def chat(sample: Sample) -> dict[str, object]:
    """As ShareGPT has it."""
    turns = [{"from": "human", "value": sample.instruction}, {"from": "gpt", "value": sample.answer}]
    return {"conversations": turns, "domain": sample.task}


# Llama 3's: words with a leading space, numbers in groups of up to three digits, punctuation, line ends.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BOS, EOS, PAD, TURN_END = "<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>", "<|eot_id|>"
SPECIAL = [BOS, EOS, PAD, "<|start_header_id|>", "<|end_header_id|>", TURN_END]
CHAT_TEMPLATE = (
    "{{- bos_token }}{% for message in messages %}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    "{{- message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE; as in Llama 3 the special tokens have the highest ids and encode() puts a BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(SPECIAL)
    bos = (BOS, tokenizer.token_to_id(BOS))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[bos])
    return tokenizer


def model_config(tokenizer: Tokenizer) -> dict[str, object]:
    """A Llama of about 1 M parameters, in the words of Hugging Face's config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 512,
        },
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": tokenizer.token_to_id(BOS),
        "eos_token_id": tokenizer.token_to_id(EOS),
        "torch_dtype": "float32",
    }


def write_weights(folder: Path, seed: int) -> None:
    config = hf.read_config(folder)
    weights = RandomWeights(config, seed)
    whole = ((name, weights.rows(name, 0, shape[0])[0]) for name, shape in weights.shapes.items())
    tensors = {name: rows.contiguous() for name, rows in hf.published_rows(config, whole)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_rows(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for i, row in enumerate(rows):
            file.write((",\n" if i else "") + json.dumps(row, ensure_ascii=False))
        file.write("\n]\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write log questions and answers, a tokenizer and a tiny model.")
    parser.add_argument("output", type=Path, help="folder to write; files of the same names in it are replaced")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--chats", type=int, default=600)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--vocab_size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=1309)
    options = parser.parse_args()

    model = options.output / "model"
    model.mkdir(parents=True, exist_ok=True)
    write_rows(options.output / "nlplog.json", map(row, samples(options.rows, options.seed)))
    write_rows(options.output / "chats.json", map(chat, samples(options.chats, options.seed + 1)))
    write_rows(options.output / "questions.json", map(chat, samples(options.questions, options.seed + 2)))

    texts = (f"Human: {s.instruction}\nAssistant: {s.answer}\n" for s in samples(options.rows, options.seed))
    tokenizer = train_tokenizer(texts, options.vocab_size)
    tokenizer.save(str(model / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": TURN_END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    for name, content in (("config.json", model_config(tokenizer)), ("tokenizer_config.json", tokenizer_config)):
        (model / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    write_weights(model, options.seed)


if __name__ == "__main__":
    main()

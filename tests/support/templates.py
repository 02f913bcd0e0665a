"""Chat templates of the kinds that published Llamas have, written anew, and tokenizers of the kinds that they are for.

Their marks are those of the tokenizers below; `<s>` and `</s>` are called by name.
"""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from tests.support.chats import CHATML, LLAMA3_WORDS, TRIMMING, WORDS, writing

MARKS = ["<|start|>", "<|header|>", "<|eot|>", "<think>", "</think>", "[INST]", "[/INST]", "<|user|>", "<tool_call>"]

LLAMA3_TOOLS = """{{- bos_token }}
{%- if not tools is defined or tools is none %}
    {%- set tools = none %}
{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|header|>\\n\\n" }}
{%- if builtin_tools is defined or tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today: " + date_string + "\\n\\n" + system_message + "<|eot|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start|>' + message['role'] + '<|header|>\\n\\n' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("one at a time") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|header|>\\n\\n' }}
{%- endif %}
"""
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set said = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set said = messages %}{% set system = false %}{% endif %}"
    "{% for message in said %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if loop.index0 == 0 and system != false %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
    "{{ '<|user|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'system' %}\n"
    "{{ '<|system|>\\n' + message['content'] + eos_token }}\n{% elif message['role'] == 'assistant' %}\n"
    "{{ '<|assistant|>\\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
DEEPSEEK_R1 = (
    "{% set ns = namespace(system='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<|user|>' + message['content'] }}{%- endif %}"
    "{%- if message['role'] == 'assistant' %}{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ '<|header|>' + content + eos_token }}{%- endif %}"
    "{%- endfor -%}{% if add_generation_prompt %}{{ '<|header|><think>\\n' }}{% endif %}"
)
SMOLLM3 = """{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
{%- set ns = namespace(last=messages | length - 1) -%}
{%- for message in messages -%}
    {%- set content = message.content if message.content is string else "" -%}
    {%- if message.role == "assistant" -%}
        {%- if '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') -%}
        {%- endif -%}
        {{- '<|start|>assistant\\n' -}}
        {%- generation -%}
        {%- if loop.last and thought -%}{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}
        {{- content + '<|eot|>' -}}
        {%- endgeneration -%}
    {%- else -%}{{- '<|start|>' ~ message.role ~ '\\n' ~ content ~ '<|eot|>\\n' -}}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start|>assistant\\n' -}}{%- if not enable_thinking -%}{{- '<think>\\n\\n</think>\\n' -}}{%- endif -%}
{%- endif -%}"""
HERMES = (
    "{{ bos_token }}{%- macro typed(x) -%}{{ x | tojson }}{%- endmacro -%}{%- if tools %}{{ typed(tools) }}{%- endif %}"
    "{%- if messages[0].role != 'system' %}{{ '<|start|>system\\nTools: <tool_call></tool_call>.<|eot|>\\n' }}"
    "{%- endif %}{% for message in messages %}"
    "{% if message.role in ['user', 'system'] or (message.role == 'assistant' and not message.tool_calls) %}"
    "{{ '<|start|>' + message.role + '\\n' + message.content + '<|eot|>' + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
ALPACA = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '### Instruction:\\n' + message['content'] | trim + '\\n\\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ '### Response:\\n' + message['content'] | trim + eos_token + '\\n\\n' }}{% else %}"
    "{{ message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Response:\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{{ '<|start|>' + message['role'] | replace('assistant', 'model') + '\\n'"
    " + message['content'] | trim + '<|eot|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|start|>model\\n' }}"
    "{% endif %}"
)
DATED = (
    "{{ bos_token }}<|start|>system\nIt is {{ strftime_now('%d %B %Y') }}.{% if messages[0].role == 'system' %}"
    " {{ messages[0].content }}{% endif %}<|eot|>\n{% for m in messages %}{% if m.role != 'system' %}"
    "<|start|>{{ m.role }}\n"
    "{{ m.content }}<|eot|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
VICUNA = (
    "{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
    "{% else %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
BY_ROLE = (  # its marks are not spelled in it
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|' + 'assistant|>' }}{% endif %}"
)
KINDS = {
    "llama 3": TRIMMING,
    "llama 3 with tools and a date": LLAMA3_TOOLS,
    "llama 2": LLAMA2,
    "zephyr, tinyllama": ZEPHYR,
    "deepseek r1": DEEPSEEK_R1,
    "smollm 2": CHATML,
    "smollm 3": SMOLLM3,
    "hermes": HERMES,
    "alpaca": ALPACA,
    "no system turn": NO_SYSTEM,
    "dated": DATED,
    "vicuna": VICUNA,
    "by role": BY_ROLE,
}


def byte_level() -> tokenizers.Tokenizer:
    """As Llama 3's and SmolLM's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    words = pre_tokenizers.Split(tokenizers.Regex(LLAMA3_WORDS), "isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def metaspace(scheme: str) -> tokenizers.Tokenizer:
    """As Llama 2's. `scheme`: first or always, by the pre-tokenizer; or legacy, by the normaliser."""
    tokenizer = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if scheme == "legacy":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif scheme == "stripping":
        spaces = [normalizers.Strip(), normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        tokenizer.normalizer = normalizers.Sequence(spaces)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    end = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(end)
    return tokenizer


TOKENIZERS = {"byte level": byte_level} | {
    f"metaspace, {scheme}": (lambda scheme=scheme: metaspace(scheme))
    for scheme in ("first", "always", "never", "legacy", "stripping")
}


def write_folder(folder: Path, kind: str, template: str, *, special: bool, bos: bool = True, **flags) -> Path:
    """A tokenizer's folder with a template. `kind`: of TOKENIZERS. `special`, `flags`: of the MARKS in it."""
    tokenizer = TOKENIZERS[kind]()
    alphabet = [*pre_tokenizers.ByteLevel.alphabet(), "\u2581"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    start = ["<unk>", "<s>", "</s>", *(bytes_ if kind != "byte level" else [])]
    trainer = trainers.BpeTrainer(
        vocab_size=len(start) + 400, initial_alphabet=alphabet, special_tokens=start, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join([*WORDS, "instruction response user system"])] * 30, trainer)
    facts = json.loads(tokenizer.to_str())
    facts["added_tokens"] = facts["added_tokens"][:3]  # not the bytes
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(facts))
    tokenizer.add_tokens([AddedToken(mark, special=special, normalized=False) for mark in MARKS])
    if flags:
        tokenizer.add_special_tokens([AddedToken("<|eot|>", special=special, normalized=False, **flags)])
    if bos:
        tokenizer.post_processor = writing(tokenizer, "<s>")
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    return folder

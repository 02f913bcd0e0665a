"""Packaging. All metadata is here; pyproject.toml holds only the build requirement and the tools' settings.

The build needs setuptools and, for packing documents, masking their values and scoring answers in C++, a C++17
compiler: neither torch nor numpy. Without a compiler the package installs all the same and does all three in Python:
equal output, but slow.
"""

from setuptools import Extension, find_packages, setup

# What each is for, with the oldest release that the tests were run on.
RUN_TIME = [
    "torch>=2.13",  # torch.nn.attention.varlen (FlashAttention without an install step), FSDP2 and DCP as used here
    "triton>=3.7",  # the kernels; what torch 2.13 for CUDA comes with (torch for CPUs comes without)
    "numpy>=2.0",  # the array API that torch 2.13 is built against
    "safetensors>=0.5",  # safe_open slices of bfloat16 tensors without reading the whole file
    "tokenizers>=0.21",  # encode_batch_fast
    "sentencepiece>=0.2",  # tokenizer.model of Llama 2
    "tyro>=1.0",  # its stable 1.x interface: typed flags from dataclasses
    "docstring_parser>=0.16",  # by which tyro reads the help of a setting
    "tomli_w>=1.0",  # writes the resolved config.toml (the standard library only reads TOML)
    "rich>=13.7",  # live progress bar and tables
    "fsspec>=2024.12",  # paths that are URIs; torch brings it
    "orjson>=3.10",  # metrics and manifests: fast, and never the NaN that JSON does not have
    "zstandard>=0.22",  # .zst inputs
    "jinja2>=3.1.6",  # chat templates, in a sandbox that until 3.1.6 had holes; the page of an evaluation
    "matplotlib>=3.9",  # its chart, the first release built for numpy 2
    "urllib3>=2.3",  # requests to a server: connections that are kept, tries with pauses; shutdown() of a reply
    "rapidfuzz>=3.9",  # fuzzy scores and the longest common subsequence of tokens, in C++
    "sacrebleu>=2.4",  # BLEU and chrF; downloads only the test sets of WMT, on request
    "nvidia-ml-py>=12.535",  # power, clocks and errors of NVIDIA's GPUs; pure Python, does nothing without a driver
    "psutil>=5.9",  # when this process began, what the machine is doing beside it, and its sensors
    "prompt_toolkit>=3.0.36",  # the line editor of logtrain.chat: history, pasted blocks
]

EXTRAS = {
    "serve": [  # logtrain serve
        "starlette>=0.40",  # paths, requests, CORS: what remains of a web framework without what is not needed
        "uvicorn>=0.30",  # HTTP; its stop waits for answers that are under way
    ],
    "browser": [  # tests of the page, with a Chromium on the PATH
        "playwright>=1.45",  # drives it; the wheel brings the program that it needs
        "axe-playwright-python>=0.1.4",  # carries axe-core
    ],
    "fa4": ["flash-attn-4>=4.0.0b36"],  # attention_backend = "fa4"; so far it has pre-releases alone
    "flash": ["flash-attn>=2.7"],  # attention_backend = "flash_attn"; registered with torch since 2.7
    "remote": [  # paths on S3, Google's store and the Hugging Face hub
        "s3fs>=2024.12",
        "python-dateutil<3",  # as s3fs needs it; matplotlib would have 4, and pip tries every s3fs before it sees that
        "gcsfs>=2024.12",
        "huggingface_hub>=0.30",
    ],
    "yaml": ["pyyaml>=6.0"],  # recipes of other trainers; whole in C since 6.0
    "track": ["tensorboard>=2.16", "wandb>=0.17", "mlflow>=2.14", "trackio>=0.2"],  # --track
    # .parquet, .arrow and .feather. 17 is the oldest that the tests were run on; MLflow before 3.18, of `track`, needs
    # one below 26. Those refuse a Parquet file with a null in a column of lists of a fixed size, and say so.
    "parquet": ["pyarrow>=17.0"],
    "peft": ["peft>=0.17", "transformers>=5.0"],  # merging adapters of other methods than LoRA
    "bench": ["transformers>=5.0", "accelerate>=1.1", "liger-kernel>=0.8"],  # what we compare ourselves with
    # transformers, peft and rouge-score are the oracles; our kernels must not move more bytes than Liger's. rouge-score
    # is not at run time: all that scoring.py could use of it is a regular expression, and it brings nltk with it.
    "test": [
        "pytest>=8.1",  # import mode importlib as used here
        "pyarrow>=17.0",
        "pytest-xdist>=3.5",  # a file of tests a core at a time
        "hypothesis>=6.100",
        "ruff>=0.9",
        "pyright[nodejs]>=1.1.390",  # with the program that it is written for, so that nothing else is installed
        "transformers>=5.0",
        "peft>=0.18",
        "liger-kernel>=0.8",
        "pyyaml>=6.0",
        "s3fs>=2024.12",
        "python-dateutil<3",  # as s3fs needs it
        "aiobotocore[boto3]>=2.19",  # of s3fs, with the boto3 that fits it; for moto pip would take a newer one
        "moto[s3]>=5.1",  # a server of S3 on loopback, which takes If-None-Match as S3 does; it needs the next two
        "flask>=2.2",
        "flask-cors>=4.0",
        "rouge-score>=0.1.2",  # its last, of 2022
        "starlette>=0.40",  # the server
        "uvicorn>=0.30",
        "openai>=1.40",  # its client is the oracle of the server
        "setuptools>=77",  # a test builds the wheel, as pyproject.toml says
    ],
}


setup(
    name="logtrain",
    version="0.1.0",
    description="Continual pretraining and fine-tuning of Llama models on log data, on your own GPUs",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["logtrain*"]) + find_packages("kernels"),
    package_data={
        "logtrain": ["py.typed", "*.pyi"],  # .pyi: types of what is compiled from csrc/
        "logtrain_kernels": ["py.typed"],
        "logtrain.training": ["foreign_keys.toml"],  # the settings of other trainers
        "logtrain.planning": ["gpus/*.toml"],  # descriptions of GPUs
        "logtrain.observe": ["report.html.jinja"],  # the page of a run
        "logtrain.evaluation": ["*.html.jinja"],  # the pages of an evaluation and a benchmark
        "logtrain.conversation": ["tasks.toml"],  # what a chat's tasks ask
        "logtrain.synthesis": ["*.toml"],  # what a teacher is asked
        "logtrain.text": ["entities.json"],  # what counts as an entity of an answer
        "logtrain.serving": ["page/*"],  # the page in the browser
    },
    entry_points={"console_scripts": ["logtrain = logtrain.__main__:main"]},
    package_dir={"logtrain_kernels": "kernels/logtrain_kernels"},
    ext_modules=[
        Extension(
            f"logtrain._{name}",
            sources=[f"csrc/{name}.cpp"],
            language="c++",
            extra_compile_args=["-O3", "-std=c++17"],
            optional=True,  # a failed build is a warning; who imports it, or `logtrain doctor`, says so at run time
        )
        for name in ("pack", "rouge", "twins")
    ],
    install_requires=RUN_TIME,
    extras_require=EXTRAS,
)

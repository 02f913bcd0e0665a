"""Makes the folder of wheels that a GPU machine without a network lacks, and checks that what is carried there fits:

    python launch/wheels.py [--python 3.12] [--limit 64]

The folder, .wheels/ in the checkout, is what `. launch/install.sh --as-is` unpacks on that machine. The machine is
taken to have PyTorch, Triton, transformers and what those need; here are the packages that logtrain and its
benchmarks import beyond that, for x86-64 Linux. What is carried is the working tree (files that git tracks or does not
ignore) and the folder. The exit status is 1 where that is more than the limit, or a wheel could not be had.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / ".wheels"
WHEELS = {  # of what setup.py asks for, and what these need in turn
    "zstandard": "0.25.0",
    "rapidfuzz": "3.14.6",
    "tyro": "1.0.17",
    "typeguard": "4.6.1",  # tyro's
    "docstring_parser": "0.18.0",  # tyro's
    "orjson": "3.13.0",
    "tomli_w": "1.2.0",
    "prompt_toolkit": "3.0.53",
    "wcwidth": "0.9.4",  # prompt_toolkit's
    "liger_kernel": "0.8.5",
}
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_26", "manylinux_2_17", "manylinux2014", "manylinux1")
MIB = 2**20


def download_command(python: str) -> list[str]:
    """How pip fetches the wheels, one version of each and nothing that they need beside them."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--dest", str(FOLDER)]
    for platform in PLATFORMS:
        command += ["--platform", f"{platform}_x86_64"]
    return command + [f"{name}=={version}" for name, version in WHEELS.items()]


def carried_bytes() -> tuple[int, int]:
    """(bytes of the working tree's files, bytes of the wheels)"""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    files = [path for path in (ROOT / name for name in names if name) if path.is_file()]
    return sum(path.stat().st_size for path in files), sum(path.stat().st_size for path in FOLDER.glob("*.whl"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default="3.12", help="Python version of the GPU machine")
    parser.add_argument("--limit", type=float, default=64, help="MiB that can be carried there")
    options = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    if subprocess.run(download_command(options.python)).returncode:
        print("wheels.py: a wheel could not be downloaded; what pip said is above", file=sys.stderr)
        return 1
    tree, wheels = carried_bytes()
    fits = tree + wheels <= options.limit * MIB
    for path in sorted(FOLDER.glob("*.whl")):
        print(f"{path.stat().st_size / MIB:7.2f} MiB  {path.name}")
    print(f"{wheels / MIB:7.2f} MiB  {len(WHEELS)} wheels\n{tree / MIB:7.2f} MiB  the working tree")
    print(f"{'fits' if fits else 'DOES NOT FIT'}: {(tree + wheels) / MIB:.1f} of {options.limit:g} MiB")
    return 0 if fits else 1


if __name__ == "__main__":
    sys.exit(main())

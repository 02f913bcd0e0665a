"""The environment that the launchers run in, where it is not one that they make themselves."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.support import LAUNCH


def shell(script: str, **environment: str) -> str:
    """What a bash script prints, from outside any virtual environment but with this one's python3 first."""
    clean = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "PYTHONPATH")}
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    result = subprocess.run(["bash", "-c", script], env=clean | environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_as_is_installs_nothing_and_unpacks_the_wheels_that_were_carried(tmp_path):
    for folder in ("logtrain", "kernels/logtrain_kernels", "launch", ".wheels"):
        (tmp_path / folder).mkdir(parents=True)
    for package in ("logtrain", "kernels/logtrain_kernels"):
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "launch" / "install.sh").write_text((LAUNCH / "install.sh").read_text())
    with zipfile.ZipFile(tmp_path / ".wheels" / "carried-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried_along.py", "VALUE = 17\n")
    with zipfile.ZipFile(tmp_path / ".wheels" / "numpy-1.0-py3-none-any.whl", "w") as wheel:  # is there already
        wheel.writestr("numpy/__init__.py", "raise ImportError('of another Python')\n")
    found = "import logtrain, logtrain_kernels, carried_along as c; print(c.VALUE, logtrain.__file__, sys.prefix)"
    found = f"import sys, numpy; sys.path.remove(''); {found}"  # the folder that this test runs in
    told = shell(f'. {tmp_path}/launch/install.sh --as-is; python -c "{found}"', TMPDIR=str(tmp_path))
    assert told.split() == ["17", str(tmp_path / "logtrain" / "__init__.py"), sys.prefix]
    assert not (tmp_path / ".venv").exists()


def test_ranks_of_one_machine_meet_without_its_name_being_known():
    """torchrun --standalone asks for the address of the host's name, and hangs where nobody knows one."""
    script = f'here={LAUNCH}; . {LAUNCH}/ranks.sh; echo "$PET_STANDALONE $PET_LOCAL_ADDR"'
    assert shell(script, PET_NPROC_PER_NODE="2") == "1 127.0.0.1\n"
    script = f'here={LAUNCH}; . {LAUNCH}/ranks.sh; echo "${{PET_STANDALONE-none}} ${{PET_LOCAL_ADDR-none}}"'
    assert shell(script, PET_NPROC_PER_NODE="2", PET_NNODES="2") == "none none\n"

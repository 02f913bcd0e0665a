"""The requirements of the package and its extras: what is asked for together can be installed together."""

import runpy
from collections import defaultdict

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests.support import ROOT

OF_OTHERS = {  # bounds of what our requirements themselves require
    "pyarrow": "<26,>=4",  # mlflow before 3.18; later ones ask for <27
    "python-dateutil": "<3,>=2.1",  # aiobotocore, of s3fs
    "aiobotocore": "<4,>=2.19",  # s3fs
}


@pytest.fixture
def asked(monkeypatch) -> dict[str, dict[str, SpecifierSet]]:
    """By package, what each extra asks for; "" is the package itself."""
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **facts: given.update(facts))
    runpy.run_path(str(ROOT / "setup.py"))
    found = defaultdict(dict)
    for extra, requirements in {"": given["install_requires"], **given["extras_require"]}.items():
        for requirement in map(Requirement, requirements):
            found[requirement.name.replace("_", "-").lower()][extra] = requirement.specifier
    return found


def test_all_extras_can_be_installed_together(asked):
    assert {"pyarrow", "mlflow", "python-dateutil", "aiobotocore"} <= asked.keys()
    for name, by_extra in asked.items():
        together = SpecifierSet(OF_OTHERS.get(name, ""))
        for specifiers in by_extra.values():
            together &= specifiers
        versions = [each.version for specifiers in by_extra.values() for each in specifiers] or ["1"]
        below = [f"{int(version.split('.')[0]) - 1}.99" for version in versions]  # of "<3", which asks for none above
        assert any(together.contains(one, prereleases=True) for one in versions + below), f"{name}: {together}"


def test_what_keeps_pip_from_trying_every_s3fs_stays(asked):
    for extra in ("remote", "test"):
        assert asked["python-dateutil"][extra] == SpecifierSet("<3")
    assert asked["aiobotocore"]["test"] == SpecifierSet(">=2.19")

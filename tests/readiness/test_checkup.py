"""What is wrong with a job's machines is named: GPUs by NVML's stand-in, speeds beside a GPU's file, versions."""

import pytest

from logtrain.observe.sensors import names_of_gpus
from logtrain.planning.gpu_file import gpu_of, read_gpu
from logtrain.readiness import gpus, nodes, options
from logtrain.readiness.checkup import Checkup as Found
from logtrain.readiness.checkup import Device, differing, judged, lines, link_band
from logtrain.readiness.speed import Collective

H100 = read_gpu("h100-sxm")
WELL = {"product": H100.product, "copy": H100.bandwidth}


def device(rank: int, facts: dict | None = None, **speed: float) -> Device:
    return Device(rank, f"node{rank // 2}", "NVIDIA H100 80GB HBM3", {**WELL, **speed}, facts or {})


def test_the_facts_of_gpus_and_what_is_wrong_with_them(three_gpus):
    well, bad, lost = gpus.facts_of_gpus()
    assert gpus.driver_version() == "570.86.15" and names_of_gpus() == ["NVIDIA H100 80GB HBM3"] * 2
    assert gpus.wrong_with(well) == []  # a cap on power is usual
    told = gpus.told(well)
    assert told.startswith("1755 of 1980 MHz, 61 °C, 655 W, slowed down: power cap, 0 memory errors, 18 of 18 NVLinks")
    assert told.endswith("PCIe 5 x16")
    wrong = " | ".join(gpus.wrong_with(bad))
    assert "slowed down (too hot (hardware)) at 1095 MHz" in wrong and "2 uncorrectable memory errors" in wrong
    assert "17 of 18 NVLinks up" in wrong and "8 of 16 lanes of PCIe" in wrong and "generation" not in wrong
    assert gpus.wrong_with(lost) == ["does not answer (GPU is lost): reset it, or the machine"]
    assert gpu_of(names_of_gpus()[0]) == "h100-sxm"


@pytest.mark.parametrize("name", ["NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA A100-SXM4-40GB", "NVIDIA L4"])
def test_a_gpu_that_is_not_described_is_not_taken_for_another(name):
    assert gpu_of(name) is None


def test_the_slow_one_is_named_with_its_factor():
    ranks = [device(0), device(1), device(2, product=0.8 * H100.product), device(3, copy=H100.bandwidth / 1.5)]
    found = judged(ranks, [], H100, 2, "cuda")
    assert len(found) == 4
    assert found[0].startswith(
        "rank 2 on node1 (NVIDIA H100 80GB HBM3) takes 1.25 times as long as the others for matrix"
    )
    assert found[1].startswith("rank 2 on node1") and "reaches 536 TFLOP/s" in found[1] and "610 TFLOP/s" in found[1]
    assert "rank 3" in found[2] and "1.50 times" in found[2] and "2.3 TB/s" in found[3]
    assert judged([device(0), device(1)], [], H100, 1, "cuda") == []


def test_ranks_on_cpus_are_held_against_other_machines():
    assert judged([device(0), device(1, product=H100.product / 9)], [], None, 1, "cpu") == []  # of the same cores
    assert judged([device(0), device(2, product=H100.product / 1.4)], [], None, 2, "cpu") == []  # cores that others use
    slow = [device(rank, product=H100.product / 1.6) for rank in (2, 3)]
    found = judged([device(0), device(1), *slow], [], None, 2, "cpu")
    assert [text[:15] for text in found] == ["rank 2 on node1", "rank 3 on node1"] and "1.60 times" in found[0]


def test_links_are_held_against_those_of_a_machine_or_of_several():
    size = 1 << 30
    low, high = link_band(H100, size, 1)
    assert low < H100.link_bandwidth(size) < high
    slow = [Collective("all-gather", size, low * 0.9), Collective("reduce-scatter", size, low * 1.01)]
    (found,) = judged([device(0), device(1)], slow, H100, 1, "cuda")
    assert found.startswith("all-gather of 1.07 GB reaches") and "nvidia-smi topo -m" in found
    assert link_band(H100, size, 2)[0] == 200e9  # of the network


def test_machines_that_differ_are_named():
    machines = [
        {"node": node, "driver": driver, "versions": {"torch": "2.13", "triton": triton}}
        for node, driver, triton in (("a", "570", "3.7"), ("b", "550", "3.7"), ("c", "570", "3.7"))
    ]
    assert differing(machines) == ["driver differs: 570 on a, 550 on b, 570 on c; install the same everywhere"]
    assert differing(machines[::2]) == []


def test_what_is_missing_is_told_with_what_installs_it():
    nothing = options.missing(True, lambda _: False)
    assert nothing["attention_backend = fa4"] == "pip install --pre 'logtrain[fa4]'"
    assert "logtrain[serve]" in nothing["logtrain serve"] and "starlette, uvicorn" in nothing["logtrain serve"]
    assert not [name for name in options.missing(False, lambda _: False) if "attention" in name]
    assert options.missing(True, lambda name: name != "yaml").keys() <= {
        "recipes of other trainers in YAML",
        "compile, and Triton's kernels",
    }
    assert options.is_there("torch") and not options.is_there("no_such.module")


def test_a_name_without_an_address_matters_to_other_machines_alone(monkeypatch):
    def unknown(name):
        raise OSError("Name or service not known")

    monkeypatch.setattr(nodes.socket, "gethostbyname", unknown)
    assert "which one machine does not need" in nodes.check_name("vm", alone=True)
    with pytest.raises(ValueError, match=r"vm: its name has no address .*; add it to DNS"):
        nodes.check_name("vm", alone=False)


@pytest.mark.parametrize("name", ["vm..cluster", "v" * 64, ".vm"])
def test_a_name_that_there_cannot_be_has_no_address(name):
    assert "which one machine does not need" in nodes.check_name(name, alone=True)
    with pytest.raises(ValueError, match=r"its name has no address .*; add it to DNS"):
        nodes.check_name(name, alone=False)


def test_a_place_where_no_run_can_be_written_is_named(tmp_path, monkeypatch):
    """As it was given, without the name of a file that nobody knows."""
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "file/runs"):
        with pytest.raises(ValueError, match=rf"^{tmp_path}/{name.partition('/')[0]}: is no folder; choose another"):
            nodes.disk_of(tmp_path / name)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied", f"{tmp_path}/.doctor-x7d2")

    monkeypatch.setattr(nodes.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(ValueError, match=rf"^{tmp_path}: Permission denied; runs are written there: choose another"):
        nodes.disk_of(tmp_path / "runs")
    facts = nodes.examine(tmp_path, gpus=0, ranks=1, alone=True)
    assert [problem.partition(";")[0] for problem in facts["problems"]] == [f"{tmp_path}: Permission denied"]


def test_what_is_printed_has_ranges_and_what_is_wrong(tmp_path):
    facts = nodes.examine(tmp_path, gpus=0, ranks=1, alone=True)
    assert facts["problems"] == [] and not list(tmp_path.iterdir())
    found = Found([facts], [device(0, product=600e12)], [Collective("all-gather", 1 << 30, 350e9)], ["too slow"])
    text = "\n".join(lines(found, H100))
    assert "products 600 TFLOP/s (610 TFLOP/s to 730 TFLOP/s), copies 2.7 TB/s (2.3 TB/s to 2.95 TB/s)" in text
    assert "all-gather of 1.07 GB: 350 GB/s of bus" in text and text.endswith("WRONG: too slow")
    assert f"{tmp_path}: writes" in text and "torch 2" in text
    assert found.to_json()["devices"][0]["speed"]["product"] == 600e12

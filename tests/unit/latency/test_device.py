import os

import msgspec
import pytest

from latency import Device, FingerprintMismatch, Runtime
from latency.device import first_difference, require_equal


def test_this_cpu():
    device = Device.cpu(threads=3)
    assert (device.kind, device.threads, device.cores) == ("cpu", 3, os.cpu_count())
    assert device.name
    assert device.isa == tuple(sorted(device.isa))
    assert device == Device.cpu(threads=3)
    assert msgspec.json.decode(msgspec.json.encode(device), type=Device) == device


def test_reads_what_matters_from_proc(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "model\t\t: 17\nmodel name\t: Some CPU  \nflags\t\t: fpu avx2 avx512f clwb\n\nmodel name\t: Some CPU\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       24607924 kB\nMemFree: 1 kB\n")
    device = Device.cpu(proc=tmp_path)
    assert (device.name, device.isa, device.memory_mib) == ("Some CPU", ("avx2", "avx512f"), 23 * 1024)


def test_reads_an_arm_board(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nFeatures\t: fp asimd asimddp crc32\n\nModel\t\t: Raspberry Pi 5\n"
    )
    device = Device.cpu(proc=tmp_path)
    assert (device.name, device.isa, device.memory_mib) == ("Raspberry Pi 5", ("asimd", "asimddp"), 0)


def test_a_system_without_proc_still_has_a_name(tmp_path):
    assert Device.cpu(proc=tmp_path / "none").name


def test_first_difference_is_the_first_field_with_both_values(kit):
    assert first_difference(kit.CPU, kit.CPU) is None
    other = msgspec.structs.replace(kit.CPU, cores=8, os="Darwin arm64")
    assert first_difference(kit.CPU, other) == ("cores", 4, 8)


def test_first_difference_goes_into_nested_fields(kit):
    a, b = kit.header(), kit.header(device=msgspec.structs.replace(kit.CPU, threads=2))
    assert first_difference(a, b) == ("device.threads", 1, 2)


def test_require_equal():
    a, b = Runtime(name="onnxruntime", version="1.20"), Runtime(name="onnxruntime", version="1.21")
    require_equal(a, a)
    with pytest.raises(FingerprintMismatch, match=r"the table has version '1\.20', wanted '1\.21': measure again"):
        require_equal(a, b, what="the table", fix="measure again")


def test_first_difference_goes_into_settings(kit):
    a, b = kit.header(settings={"level": "3", "cache": "x"}), kit.header(settings={"level": "3", "cache": "y"})
    assert first_difference(a, b) == ("settings.cache", "x", "y")
    assert first_difference(a, kit.header(settings={"level": "3"})) == ("settings.cache", "x", None)
    assert first_difference(kit.header(), kit.header(settings={"level": "3"})) == ("settings.level", None, "3")

import json
import os

import msgspec
import numpy as np
import onnx
import pytest
import safetensors.numpy

from deploy import BundleError, Evidence, bundle, engine, export, load, verify
from deploy.bundle import sha256
from deploy.verify import _follows
from latency import Measurement, distribution
from latency.errors import DeviceUnavailable
from latency.measure import summarize
from latency.protocol import FAST
from unit.deploy.helpers import QUICK, example, network, samples


def verdicts(directory):
    return {check.name: check.verdict for check in verify(directory).checks}


def rewrite(directory, files=None, **changes):
    """Write a bundle again with a manifest that says something else; its hashes are right."""
    found = load(directory)
    content = {name: (directory / name).read_bytes() for name in found.manifest.files}
    bundle.write_bundle(directory, msgspec.structs.replace(found.manifest, **changes), content | (files or {}))


def edit(directory, change):
    """Change the text of a manifest; its seal is right."""
    path = directory / "manifest.json"
    blank = change(path.read_bytes().replace(load(directory).manifest.seal.encode(), b"0" * 64))
    path.write_bytes(blank.replace(b"0" * 64, sha256(blank).encode()))


def reseal(directory, change):
    """Change what files a manifest lists; its seal is right."""

    def listed(text):
        fields = json.loads(text)
        return (
            json.dumps({**fields, "files": change(fields["files"]), "seal": fields["seal"]}, indent=2).encode() + b"\n"
        )

    edit(directory, listed)


def detail(directory, name):
    return next(check.detail for check in verify(directory).checks if check.name == name)


def test_a_bundle_as_it_was_written_passes(bundle_copy):
    found = verify(bundle_copy)
    assert {check.name: check.verdict for check in found.checks} == {
        "manifest.json": "passed",
        "README.md": "passed",
        "architecture.json": "passed",
        "model.onnx": "passed",
        "reference.safetensors": "passed",
        "run.py": "passed",
        "chain of hashes": "passed",
        "handout": "passed",
        "recorded verdicts": "passed",
        "earlier forms": "not run",
        "accuracy": "not run",
        "outputs of onnx": "passed",
        "latency": "passed",
    }
    assert found.failures == []


def test_an_edited_manifest_is_named_and_nothing_else_is_believed(bundle_copy):
    path = bundle_copy / "manifest.json"
    path.write_text(path.read_text().replace('"budget_us": 10000000.0', '"budget_us": 90000000.0'))
    assert verdicts(bundle_copy) == {"manifest.json": "failed"}


def test_a_changed_model_is_named_and_not_run(bundle_copy):
    with (bundle_copy / "model.onnx").open("ab") as file:
        file.write(b"\0")
    found = verify(bundle_copy)
    assert [(check.name, check.detail) for check in found.failures] == [("model.onnx", "was changed")]
    assert verdicts(bundle_copy) | {"outputs of onnx": "not run", "latency": "not run"} == verdicts(bundle_copy)


def test_a_missing_reference_leaves_the_outputs_not_run(bundle_copy):
    (bundle_copy / "reference.safetensors").unlink()
    found = verdicts(bundle_copy)
    assert (found["reference.safetensors"], found["outputs"], found["latency"]) == ("failed", "not run", "passed")


def test_a_missing_manifest_is_named(bundle_copy):
    (bundle_copy / "manifest.json").unlink()
    assert [(check.name, check.detail) for check in verify(bundle_copy).failures] == [("manifest.json", "is missing")]


def test_an_extra_file_fails(bundle_copy):
    (bundle_copy / "stranger").write_text("")
    assert [check.name for check in verify(bundle_copy).failures] == ["stranger"]


def test_a_model_that_does_something_else_fails_though_its_hash_is_right(bundle_copy):
    reference = safetensors.numpy.load((bundle_copy / "reference.safetensors").read_bytes())
    reference["outputs.output"] = reference["outputs.output"] * 1.001
    rewrite(bundle_copy, {"reference.safetensors": safetensors.numpy.save(reference)})
    assert [check.name for check in verify(bundle_copy).failures] == ["outputs of onnx"]


def test_a_broken_chain_fails(bundle_copy):
    chain = load(bundle_copy).manifest.chain
    rewrite(bundle_copy, chain=(*chain[:-1], msgspec.structs.replace(chain[-1], sha256="0" * 64)))
    assert detail(bundle_copy, "chain of hashes") == "broken at onnx"
    assert [check.name for check in verify(bundle_copy).failures] == ["chain of hashes"]


def test_what_the_manifest_concludes_must_follow_from_its_numbers(bundle_copy):
    manifest = load(bundle_copy).manifest
    steps, shipped = list(manifest.validation), manifest.shipped
    steps[-1] = msgspec.structs.replace(steps[-1], verdict="failed")
    faster = msgspec.structs.replace(shipped.measured, median_us=shipped.measured.median_us / 2)
    rewrite(
        bundle_copy,
        validation=tuple(steps),
        shipped=msgspec.structs.replace(shipped, measured=faster),
        budget_verdict="missed",
    )
    assert [check.name for check in verify(bundle_copy).failures] == ["handout", "recorded verdicts"]
    assert detail(bundle_copy, "recorded verdicts") == (
        "onnx fp32 is failed; the latency of the shipped network is not that of its samples; the budget is missed, by its numbers met"
    )


def test_a_measurement_must_follow_from_its_samples_but_need_not_state_percentiles():
    found = summarize([10.0] * 100, QUICK)
    assert found.p90_us == 10.0
    assert _follows(found, found, QUICK)
    assert _follows(msgspec.structs.replace(found, p90_us=None, p99_us=None), found, QUICK)
    for change in (
        {"p90_us": 11.0},
        {"median_us": 9.0},
        {"low_us": 9.0},
        {"status": "unstable"},
        {"reason": "the latency moved"},
    ):
        assert not _follows(msgspec.structs.replace(found, **change), found, QUICK)


def test_an_unstable_measurement_spans_at_least_the_interval_of_the_median():
    found = summarize([10.0, 14.0, 10.0] * 40, FAST)
    assert found.status == "unstable"
    other = msgspec.structs.replace(found, reason="the median is between two modes", high_us=13.0)
    assert _follows(other, found, FAST)
    for change in ({"low_us": 10.5}, {"high_us": 15.0}, {"low_us": 9.0}):
        assert not _follows(msgspec.structs.replace(other, **change), found, FAST)


def test_what_the_bundle_does_not_hold_is_not_run_with_the_reason(bundle_copy):
    assert detail(bundle_copy, "earlier forms") == (
        "trained, fused, squeezed: their weights are not in the bundle; only what was made from them is"
    )
    assert detail(bundle_copy, "accuracy").endswith("of 12 samples when exported; they are not in the bundle")


@pytest.mark.parametrize(("field", "value"), [("name", "Other CPU"), ("threads", 2)])
def test_another_device_is_not_timed(bundle_copy, field, value, monkeypatch):
    monkeypatch.setattr(engine, "measure_in_turns", lambda *_: pytest.fail("timed"))
    device = load(bundle_copy).manifest.device
    other = msgspec.structs.replace(device, **{field: value})
    # Two threads can be had here too, one device name cannot.
    if field == "name":
        rewrite(bundle_copy, device=other)
        assert verdicts(bundle_copy)["latency"] == "not run"
        assert detail(bundle_copy, "latency").startswith("measured on another device: name 'Other CPU', here ")
    else:
        rewrite(bundle_copy, runtime=msgspec.structs.replace(load(bundle_copy).manifest.runtime, version="0.0"))
        assert "measured on another runtime: version '0.0', here " in detail(bundle_copy, "latency")


@pytest.mark.parametrize(
    ("low_us", "high_us", "verdict"), [(80.0, 90.0, "passed"), (101.0, 110.0, "failed"), (95.0, 105.0, "unsure")]
)
def test_the_latency_now_is_judged_by_the_budget(bundle_copy, monkeypatch, low_us, high_us, verdict):
    now = Measurement(samples_us=(low_us,), median_us=low_us, low_us=low_us, high_us=high_us, status="ok")
    monkeypatch.setattr(engine, "measure_in_turns", lambda networks, *_: dict.fromkeys(networks, now))
    rewrite(bundle_copy, budget_us=100.0)
    assert verdicts(bundle_copy)["latency"] == verdict
    rewrite(bundle_copy, budget_us=None)
    assert verdicts(bundle_copy)["latency"] == "passed"


def test_an_engine_without_its_gpu_is_not_run(tmp_path, monkeypatch):
    pytest.importorskip("tensorrt_rtx")

    def absent(flavour, **_):
        raise DeviceUnavailable("no NVIDIA driver found")

    monkeypatch.setattr(engine, "TensorRT", absent)
    made = export(
        network(),
        example(),
        target="tensorrt-rtx",
        out=tmp_path / "out",
        protocol=QUICK,
        evidence=Evidence(samples=samples()),
    )
    found = {check.name: (check.verdict, check.detail) for check in verify(made.directory).checks}
    assert found["model.engine"][0] == found["outputs of onnx-fp16"][0] == found["certificate"][0] == "passed"
    assert found["outputs of engine"] == found["latency"] == ("not run", "no NVIDIA driver found")
    # FP16 is derived from FP32 again: another network in its place is found though every hash and every output is right.
    half = onnx.load_from_string(made.read("model.fp16.onnx"))
    half.producer_name = "somebody"
    content = half.SerializeToString()
    chain = [
        msgspec.structs.replace(link, sha256=sha256(content)) if link.name == "onnx-fp16" else link
        for link in made.manifest.chain
    ]
    rewrite(made.directory, {"model.fp16.onnx": content}, chain=tuple(chain))
    assert [check.name for check in verify(made.directory).failures] == ["certificate"]
    rewrite(made.directory, versions=made.manifest.versions | {"onnx": "0.1"})
    assert verdicts(made.directory)["certificate"] == "not run"


def test_what_is_no_bundle_is_an_error(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        verify(tmp_path)


@pytest.mark.parametrize("file", ["run.py", "README.md"])
def test_a_script_that_this_version_does_not_write_fails_though_its_hash_is_right(bundle_copy, file):
    rewrite(bundle_copy, {file: (bundle_copy / file).read_bytes() + b"\nimport os\n"})
    found = verify(bundle_copy)
    version = distribution.version()
    assert [(check.name, check.detail) for check in found.failures] == [
        ("handout", f"{file}: not what Lathe {version} writes")
    ]


def test_a_bundle_without_its_script_fails(bundle_copy):
    found = load(bundle_copy)
    content = {name: (bundle_copy / name).read_bytes() for name in found.manifest.files if name != "run.py"}
    bundle.write_bundle(bundle_copy, found.manifest, content)
    assert [check.name for check in verify(bundle_copy).failures] == ["handout"]


@pytest.mark.parametrize(("versions", "named"), [({"lathe": "0.0.1"}, "0.0.1"), ({}, "that is not recorded")])
def test_what_another_version_wrote_is_compared_by_hash_only(bundle_copy, versions, named):
    rewrite(bundle_copy, {"run.py": b"print()"}, versions=versions)
    assert verdicts(bundle_copy)["handout"] == "not run"
    assert detail(bundle_copy, "handout").startswith(f"written by Lathe {named}, this is ")


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../outside", "..", ".", "", "sub/file", "manifest.json", "a\0b", "a\\b", "/dev/zero", "n" * 300],
)
def test_a_name_that_leads_out_of_the_bundle_fails_and_is_not_opened(bundle_copy, name):
    (bundle_copy.parent / "outside").write_bytes(b"")
    reseal(bundle_copy, lambda files: {**files, name: sha256(b"")})
    assert [(check.name, check.detail) for check in verify(bundle_copy).failures if check.name != "handout"] == [
        (name, "is not the name of a file of a bundle")
    ]


@pytest.mark.parametrize("file", ["model.onnx", "reference.safetensors", "run.py"])
@pytest.mark.parametrize("kind", ["link", "pipe", "directory", "device"])
def test_only_a_regular_file_stands_for_one(bundle_copy, file, kind):
    path = bundle_copy / file
    data = path.read_bytes()
    path.unlink()
    match kind:
        case "link":
            (bundle_copy.parent / "elsewhere").write_bytes(data)
            path.symlink_to(bundle_copy.parent / "elsewhere")
        case "pipe":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
    (failure,) = [check for check in verify(bundle_copy).failures if check.name == file]
    assert failure.detail.startswith("is a " if kind != "directory" else ("is a ", "is missing"))


def test_a_pipe_in_the_place_of_the_manifest_is_an_error(bundle_copy):
    (bundle_copy / "manifest.json").unlink()
    os.mkfifo(bundle_copy / "manifest.json")
    with pytest.raises(BundleError, match=r"manifest\.json is a named pipe"):
        verify(bundle_copy)


def test_a_linked_manifest_is_an_error(bundle_copy):
    (bundle_copy / "manifest.json").rename(bundle_copy.parent / "m.json")
    (bundle_copy / "manifest.json").symlink_to(bundle_copy.parent / "m.json")
    with pytest.raises(BundleError, match="is a link: a bundle holds regular files only"):
        verify(bundle_copy)


def test_a_manifest_that_lists_no_model_or_reference_fails(bundle_copy):
    reseal(
        bundle_copy,
        lambda files: {
            name: digest for name, digest in files.items() if name not in ("model.onnx", "reference.safetensors")
        },
    )
    found = {check.name: check for check in verify(bundle_copy).checks}
    assert (found["model.onnx"].verdict, found["reference.safetensors"].verdict) == ("failed", "failed")
    assert found["outputs"].verdict != "passed"


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, safetensors.numpy.save({"other": np.zeros(1, np.float32)})])
def test_a_reference_that_is_none_fails(bundle_copy, content):
    rewrite(bundle_copy, {"reference.safetensors": content})
    assert [check.name for check in verify(bundle_copy).failures] == ["outputs"]


def test_a_protocol_that_takes_an_hour_is_not_followed(bundle_copy, monkeypatch):
    monkeypatch.setattr(engine, "measure_in_turns", lambda *_: pytest.fail("timed"))
    rewrite(bundle_copy, protocol=msgspec.structs.replace(QUICK, warmup_ms=3_600_000.0))
    assert detail(bundle_copy, "latency") == "its protocol 'quick' takes 72000 s, at most 600 are spent"


def test_a_protocol_beyond_any_use_is_an_error(bundle_copy):
    edit(bundle_copy, lambda text: text.replace(b'"warmup_ms": 0.0', b'"warmup_ms": 1000000000000.0'))
    with pytest.raises(BundleError, match=r"protocol\.warmup_ms") as caught:
        verify(bundle_copy)
    assert "\n" not in str(caught.value)


def test_brackets_without_end_are_an_error(bundle_copy):
    edit(
        bundle_copy,
        lambda text: text.replace(
            b'"preprocessing": {', b'"preprocessing": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b","
        ),
    )
    with pytest.raises(BundleError, match=r"manifest\.json"):
        verify(bundle_copy)

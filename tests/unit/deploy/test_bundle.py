import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import BundleError, bundle, load
from deploy.bundle import check_files, refuse_occupied, write_bundle


def test_what_was_written_is_read_again(made, tmp_path):
    files = {"model.onnx": b"graph", "notes.json": b"{}"}
    written = write_bundle(tmp_path / "deep" / "out", made.manifest, files)
    assert written == load(tmp_path / "deep" / "out")
    assert written.manifest.files == {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    assert {
        path.name: path.read_bytes() for path in written.directory.iterdir() if path.name != "manifest.json"
    } == files
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]


def test_the_manifest_begins_with_its_schema_and_ends_with_its_seal(made):
    text = (made.directory / "manifest.json").read_bytes()
    assert text.startswith(b'{\n  "schema": "bundle/3",')
    zeroed = text.replace(made.manifest.seal.encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == made.manifest.seal


def test_any_flipped_byte_is_found_by_the_name_of_its_file(bundle_copy):
    rng = random.Random(0)
    paths = sorted(bundle_copy.iterdir())
    for _ in range(100):
        path = rng.choice(paths)
        data = bytearray(path.read_bytes())
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)
        original = path.read_bytes()
        path.write_bytes(data)
        if path.name == "manifest.json":
            with pytest.raises(BundleError, match=r"manifest\.json was changed"):
                load(bundle_copy)
        else:
            assert check_files(load(bundle_copy)) == {path.name: "was changed"}
        path.write_bytes(original)
    assert check_files(load(bundle_copy)) == {}


@pytest.mark.parametrize("cut", [0, 1, 64, 200])
def test_a_truncated_manifest_is_found(bundle_copy, cut):
    path = bundle_copy / "manifest.json"
    path.write_bytes(path.read_bytes()[: -cut - 1])
    with pytest.raises(BundleError, match="was changed"):
        load(bundle_copy)


def test_missing_swapped_and_extra_files_are_named(bundle_copy):
    (bundle_copy / "architecture.json").unlink()
    (bundle_copy / "sub").mkdir()
    (bundle_copy / "sub" / "stranger").write_text("")
    model, reference = bundle_copy / "model.onnx", bundle_copy / "reference.safetensors"
    model.rename(bundle_copy / "x")
    reference.rename(model)
    (bundle_copy / "x").rename(reference)
    assert check_files(load(bundle_copy)) == {
        "architecture.json": "is missing",
        "model.onnx": "was changed",
        "reference.safetensors": "was changed",
        "sub/stranger": "is not in the manifest",
    }


def test_a_file_is_only_handed_out_as_it_was_written(bundle_copy):
    found = load(bundle_copy)
    assert found.read("model.onnx") == (bundle_copy / "model.onnx").read_bytes()
    (bundle_copy / "model.onnx").write_bytes(b"other")
    with pytest.raises(
        BundleError,
        match=r"model\.onnx was changed: build it again with `lathe export SOURCE --target onnxruntime --out NEW`",
    ):
        found.read("model.onnx")


def test_a_directory_without_a_manifest_is_no_bundle(tmp_path):
    with pytest.raises(BundleError, match="is not a bundle"):
        load(tmp_path)


def test_another_version_of_the_manifest_names_the_field(bundle_copy):
    path = bundle_copy / "manifest.json"
    seal = load(bundle_copy).manifest.seal.encode()
    blank = path.read_bytes().replace(seal, b"0" * 64).replace(b'"bundle/3"', b'"bundle/9"')
    path.write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode()))
    with pytest.raises(
        BundleError,
        match=r"is damaged: Invalid enum value 'bundle/9' - at `\$.schema`: export again, or read it by the version",
    ):
        load(bundle_copy)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"samples": -1}, "samples"),
        ({"budget_us": -5.0}, "budget_us"),
        ({"budget_us": 1e300}, "budget_us"),
        ({"inputs": {"x": [-1]}}, "inputs"),
        ({"outputs": 5}, "outputs"),
        ({"files": {"model.onnx": "a"}}, "files"),
        ({"chain": [{"name": "onnx", "sha256": "", "made_from": ""}]}, "sha256"),
        ({"layers": [{"name": "a", "kept": -1, "of": 2}]}, "kept"),
        ({"validation": [{"name": "a", "precision": "fp32", "verdict": "passed", "limit": -1}]}, "limit"),
        ({"schema": "bundle/1", "input_shape": [1], "outputs": 5}, "outputs"),
        ({"schema": "bundle/1", "input_shape": [1], "outputs": None}, "outputs"),
    ],
)
def test_values_that_cannot_be_are_named(bundle_copy, change, field):
    path = bundle_copy / "manifest.json"
    fields = json.loads(path.read_bytes()) | change
    blank = (
        json.dumps(
            {name: value for name, value in fields.items() if name != "seal"} | {"seal": "0" * 64}, indent=2
        ).encode()
        + b"\n"
    )
    path.write_bytes(blank.replace(b"0" * 64, hashlib.sha256(blank).hexdigest().encode()))
    with pytest.raises(BundleError, match=rf"manifest.json is damaged: .*`\$.*{field}") as caught:
        load(bundle_copy)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_in_the_place_of_the_network_of_an_older_bundle_is_not_waited_for(tmp_path):
    directory = tmp_path / "old"
    shutil.copytree(Path(__file__).parents[2] / "formats" / "bundle-1", directory)
    (directory / "model.onnx").unlink()
    os.mkfifo(directory / "model.onnx")
    assert list(load(directory).manifest.inputs) == ["input"]


def test_an_older_bundle_is_replaced(made, bundle_copy):
    write_bundle(bundle_copy, made.manifest, {"only": b"this"})
    assert sorted(path.name for path in bundle_copy.iterdir()) == ["manifest.json", "only"]
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]


def test_an_absent_or_empty_directory_is_free(tmp_path):
    refuse_occupied(tmp_path)
    refuse_occupied(tmp_path / "absent" / "below")


def test_a_bundle_that_a_person_changed_is_not_replaced(made, bundle_copy):
    (bundle_copy / "model.onnx").unlink()
    refuse_occupied(bundle_copy)  # nothing can be lost
    (bundle_copy / "README.md").write_text("my notes")
    with pytest.raises(BundleError, match=r"holds a bundle whose README\.md was changed, which would be lost"):
        write_bundle(bundle_copy, made.manifest, {"only": b"this"})
    assert (bundle_copy / "README.md").read_text() == "my notes"


def test_something_else_is_never_overwritten(bundle_copy, tmp_path):
    (bundle_copy / "notes.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"holds a bundle and also notes\.txt, which would be lost"):
        refuse_occupied(bundle_copy)
    (bundle_copy / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match="a bundle is in the way, and not as it was written"):
        refuse_occupied(bundle_copy)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match="is not a directory"):
        refuse_occupied(tmp_path / "file")
    with pytest.raises(BundleError, match="holds something else than a bundle"):
        refuse_occupied(tmp_path)


def test_a_full_disk_leaves_nothing_and_the_old_bundle_as_it_was(made, bundle_copy, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BundleError, match="cannot be written: No space left on device"):
        write_bundle(bundle_copy, made.manifest, {"only": b"this"})
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]
    assert check_files(load(bundle_copy)) == {}
    assert bundle.ONNX in load(bundle_copy).manifest.files


KILLED = """
import os, pathlib, signal, sys
from deploy import bundle, load

directory, call, after = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
owner = os if call == "fsync" else pathlib.Path
real = getattr(owner, call)

def until(*arguments):
    global after
    if after == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    after -= 1
    return real(*arguments)

setattr(owner, call, until)
bundle.write_bundle(directory, load(directory).manifest, {"model.onnx": b"fresh", "notes": b"fresh"})
"""


@pytest.mark.parametrize(("call", "after"), [("fsync", 0), ("fsync", 2), ("rename", 0), ("rename", 1)])
def test_a_killed_writer_leaves_no_half_bundle_and_the_next_one_cleans_up(made, bundle_copy, call, after):
    before = load(bundle_copy)
    done = subprocess.run(
        [sys.executable, "-P", "-c", KILLED, str(bundle_copy), call, str(after)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    if bundle_copy.exists():  # the old one, whole: it is moved away only once the new one is on the disk
        assert (load(bundle_copy), check_files(before)) == (before, {})
    else:
        assert (call, after) == ("rename", 1)
    assert len(list(bundle_copy.parent.iterdir())) == 2
    written = write_bundle(bundle_copy, made.manifest, {"only": b"this"})
    assert [path.name for path in bundle_copy.parent.iterdir()] == ["bundle"]
    assert check_files(written) == {}


def test_a_bundle_that_a_killed_writer_moved_away_comes_back(made, bundle_copy):
    bundle_copy.rename(bundle_copy.with_name(".bundle.999999999.old"))
    (bundle_copy.with_name(".bundle.999999999.old") / "mine").write_text("")
    with pytest.raises(BundleError, match="holds a bundle and also mine"):
        write_bundle(bundle_copy, made.manifest, {})
    assert (bundle_copy / "mine").exists()


def test_what_a_living_writer_has_beside_it_stays(made, tmp_path):
    theirs = tmp_path / f".out.{os.getppid()}.new"
    theirs.mkdir()
    write_bundle(tmp_path / "out", made.manifest, {})
    assert theirs.exists()


def test_a_bundle_without_its_manifest_is_one_all_the_same(bundle_copy):
    (bundle_copy / "manifest.json").unlink()
    with pytest.raises(
        BundleError, match=r"manifest\.json is missing after it was written: export again with `lathe export"
    ):
        load(bundle_copy)

"""What bad input gets: one line that says what was found and what fixes it, exit code 2, and nothing half-written."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from integration.conftest import run_lathe

CELL = "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|avg_pool_3x3~0|nor_conv_1x1~1|none~2|"


def refused(*arguments: object, cwd: Path = Path()) -> str:
    """The line by which `lathe ARGUMENTS` refuses."""
    done = run_lathe(*arguments, cwd=cwd)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("lathe: ")
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["space", "resnet"], ["unknown space 'resnet': try resnet", "lathe space --list"]),
        (
            ["profile", "resnet", "--out", "t.latency.jsonl"],
            ["unknown space 'resnet': try resnet", "lathe space --list"],
        ),
        (
            ["profile", "repvgg-mini", "--backend", "tflite", "--out", "t.latency.jsonl"],
            ["'tflite'", "onnxruntime, tensorrt, tensorrt-rtx"],
        ),
        (["profile", "repvgg-mini", "--protocol", "slow", "--out", "t.latency.jsonl"], ["'slow'", "default", "fast"]),
        (["profile", "repvgg-mini", "--networks", "-1", "--out", "t.latency.jsonl"], ["-1"]),
        (
            ["profile", "repvgg-mini", "--classes", "1", "--out", "t.latency.jsonl"],
            ["--classes must be from 2 to 1000000, found 1"],
        ),
        (["profile", "repvgg-mini"], ["--out"]),
        (["profile", "repvgg-mini", "--shard", "5/4", "--out", "t.latency.jsonl"], ["'5/4'", "1 to 4"]),
        (
            ["profile", "repvgg-mini", "--timing-cache", "none", "--out", "t.latency.jsonl"],
            ["--timing-cache none does not exist"],
        ),
        (
            ["profile", "repvgg-mini", "--save-timing-cache", "c", "--out", "t.latency.jsonl"],
            ["--save-timing-cache c", "'onnxruntime' has none"],
        ),
        (
            ["profile", "repvgg-mini", "--threads", "9999", "--out", "t.latency.jsonl"],
            ["--threads must be from 1 to 4096, found 9999"],
        ),
        (
            ["profile", "repvgg-mini", "--drift-limit", "0", "--out", "t.latency.jsonl"],
            ["--drift-limit must be from 1e-06 to 1, found 0"],
        ),
        (
            ["profile", "none.blocks.zip", "--out", "t.latency.jsonl"],
            ["none.blocks.zip does not exist", "lathe bundle"],
        ),
        (["profile", "none.blocks.zip", "--seed", "1", "--out", "t.latency.jsonl"], ["--seed 1", "lathe bundle"]),
        (["bundle", "resnet", "--out", "b.blocks.zip"], ["unknown space 'resnet'", "lathe space --list"]),
        (["bundle", "repvgg-mini", "--out", "nowhere/b.blocks.zip"], ["nowhere is not a directory: make it"]),
        (["bundle", "repvgg-mini", "--precision", "int8", "--out", "b.blocks.zip"], ["int8", "fp16"]),
        (["space", "prunet", "--resolution", "31"], ["at least 32", "31"]),
        (["space", "repvgg-mini", "--cells", "3"], ["--cells 3 is of spaces of cells", "nasbench201-small"]),
        (["space", "repvgg-mini", "--arch", "|none~0|"], ["repvgg-mini has no architecture strings", "nasbench201"]),
        (
            ["space", "nasbench201", "--arch", "|none~0|"],
            ["'|none~0|' is not an architecture of nasbench201", "skip_connect"],
        ),
        (
            ["space", "nasbench201", "--arch", "|conv~0|+|none~0|none~1|+|none~0|none~1|none~2|"],
            ["is not an architecture of nasbench201", "none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3"],
        ),
        (["space", "nasbench201", "--table", "x"], ["--table x predicts one network", "--arch"]),
        (["space", "nasbench201", "--arch", CELL, "--table", "x"], ["x does not exist"]),
        (["table", "show", "none.latency.jsonl"], ["none.latency.jsonl does not exist", "lathe profile"]),
        (["paper", "vgg"], ["unknown paper 'vgg'", "repvgg, pas, tas, vp-darts, prunet, gpunet and latencies"]),
        (["paper", "pas", "--table", "t"], ["--table t is of `lathe paper latencies`: leave it out for pas"]),
        (["paper", "latencies", "--table", "none"], ["none does not exist"]),
        (["verify", "none"], ["none"]),
        (["report", "none"], ["none"]),
        (["export", "none", "--out", "b"], ["none", "does not exist"]),
        (["export", __file__, "--out", "b"], [__file__, "is not an ONNX model"]),
        (["fly"], ["'fly' is unknown: choose one of space, bundle, profile"]),
        (["space", "repvgg-mini", "--colour", "red"], ["--colour"]),
    ],
)
def test_one_line_names_what_was_found_and_what_is_known(arguments, words, tmp_path):
    line = refused(*arguments, cwd=tmp_path)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--space": "prunet-cifar"}, ["prunet-cifar has none", "repvgg-mini"]),
        ({"--space": "resnet"}, ["unknown space 'resnet': try resnet", "lathe space --list"]),
        ({"--data": "cifar"}, ["unknown data 'cifar'", "digits or folder:PATH"]),
        ({"--data": "folder:empty"}, ["empty", "no images"]),
        ({"--data": "folder:nowhere"}, ["nowhere is not a folder"]),
        ({"--cost": "energy"}, ["energy", "latency", "macs"]),
        ({"--backend": "tensorrt-rtx"}, ["runtime.name 'onnxruntime'", "'tensorrt-rtx'"]),
        ({"--backend": "tflite"}, ["'tflite'", "onnxruntime, tensorrt, tensorrt-rtx"]),
        ({"--precision": "fp16"}, ["precision 'fp32'", "'fp16'"]),
        (
            {"--budget-fraction": None, "--budget-ms": "0.001"},
            ["0.001 ms cannot be met", "the smallest network of repvgg-mini takes"],
        ),
        ({"--budget-fraction": None}, ["--budget-ms", "--budget-fraction"]),
        ({"--budget-fraction": "-0.5"}, ["--budget-fraction must be from 1e-06 to 1000, found -0.5"]),
        (
            {"--space": "resnet20/widths"},
            ["is of the space repvgg-mini", "`lathe profile resnet20/widths", "--classes 10"],
        ),
        ({"--search-epochs": "0"}, ["--search-epochs must be from 1"]),
    ],
)
def test_search_refuses(change, words, search_command, tmp_path):
    (tmp_path / "empty").mkdir()
    flags = dict(zip(search_command[2::2], search_command[3::2], strict=True)) | change
    arguments = [part for flag, value in flags.items() if value is not None for part in (flag, value)]
    line = refused("search", "pas", *arguments, "--out", "run", cwd=tmp_path)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--budget-fraction": "0.001"}, ["cannot be met: the smallest network of repvgg-mini takes"]),
        ({"--channel-multiple": "512"}, ["layer block0 has one option", "--channel-multiple 512", "--exclude block0"]),
        ({"--searched": "both"}, ["--searched both: no stage of repvgg-mini can lose a block", "--searched widths"]),
        ({"--samples": "9"}, ["--samples 9 is above the number of options of layer block0"]),
        ({"--tolerance": "0"}, ["--tolerance must be above 0"]),
    ],
)
def test_a_search_of_sizes_refuses(change, words, search_command, tmp_path):
    flags = dict(zip(search_command[2::2], search_command[3::2], strict=True)) | change
    known = [part for flag, value in flags.items() if flag not in ("--beta", "--policy-lr") for part in (flag, value)]
    line = refused("search", "tas", *known, "--out", "run", cwd=tmp_path)
    assert all(word in line for word in words), line
    assert not (tmp_path / "run").exists()


def test_unknown_method_lists_the_known(search_command, tmp_path):
    line = refused("search", "darts", *search_command[2:], "--out", tmp_path / "run")
    assert line.startswith("lathe: 'darts' is unknown: choose one of pas, ")


def test_a_table_without_the_classes_of_the_data_names_the_command(search_command, tmp_path):
    from PIL import Image

    for name in ("a", "b", "c"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(4):
            Image.new("RGB", (32, 32), (index, 0, 0)).save(tmp_path / "images" / name / f"{index}.png")
    command = [f"folder:{tmp_path / 'images'}" if word == "digits" else word for word in search_command]
    line = refused(*command, "--out", tmp_path / "run")
    assert "c_out=3" in line
    assert "lathe profile repvgg-mini" in line
    assert "--classes 3" in line


def test_a_run_is_not_overwritten_by_another(search_command, run):
    assert "holds another run: its settings.seed is 0, asked for 7" in refused(
        *search_command, "--seed", "7", "--out", run
    )


def test_a_directory_that_is_not_a_run_is_left_alone(search_command, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert "is not a run of a search: choose another --out" in refused(*search_command, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_unknown_target_lists_the_known(run, tmp_path):
    line = refused("export", run, "--target", "coreml", "--out", tmp_path / "bundle")
    assert "'coreml'" in line
    assert "onnxruntime, tensorrt, tensorrt-rtx" in line
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_what_is_not_a_bundle_alone(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    assert str(tmp_path) in refused("export", run, "--out", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def edited(table: Path, tmp_path: Path, line: int, **fields: object) -> Path:
    lines = table.read_text().splitlines()
    lines[line - 1] = json.dumps(json.loads(lines[line - 1]) | fields, separators=(",", ":"))
    path = tmp_path / table.name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("field", ["median_us", "status", "samples_us"])
def test_an_edited_table_names_line_and_field(field, table, tmp_path):
    path = edited(
        table, tmp_path, 7, **{field: {"median_us": 1.5, "status": "run_failed", "samples_us": "many"}[field]}
    )
    line = refused("table", "show", path)
    assert "line 7" in line
    assert field in line


def test_a_deleted_line_is_found(table, tmp_path):
    lines = table.read_text().splitlines()
    path = tmp_path / table.name
    path.write_text("\n".join(lines[:4] + lines[5:]) + "\n")
    assert "line 5, field check" in refused("table", "show", path)


def test_a_table_of_another_backend_is_not_continued(table, tmp_path):
    path = tmp_path / table.name
    shutil.copy(table, path)
    before = path.read_bytes()
    line = refused("profile", "repvgg-mini", "--protocol", "fast", "--threads", "2", "--out", path)
    assert "device.threads 1" in line
    assert "2" in line
    assert path.read_bytes() == before


def test_a_torn_last_line_is_dropped_and_measured_again(tmp_path):
    path = tmp_path / "t.latency.jsonl"
    command = (
        "profile",
        "repvgg-mini",
        "--backend",
        "simulated:seed=0",
        "--protocol",
        "fast",
        "--shard",
        "3/100",
        "--out",
        path,
        "--json",
    )
    assert run_lathe(*command).returncode == 0
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    done = run_lathe(*command)
    assert done.returncode == 0, done.stderr
    assert "torn" in done.stderr
    assert path.read_bytes().startswith(whole[:-20].rpartition(b"\n")[0])
    rows = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert {row["key"] for row in rows} == {json.loads(line)["key"] for line in whole.splitlines()[1:]}


def test_an_onnx_file_that_cannot_ship_is_refused_in_one_line(tmp_path):
    weight = numpy_helper.from_array(np.ones((2, 3, 1, 1), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
        for name, shape in (("x", [1, 3, 4, 4]), ("y", [1, 2, 4, 4]))
    ]
    graph = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], "first")], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "sound.onnx")
    (tmp_path / "text.npy").write_text("1, 2, 3")
    np.save(tmp_path / "small.npy", np.ones((2, 3, 3, 3), np.float32))
    onnx.save(model, tmp_path / "apart.onnx", save_as_external_data=True, location="gone.bin", size_threshold=0)
    (tmp_path / "gone.bin").unlink()
    before = sorted(tmp_path.iterdir())
    for arguments, words in [
        (["apart.onnx"], ["numbers of tensor 'w' are in 'gone.bin', which is missing", "copy it there"]),
        (["sound.onnx", "--samples", "text.npy"], ["text.npy is not an .npy file"]),
        (["sound.onnx", "--samples", "small.npy"], ["[2, 3, 3, 3]", "[samples, 3, 4, 4]"]),
        (["sound.onnx", "--optimization-level", "5"], ["'onnxruntime' builds no engine"]),
    ]:
        line = refused("export", *arguments, "--out", "bundle", cwd=tmp_path)
        assert all(word in line for word in words), line
    assert sorted(tmp_path.iterdir()) == before

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from latency import BlockSpec, LatencyTable, Workload, blocks_zip
from latency.__main__ import main
from latency.profile import overhead_onnx

KEYS = [f"conv(h=1,w=1)[c_in=1,c_out={width}]" for width in (1, 2, 3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "toy.blocks.zip"
    specs = [BlockSpec.parse(key) for key in KEYS]
    works = [*(Workload.block(spec, overhead_onnx) for spec in specs), Workload.network(specs, overhead_onnx)]
    blocks_zip.write(path, works, lowering="7", space="toy", precision="fp32")
    return path


def test_it_measures_a_bundle_with_neither_torch_nor_the_rest(bundle, tmp_path):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in {'torch', 'search', 'deploy', 'reparam', 'lathe', 'tyro', 'rich', 'onnxscript'}:\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from latency.__main__ import main\n"
        f"sys.exit(main(['profile', {str(bundle)!r}, '--backend', 'onnxruntime', '--protocol', 'fast', '--out', 't.latency.jsonl']))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    table = LatencyTable.load(tmp_path / "t.latency.jsonl")
    assert [row.key for row in table.rows if row.kind == "block"] == KEYS
    assert (table.header.space, table.header.lowering, table.header.precision) == ("toy", "7", "fp32")
    assert table.header.bundle_sha256 == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert any(
        line.startswith("latency: 5/5 network-") and line.endswith(", 0:00:00 left")
        for line in done.stderr.splitlines()
    )


def test_shards_measure_everything_once_and_each_its_overhead(bundle, tmp_path):
    rows = []
    for index in (1, 2):
        out = tmp_path / f"{index}.latency.jsonl"
        given = [
            "profile",
            str(bundle),
            "--backend",
            "onnxruntime",
            "--protocol",
            "fast",
            "--out",
            str(out),
            "--shard",
            f"{index}/2",
        ]
        assert main(given) == 0
        rows += [row.key for row in LatencyTable.load(out).rows]
    assert rows.count("overhead") == 2
    assert sorted(key for key in rows if key.startswith("conv")) == KEYS
    assert sum(key.startswith("network-") for key in rows) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bundle": "none.blocks.zip"}, "none.blocks.zip does not exist"),
        ({"--backend": "tflite"}, "'tflite' is unknown"),
        ({"--shard": "3/2"}, "shard '3/2'"),
        ({"--protocol": "slow"}, "'slow'"),
        ({"--threads": "two"}, "invalid int value: 'two'"),
        ({"--colour": "red"}, "--colour"),
        ({"--anchors": "9"}, "--anchors 9 is of --like"),
        ({"--like": "none.latency.jsonl"}, "none.latency.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(bundle, tmp_path, change, words, capsys):
    out = tmp_path / "t.latency.jsonl"
    flags = {"bundle": str(bundle), "--backend": "onnxruntime", "--out": str(out), **change}
    assert main(["profile", flags.pop("bundle"), *(word for flag in flags.items() for word in flag)]) == 2
    said = capsys.readouterr()
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert said.out == ""
    assert not out.exists()


def test_a_bundle_of_another_precision_than_the_backends_is_refused(tmp_path, capsys):
    path, out = tmp_path / "half.blocks.zip", tmp_path / "t.latency.jsonl"
    blocks_zip.write(
        path, [Workload.block(BlockSpec.parse(KEYS[0]), overhead_onnx)], lowering="1", space="toy", precision="fp16"
    )
    assert main(["profile", str(path), "--backend", "onnxruntime", "--out", str(out)]) == 2
    assert "'fp32', not 'fp16'" in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_is_transferred_from_an_old_table(tmp_path, capsys):
    path, old, out = (tmp_path / name for name in ("toy.blocks.zip", "old.latency.jsonl", "new.latency.jsonl"))
    specs = [BlockSpec.parse(f"conv(h=1,w=1)[c_in=1,c_out={width}]") for width in range(1, 13)]
    blocks_zip.write(
        path, [Workload.block(spec, overhead_onnx) for spec in specs], lowering="7", space="toy", precision="fp32"
    )
    given = ["profile", str(path), "--backend", "onnxruntime", "--protocol", "fast"]
    assert main([*given, "--out", str(old)]) == 0
    assert main([*given, "--out", str(out), "--like", str(old), "--anchors", "6"]) == 0
    assert "latency: 6 blocks measured, 6 transferred, " in capsys.readouterr().err
    table = LatencyTable.load(out)
    assert table.header.like[0].sha256 == hashlib.sha256(old.read_bytes()).hexdigest()
    assert [row.status for row in table.rows].count("transferred") == 6


def test_no_command_is_bad_input_too(capsys):
    assert main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1

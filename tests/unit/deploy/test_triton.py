import msgspec
import pytest

from deploy import triton
from deploy.bundle import Bundle
from deploy.errors import BundleError


def test_a_bundle_is_a_model_repository(made, tmp_path):
    out = tmp_path / "repository"
    name = made.directory.name
    triton.write_repository(made, out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        f"{name}/config.pbtxt",
        f"{name}/1/model.onnx",
    }
    assert (out / name / "1" / "model.onnx").read_bytes() == (made.directory / "model.onnx").read_bytes()
    text = (out / name / "config.pbtxt").read_text()
    for words in (
        f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0',
        'input [\n  { name: "input" data_type: TYPE_FP32 dims: [ 1, 3, 8, 8 ] }\n]',
        'output [\n  { name: "output" data_type: TYPE_FP32 dims: [ 1, 4 ] }\n]',
        "KIND_CPU",
    ):
        assert words in text
    (out / name / "1" / "model.onnx").write_bytes(b"older")
    triton.write_repository(made, out)
    assert (out / name / "1" / "model.onnx").read_bytes() != b"older"
    (out / name / "mine").touch()
    with pytest.raises(BundleError, match="repository exists and is not a model repository that Lathe wrote"):
        triton.write_repository(made, out)
    assert (out / name / "mine").exists()


def test_an_engine_is_a_plan_and_a_scalar_has_a_shape(made):
    manifest = msgspec.structs.replace(
        made.manifest, target="tensorrt", inputs={"input": ()}, dtypes={"input": "int64", "output": "float16"}
    )
    text = triton.config(manifest, "net")
    assert 'platform: "tensorrt_plan"' in text
    assert "data_type: TYPE_INT64 dims: [ 1 ] reshape { shape: [ ] }" in text
    assert "TYPE_FP16" in text
    assert "KIND_GPU" in text
    assert "parameters" not in text


def test_what_triton_has_no_backend_for_is_refused(made, tmp_path):
    rtx = Bundle(made.directory, msgspec.structs.replace(made.manifest, target="tensorrt-rtx"))
    with pytest.raises(BundleError, match="Triton has no backend for tensorrt-rtx: choose onnxruntime or tensorrt"):
        triton.write_repository(rtx, tmp_path / "repository")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="empty exists"):
        triton.require_repository("onnxruntime", tmp_path / "empty")

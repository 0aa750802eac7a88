import os

import pytest

from latency import BlockSpec, LatencyError, Workload, blocks_zip
from latency.outputs import BLOCKS, NEW, PAGE, PICTURE, TABLE, begun, require_directory, require_file
from latency.profile import overhead_onnx

OURS = {
    TABLE: b'{"schema":"latency-table/1","device":{}}\n',
    PAGE: b'<!doctype html>\n<meta name="generator" content="Lathe">\n',
    PICTURE: b"\x89PNG\r\n\x1a\n....tEXtSoftware\0Lathe....",
}


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.name)
def test_only_what_was_written_here_is_replaced(kind, tmp_path):
    path = tmp_path / "out"
    require_file(path, kind, flag="--out")
    path.write_bytes(b"")
    require_file(path, kind, flag="--out")
    for other, content in OURS.items():
        path.write_bytes(content)
        if other is kind:
            require_file(path, kind, flag="--out")
        else:
            with pytest.raises(
                LatencyError, match=f"--out {path} exists and is not {kind.name} of Lathe: choose another name"
            ):
                require_file(path, kind, flag="--out")
    require_file(path, kind, flag="--out", force=True)
    assert sorted(tmp_path.iterdir()) == [path]


def test_a_text_about_a_report_is_not_one(tmp_path):
    (tmp_path / "notes.html").write_bytes(b"my notes on " + OURS[PAGE])
    with pytest.raises(LatencyError, match="is not a report of Lathe"):
        require_file(tmp_path / "notes.html", PAGE, flag="--out", force=False)


def test_a_block_bundle_is_known_by_its_index(tmp_path):
    path = tmp_path / "toy.blocks.zip"
    works = [Workload.block(BlockSpec.parse("conv(h=1,w=1)[c_in=1,c_out=1]"), overhead_onnx)]
    for _ in range(2):
        blocks_zip.write(path, works, lowering="7", space="toy", precision="fp32")
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("index.json", '{"mine": true}')
    with pytest.raises(LatencyError, match="is not a block bundle"):
        require_file(path, BLOCKS, flag="--out")


def test_what_says_nothing_of_its_maker_is_never_replaced_unasked(tmp_path):
    (tmp_path / "cache").write_bytes(b"opaque")
    with pytest.raises(LatencyError, match="would be lost"):
        require_file(tmp_path / "cache", NEW, flag="--save-timing-cache")
    require_file(tmp_path / "cache", NEW, flag="--save-timing-cache", force=True)


def no_file(tmp_path, kind: str):
    path = tmp_path / "out"
    match kind:
        case "directory":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "link":
            (tmp_path / "precious").write_bytes(OURS[PAGE])
            path.symlink_to(tmp_path / "precious")
        case "dangling link":
            path.symlink_to("nowhere")
        case "loop":
            path.symlink_to(path)
        case "device":
            return "/dev/null"
        case "parent":
            return tmp_path / "none" / "out"
        case "file as parent":
            (tmp_path / "file").write_text("")
            return tmp_path / "file" / "out"
        case "long":
            return tmp_path / ("n" * 250)  # a name that fits, and its partial one does not
        case "proc":
            return "/proc/out"
        case "root" | ".." | ".":
            return {"root": "/"}.get(kind, kind)
    return path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "directory",
        "pipe",
        "link",
        "dangling link",
        "loop",
        "device",
        "parent",
        "file as parent",
        "long",
        "proc",
        "root",
        "..",
        ".",
    ],
)
def test_what_is_no_place_for_a_file(kind, force, tmp_path):
    path = no_file(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LatencyError, match=r"^--out .*: "):
        require_file(path, PAGE, flag="--out", force=force)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "kind", ["pipe", "link", "dangling link", "loop", "device", "file as parent", "long", "proc", "root", "..", "."]
)
def test_what_is_no_place_for_a_directory(kind, tmp_path):
    path = no_file(tmp_path, kind)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(LatencyError, match=r"^--out .*: "):
        require_directory(path)
    assert sorted(tmp_path.iterdir()) == before


def test_missing_parents_are_made_where_the_writer_makes_them(tmp_path):
    require_file(tmp_path / "a" / "b" / "t.latency.jsonl", TABLE, flag="--out", parents=True)
    require_directory(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_bundle_gets_no_further_file(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "manifest.json").write_text('{\n  "schema": "bundle/1"')
    (tmp_path / "link").symlink_to(tmp_path / "b")
    for path in (tmp_path / "b" / "page.html", tmp_path / "b" / "c" / "page.html", tmp_path / "link" / "page.html"):
        with pytest.raises(LatencyError, match="inside the bundle"):
            require_file(path, PAGE, flag="--out", force=True)
        with pytest.raises(LatencyError, match="inside the bundle"):
            require_directory(path)


def test_begun(tmp_path):
    path = tmp_path / "t"
    assert not begun(path)
    path.write_bytes(b"")
    assert not begun(path)
    path.write_bytes(OURS[TABLE])
    assert begun(path)

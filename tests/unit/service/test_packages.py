"""Packages that are good, and every way of being bad that a directory can be given."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from autoencoder.v1 import model_pb2
from service import packages, plans
from service.errors import PackageError
from service.graphs import check_graph
from tests import tiny


def edit_manifest(package: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = package / packages.MANIFEST
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace(package: Path, name: str, content: bytes) -> None:
    """Put other content into a package and make the manifest agree with it."""
    (package / name).write_bytes(content)

    def change(manifest: dict[str, Any]) -> None:
        for file in manifest["files"]:
            if file["name"] == name:
                file.update(sha256=hashlib.sha256(content).hexdigest(), sizeBytes=str(len(content)))

    edit_manifest(package, change)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return tiny.write(tmp_path)


def refused(package: Path) -> PackageError:
    with pytest.raises(PackageError) as caught:
        packages.read(package)
    return caught.value


def test_what_was_written_is_read(package: Path) -> None:
    read = packages.read(package)
    assert read.manifest.name == "tiny"
    assert (read.input_shape, read.latent_shape, read.output_shape) == ((4, 4), (3,), (4, 4))
    assert read.encoder == (package / "encoder.onnx").read_bytes()
    packages.check_golden(read, tiny.encode, tiny.decode)


def test_writing_leaves_nothing_else_behind(package: Path) -> None:
    assert [path.name for path in package.parent.iterdir()] == ["1"]
    assert sorted(path.name for path in package.iterdir()) == [
        "decoder.onnx", "encoder.onnx", "golden.npz", "model.json",
    ]  # fmt: skip


def test_writing_a_bad_package_leaves_what_was_there(package: Path) -> None:
    before = (package / "model.json").read_bytes()
    with pytest.raises(PackageError, match=r"encoder\.onnx: is not an ONNX file"):
        packages.write(package.parent.parent, tiny.manifest(), tiny.files() | {"encoder.onnx": b"nonsense"})
    assert (package / "model.json").read_bytes() == before
    assert [path.name for path in package.parent.iterdir()] == ["1"]


def test_writing_again_replaces(package: Path) -> None:
    manifest = tiny.manifest()
    manifest.description = "newer"
    packages.write(package.parent.parent, manifest, tiny.files())
    assert packages.read(package).manifest.description == "newer"
    assert packages.next_version(package.parent.parent, "tiny") == 2
    assert packages.next_version(package.parent.parent, "other") == 1


def test_the_same_package_is_the_same_bytes(tmp_path: Path) -> None:
    first, second = tiny.write(tmp_path / "a"), tiny.write(tmp_path / "b")
    assert (first / "model.json").read_bytes() == (second / "model.json").read_bytes()


def test_find_takes_versions_in_the_order_of_numbers_and_nothing_else(tmp_path: Path) -> None:
    for version in (10, 9, 1):
        tiny.write(tmp_path, version=version)
    tiny.write(tmp_path, "another")
    (tmp_path / "README.md").write_text("no package")
    (tmp_path / "tiny" / "draft").mkdir()
    found = [(path.parent.name, path.name) for path in packages.find(tmp_path)]
    assert found == [("another", "1"), ("tiny", "1"), ("tiny", "9"), ("tiny", "10")]
    with pytest.raises(PackageError, match="is not a directory"):
        packages.find(tmp_path / "nowhere")


def test_a_directory_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def listed(path: Path) -> list[Path]:
        if path.name == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return [path / name for name in os.listdir(path)]

    (tmp_path / "closed").mkdir()
    monkeypatch.setattr(Path, "iterdir", listed)
    with pytest.raises(PackageError, match=r"/closed: cannot be read: Permission denied"):
        packages.find(tmp_path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m.update(name="Tiny!"), "name: lower-case letters"),
        (lambda m: m.update(name="other"), "name and version: other/1, but the directory is tiny/1"),
        (lambda m: m.update(version=2), "name and version: tiny/2, but the directory is tiny/1"),
        (lambda m: m.pop("version"), "version: from 1"),
        (lambda m: m["input"].pop("rowShape"), "input.rowShape: 1 to 4 dimensions"),
        (lambda m: m["input"].update(rowShape=["4", "-4"]), "input.rowShape"),
        (lambda m: m["input"].update(rowShape=["99999", "99999"]), "input.rowShape"),
        (lambda m: m["latent"].update(dtype="DATA_TYPE_UINT8"), "latent.dtype: must be DATA_TYPE_FLOAT32"),
        (lambda m: m["output"].pop("kind"), "output.kind: must be given"),
        (lambda m: m["output"].update(rowShape=["16"]), "output.rowShape: must be the input's [4, 4]"),
        (lambda m: m["input"].update(minimum=5.0), "input: minimum 5.0 must not be above maximum 1.0"),
        (lambda m: m["latent"].update(maximum="Infinity"), "latent: minimum 0.0 must not be above maximum inf"),
        (lambda m: m.update(operations=[]), "operations: at least one"),
        (lambda m: m.pop("corruption"), "OPERATION_DENOISE must be listed exactly where there is a corruption"),
        (lambda m: m.update(reconstructionErrorQuantiles=[1.0]), "at least two finite numbers"),
        (lambda m: m.update(reconstructionErrorQuantiles=[1.0, 0.5]), "never fall"),
        (lambda m: m.update(reconstructionErrorQuantiles=[1.0, "Infinity"]), "at least two finite numbers"),
        (lambda m: m.update(precision=9), "precision: must be a known one; got 9"),
        (lambda m: m.update(precision="PRECISION_INT8"), "parity.goldenAbsoluteTolerance: must be given"),
        (lambda m: m.update(parity={"goldenAbsoluteTolerance": 0.5}), "exactly where precision is below FLOAT32"),
        (
            lambda m: m.update(precision="PRECISION_FLOAT16", parity={"goldenAbsoluteTolerance": "Infinity"}),
            "finite and above 0",
        ),
        (lambda m: m["files"].pop(0), "files: must list decoder.onnx"),
        (lambda m: m["files"].append(m["files"][0]), "files: a name is listed twice"),
        (lambda m: m["files"][1].update(name="../encoder.onnx"), "files: a plain name inside the package"),
        (lambda m: m["files"].append(m["files"][0] | {"name": "model.json"}), "files: a plain name inside the package"),
        (lambda m: m["files"][0].update(sizeBytes=str(1 << 40)), "more than"),
        (lambda m: [file.update(sizeBytes=str(1 << 30)) for file in m["files"]], f"{3 << 30} bytes together"),
        (lambda m: m["files"][0].update(sha256="0" * 64), "decoder.onnx: sha256 is"),
        (lambda m: m["files"][0].update(sizeBytes="3"), "decoder.onnx: has"),
    ],
)
def test_a_wrong_manifest_is_refused_with_the_rule(
    package: Path, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    edit_manifest(package, change)
    assert says in str(refused(package))


def test_a_manifest_of_a_later_version_is_read(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest.update(fieldOfTheFuture=[1]))
    assert packages.read(package).manifest.name == "tiny"


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{", b"\xff\xfe", b'{"name": 3}', b'{"version": "many"}', b"[" * 100_000]
)
def test_a_manifest_that_is_none_is_refused(package: Path, content: bytes) -> None:
    (package / "model.json").write_bytes(content)
    assert refused(package).file == "model.json"


@pytest.mark.parametrize("scale", [[1.0], [1.0] * 15 + [0.0], [1.0] * 15 + [-1.0], [1.0] * 15 + ["NaN"]])
def test_a_scale_that_is_not_one_positive_number_an_element_is_refused(package: Path, scale: list[object]) -> None:
    edit_manifest(package, lambda manifest: manifest.update(rowScale=scale))
    assert "rowScale: none, or 16 finite numbers above 0" in str(refused(package))


def test_golden_outputs_are_compared_in_units_of_the_scale(package: Path) -> None:
    def decode(latents: packages.Rows) -> packages.Rows:
        return tiny.decode(latents) + np.float32(0.05)

    with pytest.raises(PackageError, match="differ"):
        packages.check_golden(packages.read(package), tiny.encode, decode)
    edit_manifest(package, lambda manifest: manifest.update(rowScale=[1000.0] * 16))
    packages.check_golden(packages.read(package), tiny.encode, decode)
    edit_manifest(package, lambda manifest: manifest.update(rowScale=[1000.0] * 15 + [0.1]))
    with pytest.raises(PackageError, match="differ"):
        packages.check_golden(packages.read(package), tiny.encode, decode)


def test_a_file_that_changed_is_refused(package: Path) -> None:
    path = package / "encoder.onnx"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    error = refused(package)
    assert error.file == "encoder.onnx"
    assert "sha256" in error.rule


def test_a_truncated_graph_is_refused(package: Path) -> None:
    replace(package, "encoder.onnx", (package / "encoder.onnx").read_bytes()[:-40])
    error = refused(package)
    assert error.file == "encoder.onnx"


def test_a_missing_file_is_refused(package: Path) -> None:
    (package / "decoder.onnx").unlink()
    assert str(refused(package)) == "decoder.onnx: cannot be read: No such file or directory"


def test_a_symbolic_link_is_refused(package: Path, tmp_path: Path) -> None:
    (package / "encoder.onnx").rename(tmp_path / "elsewhere.onnx")
    (package / "encoder.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    assert refused(package).file == "encoder.onnx"


def test_a_pipe_is_refused_and_does_not_block(package: Path) -> None:
    (package / "encoder.onnx").unlink()
    os.mkfifo(package / "encoder.onnx")
    assert str(refused(package)) == "encoder.onnx: is not a regular file"


def test_weights_in_another_file_are_refused(package: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 192)
    model = tiny.encoder()
    (weights,) = [tensor for tensor in model.graph.initializer if tensor.name == "weights"]
    weights.ClearField("raw_data")
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=str(secret))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "keeps the weights 'weights' in another file" in str(refused(package))


def test_a_mention_of_another_file_is_refused_even_where_the_weights_are_inside(package: Path) -> None:
    model = tiny.encoder()
    model.graph.initializer[0].external_data.add(key="location", value="weights.bin")
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "in another file" in str(refused(package))


def test_weights_in_another_file_inside_a_subgraph_are_refused(package: Path) -> None:
    outside = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../../etc/passwd")
    branch = helper.make_graph(
        [helper.make_node("Identity", ["hidden"], ["chosen"])],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [1])],
        [outside],
    )
    model = tiny.encoder()
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "condition"))
    model.graph.node.append(helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "keeps the weights 'hidden' in another file" in str(refused(package))


def hidden_weights(form: str) -> onnx.ModelProto:
    """An encoder with one more tensor, which nothing uses, in another file."""
    outside = numpy_helper.from_array(np.ones(1, np.float32), "hidden")
    outside.data_location = TensorProto.EXTERNAL
    outside.external_data.add(key="location", value="../../etc/passwd")
    indices = numpy_helper.from_array(np.zeros(1, np.int64), "indices")
    sparse = helper.make_sparse_tensor(outside, indices, [1])
    model = tiny.encoder()
    if form == "sparse initializer":
        model.graph.sparse_initializer.append(sparse)
    else:
        attribute: dict[str, Any] = {"value": outside} if form == "tensor" else {"sparse_value": sparse}
        model.graph.node.append(helper.make_node("Constant", [], ["unused"], **attribute))
    return model


@pytest.mark.parametrize("form", ["sparse initializer", "tensor", "sparse tensor"])
def test_weights_in_another_file_are_refused_wherever_they_are_named(package: Path, form: str) -> None:
    replace(package, "encoder.onnx", hidden_weights(form).SerializeToString())
    assert "keeps the weights 'hidden' in another file" in str(refused(package))


def test_weights_may_be_named_among_the_inputs_as_old_exporters_do(package: Path) -> None:
    model = tiny.encoder()
    model.graph.input.append(helper.make_tensor_value_info("weights", TensorProto.FLOAT, tiny.ENCODER_WEIGHTS.shape))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert packages.read(package).encoder == model.SerializeToString()


def test_functions_and_operators_of_a_subgraph_are_refused(package: Path) -> None:
    model = tiny.encoder()
    model.functions.append(helper.make_function("", "Own", ["x"], ["y"], [], [helper.make_opsetid("", 20)]))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "local functions" in str(refused(package))
    branch = helper.make_graph(
        [helper.make_node("Own", [], ["chosen"], domain="com.example")],
        "branch",
        [],
        [helper.make_tensor_value_info("chosen", TensorProto.FLOAT, [1])],
    )
    model = tiny.encoder()
    model.graph.node.append(helper.make_node("If", ["condition"], ["unused"], then_branch=branch, else_branch=branch))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "com.example.Own" in str(refused(package))


def test_operators_outside_the_standard_are_refused(package: Path) -> None:
    model = tiny.encoder()
    model.graph.node[1].domain = "com.example"
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "com.example.MatMul" in str(refused(package))
    model.graph.node[1].domain = ""
    model.opset_import.append(helper.make_opsetid("com.example", 1))
    replace(package, "encoder.onnx", model.SerializeToString())
    assert "com.example" in str(refused(package))


def test_another_signature_is_refused(package: Path) -> None:
    fixed = tiny.encoder()
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    replace(package, "encoder.onnx", fixed.SerializeToString())
    assert "free batch dimension, is FLOAT [1, 4, 4]" in str(refused(package))
    replace(package, "encoder.onnx", tiny.decoder().SerializeToString())
    assert "input must be FLOAT [batch, 4, 4]" in str(refused(package))
    unknown = tiny.encoder()
    unknown.graph.input[0].type.tensor_type.elem_type = 999
    replace(package, "encoder.onnx", unknown.SerializeToString())
    assert "free batch dimension, is unknown type 999 [-1, 4, 4]" in str(refused(package))
    two = tiny.encoder()
    two.graph.output.append(two.graph.output[0])
    replace(package, "encoder.onnx", two.SerializeToString())
    assert "must have one output, has 2" in str(refused(package))


def test_golden_files_that_are_none_are_refused(package: Path, tmp_path: Path) -> None:
    rows = tiny.rows(2)
    latents = tiny.encode(rows)
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, rows=rows, latents=latents, reconstructions=np.array([object()] * 2))
    for content in (
        b"",
        b"PK\x03\x04",
        pickled.read_bytes(),
        tiny.npz(rows=rows, latents=latents),
        tiny.npz(rows=rows[:1], latents=latents, reconstructions=rows),
        tiny.npz(rows=rows[:0], latents=latents[:0], reconstructions=rows[:0]),
        tiny.npz(rows=rows * np.float32(np.nan), latents=latents, reconstructions=rows),
        tiny.npz(rows=rows.astype(np.float64), latents=latents, reconstructions=rows),
    ):
        replace(package, "golden.npz", content)
        assert refused(package).file == "golden.npz"


def test_domains_that_are_not_utf8_are_refused_like_any_other() -> None:
    model = tiny.encoder()
    for name in ("com.example", "XX"):
        model.opset_import.add(domain=name, version=1)
    content = model.SerializeToString().replace(b"XX", b"\xff\xfe")
    with pytest.raises(PackageError, match="uses operators outside the ONNX standard"):
        check_graph("encoder.onnx", content, tiny.ROW_SHAPE, (tiny.LATENT,))


def test_golden_arrays_that_only_claim_to_be_large_take_no_memory(package: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (17179869184,)}".ljust(117) + b"\n"
    replace(package, "golden.npz", golden_member(b"\x93NUMPY\x01\x00\x76\x00" + header))
    assert "golden.npz: unpacks to 687194" in str(refused(package))


def test_a_size_that_is_no_number_makes_no_signature(package: Path) -> None:
    assert plans.signature(package) is not None
    edit_manifest(package, lambda manifest: manifest["files"][0].update(sizeBytes=float("inf")))
    assert plans.signature(package) is None


def test_the_text_of_a_refusal_is_short_enough_for_a_header(package: Path) -> None:
    edit_manifest(package, lambda manifest: manifest.update(name="n" * 100_000))
    assert len(str(refused(package))) < 1100


def golden_member(content: bytes, name: str = "rows.npy", *, encrypted: bool = False) -> bytes:
    """A golden file with this in the place of its rows."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, content)
        for other, array in (("latents", tiny.encode(tiny.rows(1))), ("reconstructions", tiny.rows(1))):
            with archive.open(f"{other}.npy", "w") as member:
                np.save(member, array)
    packed = bytearray(stream.getvalue())
    if encrypted:
        packed[6] |= 1
        packed[packed.index(b"PK\x01\x02") + 8] |= 1
    return bytes(packed)


def npy(header: str, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + (len(header) + 1).to_bytes(2, "little") + header.encode() + b"\n" + data


@pytest.mark.parametrize(
    "content",
    [
        golden_member(b"bytes", "rows"),
        golden_member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 60, 4, 4)}")),
        golden_member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1152921504606846976, 4, 4)}")),
        golden_member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776000, 4, 4)}")),
        golden_member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4, 4)}")),
        golden_member(npy("(" * 5000)),
        golden_member(npy("{'descr': '''")),
        golden_member(npy("{'descr': '<f4', 'fortran_order': False, 'shape': (1, 4, 4)}", bytes(64)), encrypted=True),
    ],
    ids=["bytes", "expression", "overflow", "memory", "negative", "parentheses", "quotes", "encrypted"],
)
def test_a_hostile_golden_file_is_refused(package: Path, content: bytes) -> None:
    replace(package, "golden.npz", content)
    assert refused(package).file == "golden.npz"


@given(st.data())
def test_a_golden_file_with_broken_bytes_raises_only_package_errors(data: st.DataObject) -> None:
    content = bytearray(tiny.files()["golden.npz"])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(PackageError):
        packages._read_golden(bytes(content), (4, 4), (3,), (4, 4))


def test_a_golden_file_that_unpacks_to_too_much_is_refused_unread(package: Path, tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.npy", bytes(packages.MAX_GOLDEN_BYTES + 1))
    replace(package, "golden.npz", bomb.read_bytes())
    assert f"unpacks to {packages.MAX_GOLDEN_BYTES + 1} bytes" in str(refused(package))


def test_outputs_that_are_not_golden_are_refused(package: Path) -> None:
    read = packages.read(package)
    with pytest.raises(PackageError, match=r"encoder\.onnx: golden rows differ from golden\.npz by"):
        packages.check_golden(read, lambda rows: tiny.encode(rows) * np.float32(1.01), tiny.decode)
    with pytest.raises(PackageError, match=r"decoder\.onnx: golden rows gave shape"):
        packages.check_golden(read, tiny.encode, lambda latents: tiny.decode(latents)[1:])


@given(st.binary(max_size=300))
def test_random_graphs_raise_only_package_errors(content: bytes) -> None:
    with pytest.raises(PackageError):
        check_graph("encoder.onnx", content, (4, 4), (3,))


@given(st.data())
def test_a_graph_with_broken_bytes_raises_only_package_errors(data: st.DataObject) -> None:
    content = bytearray(tiny.encoder().SerializeToString())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        check_graph("encoder.onnx", bytes(content), (4, 4), (3,))
    except PackageError:
        return
    onnx.load_model_from_string(bytes(content))


def test_novelty_is_the_share_of_smaller_errors() -> None:
    quantiles = np.array([0.0, 1.0, 4.0], np.float32)
    found = packages.novelty(np.array([-1.0, 0.0, 0.5, 1.0, 2.5, 4.0, 99.0], np.float32), quantiles)
    np.testing.assert_allclose(found, [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0])


def test_a_package_in_8_bits_may_be_as_far_off_as_it_says(tmp_path: Path) -> None:
    manifest = tiny.manifest()
    manifest.precision = model_pb2.PRECISION_INT8
    manifest.parity.golden_absolute_tolerance = 0.05
    package = packages.read(packages.write(tmp_path, manifest, tiny.files()))
    packages.check_golden(package, lambda rows: tiny.encode(rows) + np.float32(0.04), tiny.decode)
    with pytest.raises(PackageError, match=r"encoder\.onnx: golden rows differ .* by 0\.1 \(tolerance 0\.05"):
        packages.check_golden(package, lambda rows: tiny.encode(rows) + np.float32(0.1), tiny.decode)

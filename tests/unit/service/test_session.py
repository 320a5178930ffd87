"""Sessions on the CPU: the same code paths as on a GPU where onnxruntime lets them run here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service import packages
from service.devices import CPU, Device
from service.errors import PackageError, StartError
from service.session import OnnxSession, Rows, _Chain, batch_sizes
from tests import tiny


@pytest.fixture
def package(tmp_path: Path) -> packages.Package:
    return packages.read(tiny.write(tmp_path))


@pytest.mark.parametrize("count", [1, 2, 5, 64])
def test_a_session_gives_what_the_graphs_say(package: packages.Package, count: int) -> None:
    session = OnnxSession(package, Device(provider=CPU), threads=1, max_batch_rows=64)
    rows = tiny.rows(count)
    latents = session.encode(rows)
    np.testing.assert_allclose(latents, tiny.encode(rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.decode(latents), tiny.decode(latents), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(session.reconstruct(rows), tiny.decode(tiny.encode(rows)), rtol=1e-4, atol=1e-5)
    session.close()


def test_graphs_are_run_by_the_threads_that_were_asked_for_without_spinning(package: packages.Package) -> None:
    session = OnnxSession(package, Device(provider=CPU), threads=3, max_batch_rows=64)
    for graph in (session._encoder, session._decoder):
        options = graph._session.get_session_options()
        assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert not graph._session._enable_fallback, "an error would be answered by a new session on the CPU"


def test_latents_that_stay_on_the_device_give_what_the_graphs_say_and_what_was_given_stays(
    package: packages.Package,
) -> None:
    session = OnnxSession(package, Device(provider=CPU), threads=1, max_batch_rows=64)
    chain = _Chain(session._encoder, session._decoder, package.latent_shape, Device(provider=CPU))
    given: list[tuple[Rows, Rows]] = []
    for seed in range(3):
        for size in (8, 1, 64):
            rows = tiny.rows(size, seed)
            given.append((chain.run(rows), session.reconstruct(rows)))
    for got, expected in given:  # after all runs: a later one must not have written over an earlier answer
        np.testing.assert_array_equal(got, expected)
    assert sorted(chain._bindings) == [1, 8, 64], "one buffer for each size"


def test_batch_sizes_are_powers_of_two_and_the_largest() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 100]


def test_rows_are_padded_only_where_shapes_matter(package: packages.Package) -> None:
    session = OnnxSession(package, Device(provider=CPU), threads=1, max_batch_rows=100)
    assert session.padded_rows(33) == 33
    session._sizes = batch_sizes(100)
    assert [session.padded_rows(count) for count in (1, 3, 33, 65, 100)] == [1, 4, 64, 100, 100]


def test_a_provider_that_falls_back_is_an_error(package: packages.Package) -> None:
    pretended = Device(provider="CUDAExecutionProvider", name="cpu", providers=((CPU, {}),))
    with pytest.raises(StartError, match="fell back from CUDAExecutionProvider to CPUExecutionProvider"):
        OnnxSession(package, pretended, threads=1, max_batch_rows=4)


def test_a_graph_that_onnxruntime_refuses_is_a_package_error(tmp_path: Path) -> None:
    broken = tiny.encoder()
    broken.graph.node[1].op_type = "NoSuchOperator"
    path = packages.write(tmp_path, tiny.manifest(), tiny.files() | {"encoder.onnx": broken.SerializeToString()})
    with pytest.raises(PackageError, match=r"encoder\.onnx: onnxruntime refuses it: .*NoSuchOperator"):
        OnnxSession(packages.read(path), Device(provider=CPU), threads=1, max_batch_rows=4)

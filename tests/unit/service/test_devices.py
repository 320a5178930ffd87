"""The choice of a device, and what onnxruntime is told of it. Providers that are not here are not run."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort
import pytest

from service import devices
from service.devices import CPU, CUDA, TENSORRT, Device, choose_device
from service.errors import StartError
from tests import tiny


def test_a_device_asked_for_by_name_that_is_not_there_is_an_error() -> None:
    for wanted, provider in (("cuda", "CUDAExecutionProvider"), ("tensorrt", "TensorrtExecutionProvider")):
        if provider in ort.get_available_providers():
            pytest.skip(f"this onnxruntime has {provider}")
        with pytest.raises(StartError, match=f"--device {wanted}: this onnxruntime has no {provider}"):
            choose_device(wanted)
        assert choose_device("auto").provider == CPU


@pytest.fixture
def all_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_why_not", lambda device: None)


@pytest.mark.usefixtures("all_work")
def test_a_memory_limit_goes_to_cuda_in_the_words_of_onnxruntime() -> None:
    (provider,) = choose_device("auto", gpu_memory_limit_bytes=1 << 30).providers
    assert provider == (
        CUDA,
        {
            "cudnn_conv_algo_search": "HEURISTIC",
            "use_tf32": "0",
            "gpu_mem_limit": str(1 << 30),
            "arena_extend_strategy": "kSameAsRequested",
        },
    )


@pytest.mark.usefixtures("all_work")
def test_tensorrt_compiles_one_engine_for_all_sizes_and_keeps_it_for_these_weights_only(tmp_path: Path) -> None:
    device = choose_device("tensorrt", engine_cache=tmp_path / "engines")
    other = tiny.encoder()
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    graphs = [tiny.encoder().SerializeToString(), other.SerializeToString()]
    assert graphs[0] != graphs[1]
    folders = set()
    for graph in graphs:
        (name, options), cuda = device.providers_for(graph, (2, 3), 64)
        assert (name, cuda[0]) == (TENSORRT, CUDA)
        assert options["trt_profile_min_shapes"] == "rows:1x2x3"
        assert options["trt_profile_opt_shapes"] == options["trt_profile_max_shapes"] == "rows:64x2x3"
        assert options["trt_engine_cache_enable"] == "1"
        folder = Path(options["trt_engine_cache_path"])
        assert folder.is_dir()
        assert folder.stat().st_mode & 0o777 == 0o700
        folders.add(folder)
    (_, larger), _ = device.providers_for(graphs[0], (2, 3), 128)
    folders.add(Path(larger["trt_engine_cache_path"]))
    assert len(folders) == 3, "another graph or size has engines of its own"


@pytest.mark.usefixtures("all_work")
def test_engines_are_not_taken_from_where_others_may_write(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(StartError, match=r"--tensorrt-cache: .*/shared: must be a directory of this user"):
        choose_device("tensorrt", engine_cache=shared)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(StartError, match=r"--tensorrt-cache: .*/file: File exists"):
        choose_device("tensorrt", engine_cache=file)


def test_without_a_cache_tensorrt_is_told_the_sizes_only() -> None:
    device = Device(provider=TENSORRT, name="cuda", providers=((TENSORRT, {}), (CUDA, {})))
    (_, options), _ = device.providers_for(tiny.encoder().SerializeToString(), (2, 3), 8)
    assert set(options) == {"trt_profile_min_shapes", "trt_profile_opt_shapes", "trt_profile_max_shapes"}


def test_other_providers_are_told_nothing_of_the_graph() -> None:
    assert Device(provider=CPU).providers_for(b"", (1,), 1) == [(CPU, {})]

"""Run by the environment of tritonclient: asks the service at argv[1] in every way, writes what came to argv[2].

Arrays are named WAY/OPERATION/OUTPUT; `errors` is the JSON of the texts and statuses of wrong requests.
"""

import asyncio
import json
import sys
from queue import SimpleQueue

import numpy as np
import tritonclient.grpc as blocking
import tritonclient.grpc.aio as asynchronous
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

# In one process with the service's own descriptors of the same names: neither may disturb the other.
from service import inference_messages

PARAMETERS = {"interpolate": {"steps": 4, "method": "spherical"}}
MODELS = {
    "encode": "mnist-conv",
    "decode": "mnist-conv",
    "reconstruct": "mnist-conv",
    "denoise": "mnist-denoising-conv",
    "interpolate": "mnist-conv",
}


def sent(module, arrays):
    inputs = []
    for name, array in arrays.items():
        each = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        each.set_data_from_numpy(array)
        inputs.append(each)
    return inputs


def received(result, way, operation):
    return {
        f"{way}/{operation}/{output.name}": result.as_numpy(output.name) for output in result.get_response().outputs
    }


def ask_blocking(address, requests):
    found, errors = {}, []
    with blocking.InferenceServerClient(address) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("mnist-conv.encode")
        assert not client.is_model_ready("huge.encode")
        assert client.get_server_metadata().name == "hourglass"
        assert client.get_model_metadata("mnist-conv.encode").inputs[0].shape == [-1, 28, 28]
        assert client.get_model_config("mnist-conv.encode").config.input[0].dims == [28, 28]
        assert "mnist-conv.decode" in {model.name for model in client.get_model_repository_index().models}
        for operation, arrays in requests.items():
            name = f"{MODELS[operation]}.{operation}"
            result = client.infer(name, sent(blocking, arrays), request_id="7", parameters=PARAMETERS.get(operation))
            assert result.get_response().id == "7"
            found |= received(result, "sync", operation)
        # Ours, and those of the native calls before.
        stats = client.get_inference_statistics("mnist-conv.encode").model_stats[0]
        assert stats.inference_count == 3 * len(requests["encode"]["rows"])
        for wrong in (
            lambda: client.infer("huge.encode", sent(blocking, requests["encode"])),
            lambda: client.infer("mnist-conv.denoise", sent(blocking, requests["denoise"])),
            lambda: client.infer("mnist-conv.encode", sent(blocking, requests["decode"])),
            lambda: client.load_model("mnist-conv"),
            lambda: client.unload_model("mnist-conv"),
        ):
            try:
                wrong()
            except InferenceServerException as error:
                errors.append((error.status(), error.message()))
        half = client.infer(
            "mnist-conv.encode", sent(blocking, requests["encode"]), parameters={"output_datatype": "FP16"}
        )
        found["half"] = half.as_numpy("latents")
    return found, errors


def ask_on_a_stream(address, requests):
    answers = SimpleQueue()
    found = {}
    with blocking.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for operation, arrays in requests.items():
            name = f"{MODELS[operation]}.{operation}"
            client.async_stream_infer(
                name, sent(blocking, arrays), request_id=operation, parameters=PARAMETERS.get(operation)
            )
        for _ in requests:
            result, error = answers.get(timeout=30)
            assert error is None, error
            found |= received(result, "stream", result.get_response().id)
        client.async_stream_infer("huge.encode", sent(blocking, requests["encode"]))
        result, error = answers.get(timeout=30)
        assert result is None
        assert "there is no model 'huge'" in error.message()
        client.stop_stream()
    return found


async def ask_asynchronously(address, requests):
    found = {}
    async with asynchronous.InferenceServerClient(address) as client:
        assert await client.is_model_ready("mnist-conv.encode")

        async def ask(operation, arrays):
            return operation, await client.infer(
                f"{MODELS[operation]}.{operation}",
                sent(asynchronous, arrays),
                parameters=PARAMETERS.get(operation),
            )

        for operation, arrays in requests.items():
            found |= received((await ask(operation, arrays))[1], "asyncio", operation)
    return found


def main():
    address, target, source = sys.argv[1:]
    assert inference_messages.InferRequest(model_name="x").SerializeToString() == (
        blocking.service_pb2.ModelInferRequest(model_name="x").SerializeToString()
    )
    requests = {}
    with np.load(source) as arrays:
        for name in arrays:
            operation, _, each = name.partition("/")
            requests.setdefault(operation, {})[each] = arrays[name]
    found, errors = ask_blocking(address, requests)
    found |= ask_on_a_stream(address, requests)
    found |= asyncio.run(ask_asynchronously(address, requests))
    np.savez(target, errors=json.dumps(errors), **found)


main()

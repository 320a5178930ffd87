"""Run by the environment of kserve: as triton_client.py, with KServe's own client, typed and raw."""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

MODELS = {
    "encode": "mnist-conv",
    "decode": "mnist-conv",
    "reconstruct": "mnist-conv",
    "denoise": "mnist-denoising-conv",
    "interpolate": "mnist-conv",
}
DATATYPES = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8"}


def request(operation, arrays, *, raw):
    inputs = []
    for name, array in arrays.items():
        datatype = DATATYPES[array.dtype.name]
        each = InferInput(name=name, shape=list(array.shape), datatype=datatype)
        each.set_data_from_numpy(array, binary_data=raw)
        inputs.append(each)
    parameters = {"steps": 4, "method": "spherical"} if operation == "interpolate" else {}
    return InferRequest(
        model_name=f"{MODELS[operation]}.{operation}", infer_inputs=inputs, request_id="k", parameters=parameters
    )


async def main():
    address, target, source = sys.argv[1:]
    requests = {}
    with np.load(source) as arrays:
        for name in arrays:
            operation, _, each = name.partition("/")
            requests.setdefault(operation, {})[each] = arrays[name]
    found, errors = {}, []
    async with InferenceGRPCClient(address, retries=0) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready("mnist-conv.encode")
        assert not await client.is_model_ready("huge.encode")
        for operation, arrays in requests.items():
            for way, raw in (("raw", True), ("typed", False)):
                response = await client.infer(request(operation, arrays, raw=raw))
                assert response.id == "k"
                for output in response.outputs:
                    found[f"{way}/{operation}/{output.name}"] = output.as_numpy()
        wrong = request("encode", requests["decode"], raw=True)
        try:
            await client.infer(wrong)
        except grpc.RpcError as error:
            errors.append((str(error.code()), error.details()))
    np.savez(target, errors=json.dumps(errors), **found)


asyncio.run(main())

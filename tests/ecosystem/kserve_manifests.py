"""Run by the environment of kserve: reads the manifests in argv by the types that KServe's SDK declares.

Prints JSON: the manifests, and the path of every field that the SDK, or Kubernetes's own, does not know or takes otherwise.
"""

import json
import re
import sys
from pathlib import Path

import yaml
from kserve import models
from kubernetes import client

KINDS = {"ServingRuntime": "V1alpha1ServingRuntime", "InferenceService": "V1beta1InferenceService"}
PLAIN = {"str": str, "int": int, "bool": bool, "float": float, "object": object}


def problems(value, kind, path):
    """The fields of `value` that a `kind`, as openapi writes types, does not have."""
    if inner := re.fullmatch(r"list\[(.+)\]", kind):
        return [each for n, item in enumerate(value) for each in problems(item, inner[1], f"{path}[{n}]")]
    if inner := re.fullmatch(r"dict\(str, (.+)\)", kind):
        return [each for key, item in value.items() for each in problems(item, inner[1], f"{path}.{key}")]
    if kind in PLAIN:
        return [] if isinstance(value, PLAIN[kind]) else [f"{path} is no {kind}"]
    name = kind.rpartition(".")[2]
    if declared := getattr(models, name, None):
        types = {declared.attribute_map[attribute]: each for attribute, each in declared.openapi_types.items()}
        unknown = [f"{path}.{key}" for key in value if key not in types]
        return unknown + [
            each for key in value if key in types for each in problems(value[key], types[key], f"{path}.{key}")
        ]
    understood = client.ApiClient().sanitize_for_serialization(getattr(client, name).from_dict(value))
    return [f"{path}.{key}" for key in value if understood.get(key) != value[key]]


manifests = {}
for path in sys.argv[1:]:
    manifest = yaml.safe_load(Path(path).read_text())
    manifests[manifest["kind"]] = manifest
faults = {kind: problems(manifest, KINDS[kind], kind) for kind, manifest in manifests.items()}
print(json.dumps({"manifests": manifests, "faults": faults}))

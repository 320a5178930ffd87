"""Run by the environment of tritonclient: the model configurations named in argv, read with Triton's own schema, as JSON."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

configs = [text_format.Parse(Path(name).read_text(), ModelConfig()) for name in sys.argv[1:]]
print(json.dumps([json_format.MessageToDict(config) for config in configs]))

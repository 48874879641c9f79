"""Parse config.pbtxt files with the server's schema, and print all of them as JSON.

    python parse.py CONFIG...

The script runs in the server's environment.
"""

import json
import sys
from pathlib import Path

from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

parsed = [text_format.Parse(Path(path).read_text(), ModelConfig()) for path in sys.argv[1:]]
json.dump(
    [json_format.MessageToDict(one, preserving_proto_field_name=True) for one in parsed],
    sys.stdout,
)

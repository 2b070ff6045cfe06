"""Answers as ``docker`` does for what this project asks of it, and as TensorFlow Serving does for one tree of models.

Speaks TF-Serving's REST and gRPC protocols with its own messages (tensorflow-serving-api, on PYTHONPATH) and
TensorFlow's loader; versions are read once. ``SHIM_OFFSET`` is added to every answer: a server that is wrong.
"""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def serve(words: list[str]) -> None:
    import grpc
    import tensorflow as tf
    from google.protobuf import json_format, text_format
    from tensorflow.core.protobuf import saved_model_pb2
    from tensorflow_serving.apis import predict_pb2
    from tensorflow_serving.config import model_server_config_pb2

    options = dict(word.removeprefix("--").partition("=")[::2] for word in words if word.startswith("--volume"))
    published = [word.split(":") for word in words if word.startswith("--publish")]
    ports = {inside: int(outside) for _, outside, inside in published}
    tree = Path(options["volume"].split(":")[0])
    config = model_server_config_pb2.ModelServerConfig()
    text_format.Parse((tree / "models.config").read_text(), config)
    (model,) = config.model_config_list.config
    folder = tree / Path(model.base_path).relative_to("/models")
    version = max(int(item.name) for item in folder.iterdir())
    path = folder / str(version)
    saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    offset = float(os.environ.get("SHIM_OFFSET", "0"))

    def function(**feeds: tf.Tensor) -> dict[str, tf.Tensor]:
        return {name: value + offset for name, value in served(**feeds).items()}

    def predict(request: bytes, context: grpc.ServicerContext) -> bytes:
        parsed = predict_pb2.PredictRequest.FromString(request)
        if parsed.model_spec.name != model.name:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({parsed.model_spec.name})"
            )
        answer = predict_pb2.PredictResponse()
        feeds = {name: tf.make_ndarray(value) for name, value in parsed.inputs.items()}
        for name, tensor in function(**{name: tf.constant(value) for name, value in feeds.items()}).items():
            content = answer.outputs[name]  # as typed values, which is TF-Serving's way
            content.dtype = tensor.dtype.as_datatype_enum
            content.tensor_shape.CopyFrom(tensor.shape.as_proto())
            content.float_val.extend(tensor.numpy().ravel().tolist())
        return answer.SerializeToString()

    class Rest(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == f"/v1/models/{model.name}":
                self._say({"model_version_status": [{"version": str(version), "state": "AVAILABLE"}]})
            elif self.path == f"/v1/models/{model.name}/metadata":
                signatures = {
                    name: json_format.MessageToDict(value, True, preserving_proto_field_name=True)
                    for name, value in saved.meta_graphs[0].signature_def.items()
                }
                spec = {"name": model.name, "signature_name": "", "version": str(version)}
                self._say({"model_spec": spec, "metadata": {"signature_def": {"signature_def": signatures}}})
            else:
                self._say({"error": "Malformed request"}, 400)

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != f"/v1/models/{model.name}:predict":
                self._say({"error": f"Servable not found for request: {self.path}"}, 404)
                return
            inputs = {name: tf.constant(value, tf.float32) for name, value in body["inputs"].items()}
            outputs = {name: value.numpy().tolist() for name, value in function(**inputs).items()}
            self._say({"outputs": next(iter(outputs.values())) if len(outputs) == 1 else outputs})

        def _say(self, value: object, status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *arguments: object) -> None: ...

    server = grpc.server(ThreadPoolExecutor(2))
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    service = grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(f"127.0.0.1:{ports['8500']}")
    server.start()
    threading.Thread(target=ThreadingHTTPServer(("127.0.0.1", ports["8501"]), Rest).serve_forever, daemon=True).start()
    server.wait_for_termination()


if __name__ == "__main__":
    with Path(os.environ["SHIM_CALLS"]).open("a") as calls:
        calls.write(f"{json.dumps(sys.argv[1:])}\n")
    if sys.argv[1] == "run":
        serve(sys.argv[2:])
    print("1")

"""How each library is asked for an answer; also writes torch's net as files.

Run: python benchmarks/inference_peers.py NET FOLDER (in the peers' environment)
"""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np

SIDE, CLASSES = 224, 1000
CHECKPOINT, KERAS_EXPORT = "net.safetensors", "keras_export"
TORCH_ONNX, NCNN, STATIC = "torch.onnx", "torch.ncnn", "static.onnx"
OURS = {
    "saved_model": "saved_model",
    "tflite": "model.tflite",
    "tflite-fp16": "model-fp16.tflite",
    "tflite-dynamic": "model-dynamic.tflite",
    "tflite-int8": "model-int8.tflite",
    "onnx": "model.onnx",
    "onnx-int8": "model-int8.onnx",
}
Call = Callable[[], Any]


@dataclass(frozen=True)
class Peer:
    """Somebody else's way to an answer.

    Attributes:
        opened: Returns the call, of a folder, the name of the net and its images.
        packages: Whose versions are told.
        file: What it opens in the folder, if that is a file.
        elsewhere: Whether it runs in the peers' environment.
    """

    opened: Callable[[Path, str, Any], Call]
    packages: tuple[str, ...]
    file: str = ""
    elsewhere: bool = True


def pixels(batch: int) -> Any:
    """Return images of noise, uint8 `(batch, 224, 224, 3)`."""
    shape = (batch, SIDE, SIDE, 3)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def normalised(images: Any) -> Any:
    """Return about what the nets see of images, float32."""
    return (images / np.float32(128) - 1).astype(np.float32)


def planes(images: Any) -> Any:
    """Return normalised images `(batch, 3, height, width)`."""
    return np.ascontiguousarray(normalised(images).transpose(0, 3, 1, 2))


def of_file(path: Path, images: Any) -> Call:
    """Ask one of reszoo's files."""
    from reszoo_export.runtimes import open_runtime

    runtime = open_runtime(path, harness.THREADS)
    return lambda: runtime.run(images)


def of_keras(folder: Path, _: str, images: Any) -> Call:
    """Ask `keras.Model.predict`."""
    import reszoo

    model, seen = reszoo.load(folder / CHECKPOINT), normalised(images)
    return lambda: model.predict(seen, verbose=0)


def of_keras_export(folder: Path, _: str, images: Any) -> Call:
    """Ask the SavedModel that Keras wrote."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(folder / KERAS_EXPORT))
    serve, seen = loaded.signatures["serving_default"], normalised(images)
    name = next(iter(serve.structured_input_signature[1]))
    return lambda: next(iter(serve(**{name: tf.constant(seen)}).values())).numpy()


def torch_net(net: str) -> Any:
    """Return torchvision's net, ready to answer."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from torch_peers import import_torchvision

    torchvision = import_torchvision()
    import torch

    torch.set_num_threads(harness.THREADS)
    torch.manual_seed(0)
    return getattr(torchvision.models, net)(weights=None).eval()


def of_torch(how: str) -> Callable[[Path, str, Any], Call]:
    """Ask torch, without gradients: "eager", "channels_last" or "compile"."""

    def opened(_: Path, name: str, images: Any) -> Call:
        net = torch_net(name)
        import torch

        seen = torch.from_numpy(planes(images))
        if how != "eager":
            net = net.to(memory_format=torch.channels_last)
            seen = seen.contiguous(memory_format=torch.channels_last)
        if how == "compile":
            net = torch.compile(net)

        def call() -> Any:
            with torch.inference_mode():
                return net(seen).numpy()

        return call

    return opened


def of_onnxruntime(file: str) -> Callable[[Path, str, Any], Call]:
    """Ask ONNX Runtime about the file that torch wrote, or it by default quantised."""

    def opened(folder: Path, _: str, images: Any) -> Call:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = harness.THREADS
        session = onnxruntime.InferenceSession(
            folder / file, options, providers=["CPUExecutionProvider"]
        )
        shown = planes(images) if file == TORCH_ONNX else images
        seen = {session.get_inputs()[0].name: shown}
        return lambda: session.run(None, seen)[0]

    return opened


def of_openvino(file: str, precision: str) -> Callable[[Path, str, Any], Call]:
    """Ask OpenVINO about an ONNX file of ours or of torch's."""

    def opened(folder: Path, _: str, images: Any) -> Call:
        import openvino

        how = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": harness.THREADS,
            "INFERENCE_PRECISION_HINT": precision,
        }
        core = openvino.Core()
        net = core.read_model(folder / file)
        seen = images if file == OURS["onnx"] else planes(images)
        net.reshape(list(seen.shape))
        request = core.compile_model(net, "CPU", how).create_infer_request()
        return lambda: request.infer([seen])[net.outputs[-1].any_name]

    return opened


def of_ncnn(folder: Path, _: str, images: Any) -> Call:
    """Ask ncnn, which takes one image at a time."""
    import ncnn

    net = ncnn.Net()
    net.opt.num_threads = harness.THREADS
    net.load_param(str(folder / f"{NCNN}.param"))
    net.load_model(str(folder / f"{NCNN}.bin"))
    seen = [ncnn.Mat(image).clone() for image in planes(images)]

    def answer(image: Any) -> Any:
        with net.create_extractor() as extractor:
            extractor.input("in0", image)
            return np.array(extractor.extract("out0")[1])

    return lambda: np.stack([answer(image) for image in seen])


PEERS: dict[str, Peer] = {
    "keras predict": Peer(of_keras, ("keras", "tensorflow"), CHECKPOINT, False),
    "Model.export": Peer(of_keras_export, ("keras", "tensorflow"), KERAS_EXPORT, False),
    "quantize_static": Peer(of_onnxruntime(STATIC), ("onnxruntime",), STATIC, False),
    "torch eager": Peer(of_torch("eager"), ("torch", "torchvision")),
    "torch channels_last": Peer(of_torch("channels_last"), ("torch", "torchvision")),
    "torch.compile": Peer(of_torch("compile"), ("torch", "torchvision")),
    "torch's onnx": Peer(
        of_onnxruntime(TORCH_ONNX), ("onnxruntime", "torch"), TORCH_ONNX
    ),
    "openvino": Peer(of_openvino(OURS["onnx"], "f32"), ("openvino",), OURS["onnx"]),
    "openvino, torch's onnx": Peer(
        of_openvino(TORCH_ONNX, "f32"), ("openvino", "torch"), TORCH_ONNX
    ),
    "openvino bf16": Peer(
        of_openvino(OURS["onnx"], "bf16"), ("openvino",), OURS["onnx"]
    ),
    "ncnn": Peer(of_ncnn, ("ncnn",), f"{NCNN}.bin"),
}


def make_torch_files(python: str, net: str, folder: Path) -> None:
    """Have torch write its ONNX file and pnnx ncnn's; what is there is kept."""
    if not (folder / f"{NCNN}.bin").exists():
        words = [python, __file__, net, str(folder.resolve())]
        subprocess.run(words, check=True, capture_output=True)


def _write_torch_files(name: str, folder: Path) -> None:
    net = torch_net(name)
    import torch

    seen = torch.zeros((1, 3, SIDE, SIDE))
    torch.onnx.export(
        net,
        (seen,),
        folder / TORCH_ONNX,
        input_names=["input"],
        dynamic_axes={"input": {0: "batch"}},
        dynamo=False,
    )
    traced = folder / "torch.pt"
    torch.jit.trace(net, seen).save(traced)
    pnnx = Path(sys.executable).parent / "pnnx"
    subprocess.run(
        [
            pnnx,
            traced,
            f"inputshape=[1,3,{SIDE},{SIDE}]",
            "fp16=0",
            f"ncnnparam={folder / NCNN}.param",
            f"ncnnbin={folder / NCNN}.bin",
        ],
        check=True,
        cwd=folder,
    )


if __name__ == "__main__":
    _write_torch_files(sys.argv[1], Path(sys.argv[2]))

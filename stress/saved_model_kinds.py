"""Every kind of defect of SavedModels (see `defects.toml`), and how it is planted."""

import defect_arrays as arrays
import numpy as np
import saved_model_defects as saved
from defect_arrays import HWIO
from planting import (
    Edit,
    Kind,
    first_two_swapped,
    in_preprocessing,
    moved_by_one,
    of_folder,
    one_lost,
    truncated,
)
from saved_model_defects import (
    ADD,
    BEFORE,
    CAST,
    FORMAT,
    LAST,
    LOGITS,
    MATMUL,
    MEAN,
    POOL,
    RELU,
    SCALE,
    SHIFT,
    SOFTMAX,
    STRIDED,
    Change,
    attribute,
    become,
    both,
    constant_of,
    inserted,
    reads,
    skipped,
)

# Numbers of dtypes (types.proto).
FLOAT32, FLOAT64, INT32, UINT8 = 1, 2, 3, 4
DEFAULT, BYTES = "serving_default", "serving_bytes"
STRIDED_PAD, STEM_PAD = "layer2.0.conv1.pad_1/Pad", "conv1.pad_1/Pad"
RESIZE, WARMUP = "ScaleAndTranslate", "tf_serving_warmup_requests"
_BODY: dict[str, Change] = {
    "pad_same_to_valid": attribute(LAST, "padding", b"VALID"),
    "pad_valid_to_same": both(
        attribute(STRIDED, "padding", b"SAME"), skipped(STRIDED_PAD)
    ),
    "pad_amounts": constant_of(
        STRIDED_PAD, 1, lambda a: np.array([[0, 0], [0, 2], [0, 2], [0, 0]], np.int32)
    ),
    "pad_rows_columns": constant_of(
        STEM_PAD, 1, lambda a: np.array([[0, 0], [2, 4], [4, 2], [0, 0]], np.int32)
    ),
    "pad_value": both(
        inserted(STRIDED_PAD, 0, "Identity", "output", T=FLOAT32),
        become(STRIDED_PAD, "MirrorPad", "output"),
        attribute(STRIDED_PAD, "mode", b"REFLECT"),
    ),
    "explicit_paddings": both(
        attribute(LAST, "padding", b"EXPLICIT"),
        attribute(LAST, "explicit_paddings", [0, 0, 0, 2, 0, 2, 0, 0]),
    ),
    "pool_average_for_max": become(
        POOL, "AvgPool", "output", "explicit_paddings", T=FLOAT32
    ),
    "pool_window": attribute(POOL, "ksize", [1, 4, 4, 1]),
    "pool_padding": attribute(POOL, "padding", b"SAME"),
    "pool_strides": attribute(POOL, "strides", [1, 1, 1, 1]),
    "conv_strides": attribute(BEFORE, "strides", [1, 2, 1, 1]),
    "conv_dilations": attribute(LAST, "dilations", [1, 2, 2, 1]),
    "data_format": attribute(LAST, "data_format", b"NCHW"),
    "relu_to_identity": become(RELU, "Identity", "output"),
    "relu_to_relu6": become(RELU, "Relu6", "activations"),
    "relu_to_elu": become(RELU, "Elu", "activations"),
    "relu_to_softplus": become(RELU, "Softplus", "activations"),
    "relu_missing_after_add": skipped("layer2.1.relu_1/Relu"),
    "relu_extra": inserted(ADD, 0, "Relu", "activations", T=FLOAT32),
    "add_to_sub": become(ADD, "Sub", "z"),
    "add_to_mul": become(ADD, "Mul", "z"),
    "add_to_maximum": become(ADD, "Maximum", "z"),
    "add_same_operand": reads(ADD, 1, "layer2.1.conv2_1/BiasAdd"),
    "shortcut_from_earlier_block": reads("layer1.1.add_1/Add", 1, POOL),
    "shortcut_lost": skipped(ADD, 0),
    "block_skipped": skipped(ADD, 1),
    "softmax_to_identity": become(SOFTMAX, "Identity", "output"),
    "softmax_to_sigmoid": become(SOFTMAX, "Sigmoid", "y"),
    "softmax_to_log": become(SOFTMAX, "LogSoftmax", "logsoftmax"),
    "softmax_twice": inserted(SOFTMAX, 0, "Softmax", "softmax", T=FLOAT32),
    "softmax_input": reads(SOFTMAX, 0, MATMUL),
    "logits_without_bias": reads("logits", 0, MATMUL),
    "mean_axes": constant_of(MEAN, 1, lambda a: np.array([0, 1], np.int32)),
    "mean_to_max": become(MEAN, "Max", "output"),
    "mean_to_sum": become(MEAN, "Sum", "output"),
    "mean_keep_dims": attribute(MEAN, "keep_dims", True),
    "matmul_transpose": attribute(MATMUL, "transpose_b", True),
    "batch_norm_training": saved.trained,
    "batch_mean": saved.batch_mean,
    "bias_add_bypassed": skipped(LOGITS),
    "bias_add_bypassed_inside": skipped("layer2.1.conv2_1/BiasAdd"),
    "conv_reads_another": reads(LAST, 1, "layer2.1.conv1_1/convolution/ReadVariableOp"),
    "batch_reshape": inserted(
        MATMUL,
        0,
        "Reshape",
        "output",
        (np.array([1, -1], np.int32),),
        T=FLOAT32,
        Tshape=INT32,
    ),
    "operator_unknown": saved.renamed_operator,
    "operator_type_attribute": attribute(RELU, "T", FLOAT64),
    "rescale_constant": constant_of(SCALE, 1, arrays.scaled(255 / 256)),
    "mean_constant_reversed": constant_of(SHIFT, 1, arrays.reversed_along(-1)),
    "std_constant_reversed": constant_of(SCALE, 1, arrays.reversed_along(-1)),
    "mean_one_channel": constant_of(SHIFT, 1, arrays.swapped(0)),
    "normalization_skipped": both(skipped(SCALE), skipped(SHIFT)),
    "input_reversed": inserted(
        CAST, 0, "ReverseV2", "output", (np.array([3], np.int32),), T=UINT8, Tidx=INT32
    ),
    "input_transposed": inserted(
        CAST,
        0,
        "Transpose",
        "y",
        (np.array([0, 2, 1, 3], np.int32),),
        T=UINT8,
        Tperm=INT32,
    ),
    "input_mirrored": inserted(
        CAST, 0, "ReverseV2", "output", (np.array([2], np.int32),), T=UINT8, Tidx=INT32
    ),
    "file_operator": inserted(CAST, 0, "StopGradient", "output", T=UINT8),
}
_EDITS: dict[str, Edit] = {
    "batch_norm_epsilon": saved.variable(
        "last", arrays.scaled(np.sqrt((1 + 1e-5) / (1 + 1e-3)))
    ),
    "variables_exchanged": saved.tensors(saved.exchanged),
    "variables_zeroed": saved.variable("last", np.zeros_like),
    "variables_negated": saved.variable("last", np.negative),
    "variables_scaled": saved.variable("last", arrays.scaled(1.05)),
    "variables_one_value": saved.variable("fc", arrays.one_sign),
    "variables_transposed_hw": saved.variable("last", arrays.transposed(HWIO)),
    "variables_flipped": saved.variable("last", arrays.flipped(HWIO)),
    "variables_oihw_bytes": saved.variable("last", arrays.relaid(3, 2, 0, 1)),
    "variables_bgr": saved.variable("conv1", arrays.reversed_along(2)),
    "variables_output_rotated": saved.variable("last", arrays.rotated(3)),
    "variables_input_rotated": saved.variable("last", arrays.rotated(2)),
    "variables_channel_zeroed": saved.variable("last", arrays.one_channel_zeroed(3)),
    "variables_bit_flipped": saved.variable("last", arrays.flipped_bit),
    "variables_of_few_bits": saved.all_variables(arrays.coarse(2**11)),
    "classifier_columns_swapped": saved.variable("fc", arrays.swapped(1)),
    "classifier_scaled": saved.variable("fc", arrays.scaled(1.01)),
    "bias_zeroed": saved.variable("fc.bias", np.zeros_like),
    "bias_rotated": saved.variable("fc.bias", arrays.rotated(0)),
    "bias_inside_zeroed": saved.variable("last.bias", np.zeros_like),
    "variables_float16_rounded": saved.all_variables(arrays.float16),
    "variables_bfloat16_rounded": saved.all_variables(arrays.bfloat16),
    "variables_byteswapped": saved.variable("last", arrays.byteswapped),
    "variables_nan": saved.variable("last", arrays.put(np.nan)),
    "variables_huge": saved.variable("last", arrays.put(1e30)),
    "variable_lost": saved.tensors(saved.lost),
    "variables_of_other_model": saved.other_variables,
    "variables_initial": saved.initial,
    "variables_missing": saved.without_folder("variables"),
    "variables_data_truncated": saved.file(
        "variables/variables.data-00000-of-00001", truncated
    ),
    "variables_index_missing": saved.file(
        "variables/variables.index", lambda content: None
    ),
    "variables_data_bitflip": saved.file(
        "variables/variables.data-00000-of-00001", saved.flipped_bit
    ),
    "graph_truncated": saved.file("saved_model.pb", truncated),
    "graph_empty": saved.file("saved_model.pb", lambda content: b""),
    "graph_missing": saved.file("saved_model.pb", lambda content: None),
    "signature_key": saved.renamed_signature(DEFAULT, "predict"),
    "signature_missing": saved.without_signature(DEFAULT),
    "signature_bytes_missing": saved.without_signature(BYTES),
    "signature_bytes_key": saved.renamed_signature(BYTES, "serving_base64"),
    "signature_method": saved.signature(
        DEFAULT, lambda made: setattr(made, "method_name", "predict")
    ),
    "signature_input_name": saved.signature(
        DEFAULT, saved.renamed_tensor("inputs", "image", "input_1")
    ),
    "signature_output_name": saved.signature(
        DEFAULT, saved.renamed_tensor("outputs", "probabilities", "output_0")
    ),
    "signature_dtype": saved.signature(
        DEFAULT,
        saved.tensor("inputs", "image", lambda info: setattr(info, "dtype", FLOAT32)),
    ),
    "signature_output_dtype": saved.signature(
        DEFAULT,
        saved.tensor("outputs", "logits", lambda info: setattr(info, "dtype", FLOAT64)),
    ),
    "signature_shape": saved.signature(
        DEFAULT, saved.tensor("inputs", "image", saved.dimension(1, 48))
    ),
    "signature_output_shape": saved.signature(
        DEFAULT, saved.tensor("outputs", "probabilities", saved.dimension(1, 11))
    ),
    "signature_batch_fixed": saved.signature(
        DEFAULT, saved.tensor("inputs", "image", saved.dimension(0, 1))
    ),
    "signature_output_tensor": saved.signature(
        DEFAULT,
        saved.tensor(
            "outputs",
            "probabilities",
            lambda info: setattr(info, "name", "StatefulPartitionedCall_1:0"),
        ),
    ),
    "signature_bytes_tensor": saved.signature(
        BYTES,
        saved.tensor(
            "outputs",
            "probabilities",
            lambda info: setattr(info, "name", "StatefulPartitionedCall:0"),
        ),
    ),
    "signature_bytes_input_name": saved.signature(
        BYTES, saved.renamed_tensor("inputs", "image_bytes", "b64")
    ),
    "signature_extra_output": saved.signature(DEFAULT, saved.extra_output),
    "signature_function_other": saved.of_graph(saved.other_wrapper),
    "tags": saved.of_graph(
        lambda graph: graph.meta_info_def.tags.__setitem__(0, "train")
    ),
    "tags_extra_meta_graph": saved.of_model(saved.second_graph),
    "producer_version": saved.of_graph(
        lambda graph: setattr(graph.graph_def.versions, "min_consumer", 99999)
    ),
    "function_gradient": saved.of_graph(saved.without_function),
    "python_function_softmax": saved.python_body(skipped(RELU)),
    "bytes_model_other": saved.own_body(skipped(RELU), "serve_bytes"),
    "bytes_resize_nearest": saved.in_functions(
        RESIZE, saved.text_attribute("kernel_type", b"box")
    ),
    "bytes_resize_cubic": saved.in_functions(
        RESIZE, saved.text_attribute("kernel_type", b"keyscubic")
    ),
    "bytes_resize_aliased": saved.in_functions(RESIZE, saved.flag("antialias", False)),
    "bytes_grey": saved.in_functions(
        "DecodePng", lambda found: setattr(found.attr["channels"], "i", 1)
    ),
    "labels_swapped": saved.labels(first_two_swapped),
    "labels_rotated": saved.labels(moved_by_one),
    "labels_sorted": saved.labels(sorted),
    "labels_truncated": saved.labels(one_lost),
    "labels_missing": saved.extra("labels.txt", lambda text: None),
    "labels_encoding": saved.extra(
        "labels.txt", lambda text: text.decode().encode("latin-1", "replace")
    ),
    "labels_crlf": saved.extra("labels.txt", lambda text: text.replace(b"\n", b"\r\n")),
    "assets_missing": saved.without_folder(saved.EXTRA),
    "metadata_mean": saved.card(
        lambda content: content["preprocessing"]["mean"].reverse()
    ),
    "metadata_std": saved.card(
        lambda content: content["preprocessing"]["std"].reverse()
    ),
    "metadata_size": saved.in_record(eval_size=48),
    "metadata_interpolation": saved.in_record(interpolation="nearest"),
    "metadata_missing": saved.extra("card.json", lambda text: None),
    "metadata_of_other_model": saved.card(
        lambda content: content["architecture"]["spec"].update(name="another")
    ),
    "metadata_labels": saved.card(
        lambda content: content.update(labels=first_two_swapped(content["labels"]))
    ),
    "warmup_missing": saved.extra(WARMUP, lambda content: None),
    "warmup_signature": saved.warmup(
        lambda record: record.replace(b"serving_default", b"serving_predict")
    ),
    "warmup_truncated": saved.extra(WARMUP, truncated),
    "version_folder": saved.other_version,
    "version_newer": saved.newer_version,
    "manifest_preprocessing": in_preprocessing(crop_pct=0.875),
}

KINDS: dict[str, Kind] = {
    **{name: Kind(saved.of_body(each), FORMAT) for name, each in _BODY.items()},
    **{name: Kind(each, FORMAT) for name, each in _EDITS.items()},
    **of_folder(FORMAT),
}
